//! What the tests of both modes do: wait for a failover and look at how it was decided.

use pgherd_core::lsn::Lsn;
use pgherd_crds::{PostgresClusterStatus, v1alpha1::postgres_cluster::LastFailover};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, describe},
    kubectl::kubectl,
    ledger::LedgerReport,
    wait::{Look, until},
    writer::WriterPod,
};

use crate::checks::claim;

/// More than this without a write is a failure on the slowest machine.
pub(crate) const LONGEST_GAP_MS: u64 = 60_000;

/// Kills an instance's postmaster.
pub(crate) async fn kill_postmaster_of(cluster: &Cluster, pod: &str) -> Result<()> {
    let kill = "kill -9 $(head -n 1 /var/lib/pgherd/data/pgdata/postmaster.pid)";
    kubectl(&cluster.namespace, &["exec", pod, "-c", "postgres", "--", "sh", "-c", kill]).await.map(drop)
}

/// Waits until another than the old primary has begun a later term than `before`.
pub(crate) async fn wait_failover(cluster: &Cluster, before: &PostgresClusterStatus) -> Result<LastFailover> {
    until("the failover", PATIENCE, async || {
        let status = cluster.status().await?;
        let later = status.term > before.term && status.primary.is_some() && status.primary != before.primary;
        let recorded = status.last_failover.clone().filter(|failover| later && Some(failover.term) > before.term);
        Ok(recorded.map_or_else(|| Look::NotYet(describe(&status)), Look::Done))
    })
    .await
}

/// The record names its candidates, and none was further ahead than the one that was promoted.
pub(crate) fn check_record(failover: &LastFailover) -> Result<()> {
    let position = |lsn: &Option<String>| -> Result<Lsn> { Ok(lsn.as_deref().unwrap_or("0/0").parse()?) };
    let winner = failover.candidates.iter().find(|candidate| candidate.pod == failover.to);
    let winner = winner.ok_or_else(|| format!("{} was promoted but is no candidate: {failover:?}", failover.to))?;
    let ahead = position(&winner.lsn)?;
    for candidate in &failover.candidates {
        claim(!candidate.why.is_empty(), || format!("the record does not say what became of {}", candidate.pod))?;
        let theirs = position(&candidate.lsn)?;
        let same_timeline = candidate.timeline == winner.timeline;
        claim(!same_timeline || theirs <= ahead, || {
            format!("{} was further ahead than {}: {failover:?}", candidate.pod, failover.to)
        })?;
    }
    claim(!failover.reason.is_empty(), || "the record gives no reason".to_string())
}

/// Prints how long nobody could write.
pub(crate) fn report_gap(what: &str, ledger: &LedgerReport, failover: Option<&LastFailover>) {
    let steps = failover.map(|f| {
        format!(
            "; {} -> {} because {}; detect {} ms, seal {} ms, promote {} ms, route {} ms",
            f.from, f.to, f.reason, f.detect_ms, f.seal_ms, f.promote_ms, f.route_ms
        )
    });
    println!("{what}: longest time without a write {} ms{}", ledger.longest_gap_ms, steps.unwrap_or_default());
}

/// No acknowledged row is missing and none is there that was never sent.
pub(crate) async fn check_nothing_lost(writer: &WriterPod) -> Result<()> {
    let verified = writer.verify().await?;
    println!("{} rows acknowledged, {} in the table, {} lost", verified.acknowledged, verified.rows, verified.lost);
    claim(verified.lost == 0 && verified.phantom == 0, || {
        format!("{} rows lost (first {:?}), {} never sent", verified.lost, verified.lost_ids, verified.phantom)
    })
}

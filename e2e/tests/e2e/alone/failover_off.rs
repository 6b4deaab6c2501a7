//! Mode `Off`: the primary that is cut off fences itself before another is promoted, and what was lost is reported.

use std::time::Instant;

use pgherd_core::instance::Timings;
use pgherd_crds::v1alpha1::postgres_cluster::LastFailover;
use pgherd_e2e::{
    Result,
    cluster::Cluster,
    kubectl::apply,
    nodes,
    postgres::{psql, stop_receiving},
    wait::{Look, until},
    writer::WriterPod,
};

use crate::{
    alone_in_namespace,
    checks::{claim, source_of},
    failover::{check_record, report_gap, wait_failover},
    manifests,
};

/// A row of the ledger takes at least this much WAL: its tuple, its index entry and the commit.
const LEAST_WAL_PER_ROW: u64 = 100;
/// Asks PostgreSQL in its container.
const ASK: [&str; 7] = ["psql", "-XAtq", "-U", "postgres", "-c", "SELECT pg_is_in_recovery()", "postgres"];
/// Rows that no replica gets before the cut: more than two renewals of the Lease take.
const ROWS_AHEAD: u64 = 600;

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn in_mode_off_a_cut_primary_fences_itself_and_the_loss_stays_within_what_is_reported() -> Result<()> {
    alone_in_namespace("e2e-off", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 3, "  synchronous: {mode: \"Off\"}\n")).await?;
        let cluster = Cluster::new(client, namespace, "c");
        let status = cluster.wait_ready(3).await?;
        let primary = status.primary.clone().ok_or("no primary")?;
        let node = cluster.node_of(&primary).await?;
        let writer = WriterPod::start(client, namespace, "c", &node).await?;
        writer.wait_progress(100).await?;
        writer.reset_gap().await?;
        // Else a replica would be a moment behind only, and there would be nothing to report.
        for replica in status.members.iter().filter(|member| member.pod != primary) {
            stop_receiving(namespace, &replica.pod).await?;
        }
        writer.wait_progress(ROWS_AHEAD).await?;
        let container = find_container(&cluster, &primary).await?;
        // Else a way of asking that never works would pass for a primary that is stopped.
        if let Some(answer) = nodes::exec_on_node(&node, &container, &ASK).await {
            claim(answer.as_ref().is_ok_and(|answer| answer.trim() == "f"), || {
                format!("{primary} can't be asked: {answer:?}")
            })?;
        }
        let failover =
            nodes::while_cut(&node, async || promote_another(&cluster, &primary, &node, &container).await).await?;
        let ledger = writer.wait_progress(50).await?;
        report_gap("primary's node cut off", &ledger, Some(&failover));
        cluster.wait_ready(3).await?;
        let source = source_of(&cluster, &primary).await?;
        println!("{primary} rejoined by {}: {}", source.source, source.reason);
        claim(["rewind", "instance", "backup"].contains(&source.source.as_str()), || {
            format!("{primary} is said to be made by {source:?}")
        })?;
        check_loss(&writer, &failover).await?;
        check_same_rows(&cluster, &writer).await
    })
    .await
}

async fn promote_another(cluster: &Cluster, primary: &str, node: &str, container: &str) -> Result<LastFailover> {
    let begun = Instant::now();
    let before = cluster.status().await?;
    let failover = wait_failover(cluster, &before).await?;
    let took = begun.elapsed();
    // The old primary is asked at once: by now it must have been stopped for good.
    match nodes::exec_on_node(node, container, &ASK).await {
        Some(Ok(answer)) => {
            let answer = answer.trim();
            return Err(format!("{primary} still serves while {} is primary: in recovery {answer}", failover.to).into());
        }
        Some(Err(error)) => println!("{primary} is stopped while {} is primary: {error}", failover.to),
        None => println!("the old primary can't be asked on this Kubernetes"),
    }
    check_record(&failover)?;
    let timings = Timings::default();
    // The Lease may have been renewed as late as the cut itself, or as early as one renewal before it.
    let earliest = std::time::Duration::from_millis(timings.take_over_ms - timings.renew_ms);
    claim(took >= earliest, || {
        format!("{} was promoted {} ms after the cut, before the Lease ran out", failover.to, took.as_millis())
    })?;
    Ok(failover)
}

async fn find_container(cluster: &Cluster, pod: &str) -> Result<String> {
    let pods = cluster.pods().await?;
    let found = pods.into_iter().find(|found| found.metadata.name.as_deref() == Some(pod)).and_then(|pod| pod.status);
    let statuses = found.and_then(|status| status.container_statuses).unwrap_or_default();
    let id = statuses
        .into_iter()
        .find(|container| container.name == "postgres")
        .and_then(|container| container.container_id);
    id.ok_or_else(|| format!("{pod} has no container postgres").into())
}

async fn check_loss(writer: &WriterPod, failover: &LastFailover) -> Result<()> {
    let verified = writer.verify().await?;
    let reported = u64::try_from(failover.possible_loss_bytes).unwrap_or_default();
    println!(
        "{} of {} acknowledged rows lost; reported: up to {reported} bytes of WAL",
        verified.lost, verified.acknowledged
    );
    claim(verified.phantom == 0, || format!("{} rows were never sent", verified.phantom))?;
    claim(verified.lost > 0 && reported > 0, || {
        format!(
            "{} rows lost and {reported} bytes reported, although both replicas were cut from the WAL",
            verified.lost
        )
    })?;
    let bound = reported / LEAST_WAL_PER_ROW;
    claim(verified.lost <= bound, || {
        format!("{} rows lost, but {reported} reported bytes are {bound} rows at most", verified.lost)
    })
}

/// All instances have the same rows once nobody writes.
async fn check_same_rows(cluster: &Cluster, writer: &WriterPod) -> Result<()> {
    writer.set_paused(true).await?;
    let count = "SELECT count(*) || ' ' || coalesce(sum(id), 0) FROM ledger";
    until("all instances to have the same rows", pgherd_e2e::cluster::PATIENCE, async || {
        let mut seen = Vec::new();
        for pod in ["c-0", "c-1", "c-2"] {
            seen.push(psql(&cluster.namespace, pod, "app", count).await?);
        }
        Ok(if seen.iter().all(|rows| *rows == seen[0]) { Look::Done(()) } else { Look::NotYet(format!("{seen:?}")) })
    })
    .await
}

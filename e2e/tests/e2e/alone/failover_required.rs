//! Mode `Required`: whatever happens to the primary, no acknowledged row is lost.

use pgherd_crds::PostgresClusterStatus;
use pgherd_e2e::{
    Result,
    cluster::Cluster,
    kubectl::{apply, kubectl},
    nodes,
    writer::WriterPod,
};

use crate::{
    alone_in_namespace,
    checks::claim,
    failover::{LONGEST_GAP_MS, check_nothing_lost, check_record, kill_postmaster_of, report_gap, wait_failover},
    manifests,
};

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn in_mode_required_nothing_is_lost_when_the_primary_is_cut_off_deleted_or_killed() -> Result<()> {
    alone_in_namespace("e2e-required", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 3, manifests::REQUIRED)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        let status = cluster.wait_ready(3).await?;
        let primary = status.primary.clone().ok_or("no primary")?;
        // The cut comes first: it is now that the writer surely is on another node than the primary.
        let writer = WriterPod::start(client, namespace, "c", &cluster.node_of(&primary).await?).await?;
        cut_off(&cluster, &writer).await?;
        delete_pod(&cluster, &writer).await?;
        kill_postmaster(&cluster, &writer).await
    })
    .await
}

async fn begin(cluster: &Cluster, writer: &WriterPod) -> Result<(PostgresClusterStatus, String)> {
    writer.wait_progress(50).await?;
    writer.reset_gap().await?;
    let before = cluster.status().await?;
    let primary = before.primary.clone().ok_or("no primary")?;
    Ok((before, primary))
}

async fn finish(cluster: &Cluster, writer: &WriterPod, old_primary: &str) -> Result<()> {
    let status = cluster.wait_ready(3).await?;
    let member =
        status.members.iter().find(|member| member.pod == old_primary).ok_or("the old primary is not in status")?;
    let source = member.source.clone().unwrap_or_default();
    println!("{old_primary} is a {} ({}: {})", member.role, source.source, source.reason);
    writer.wait_progress(50).await?;
    check_nothing_lost(writer).await
}

async fn cut_off(cluster: &Cluster, writer: &WriterPod) -> Result<()> {
    let (before, primary) = begin(cluster, writer).await?;
    nodes::while_cut(&cluster.node_of(&primary).await?, async || {
        let failover = wait_failover(cluster, &before).await?;
        let ledger = writer.wait_progress(100).await?;
        report_gap("primary's node cut off", &ledger, Some(&failover));
        check_record(&failover)?;
        claim(failover.from == primary, || format!("the record says that {} was given up", failover.from))?;
        claim(failover.possible_loss_bytes == 0, || format!("possibleLossBytes is {}", failover.possible_loss_bytes))?;
        claim(ledger.longest_gap_ms < LONGEST_GAP_MS, || format!("{} ms without a write", ledger.longest_gap_ms))?;
        check_nothing_lost(writer).await
    })
    .await?;
    finish(cluster, writer, &primary).await?;
    let role =
        cluster.status().await?.members.into_iter().find(|member| member.pod == primary).map(|member| member.role);
    claim(role.as_deref() == Some("replica"), || format!("the old primary {primary} came back as {role:?}"))
}

async fn delete_pod(cluster: &Cluster, writer: &WriterPod) -> Result<()> {
    let (before, primary) = begin(cluster, writer).await?;
    kubectl(&cluster.namespace, &["delete", "pod", &primary, "--wait=false"]).await?;
    let failover = wait_failover(cluster, &before).await?;
    let ledger = writer.wait_progress(50).await?;
    report_gap("primary's pod deleted", &ledger, Some(&failover));
    check_record(&failover)?;
    claim(ledger.longest_gap_ms < LONGEST_GAP_MS, || format!("{} ms without a write", ledger.longest_gap_ms))?;
    finish(cluster, writer, &primary).await
}

async fn kill_postmaster(cluster: &Cluster, writer: &WriterPod) -> Result<()> {
    let (_, primary) = begin(cluster, writer).await?;
    kill_postmaster_of(cluster, &primary).await?;
    let ledger = writer.wait_progress(50).await?;
    report_gap("postmaster killed", &ledger, None);
    claim(ledger.longest_gap_ms < LONGEST_GAP_MS, || format!("{} ms without a write", ledger.longest_gap_ms))?;
    finish(cluster, writer, &primary).await
}

//! The part of the demo that people come for: a lagging replica, a primary that is cut off, and its return.

use std::time::Duration;

use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{kubectl, script},
    postgres::{position, stop_receiving},
    wait::{Look, until},
    writer::WriterPod,
};

use crate::{
    report::{Candidate, FailoverFigures},
    steps::NAMESPACE,
};

/// How far behind a replica must be to count as lagging, in bytes of WAL.
const LAG_BYTES: u64 = 64 * 1024;

/// What the cut showed.
pub(crate) struct Cut {
    pub(crate) node: String,
    pub(crate) old_primary: String,
    pub(crate) figures: FailoverFigures,
}

pub(crate) async fn make_lag(shop: &Cluster, writer: &WriterPod) -> Result<String> {
    let primary = shop.primary().await?;
    let away = shop.node_of(&primary).await?;
    let status = shop.status().await?;
    // The one with the best name among equals would win a tie: choose it, so that only its lag can keep it out.
    let lagging = status
        .members
        .iter()
        .filter(|member| member.pod != primary && member.node.as_deref() != Some(&away))
        .map(|member| member.pod.clone())
        .min()
        .ok_or("there is no replica on another node")?;
    stop_receiving(NAMESPACE, &lagging).await?;
    writer.wait_progress(100).await?;
    let behind = until("the replica to fall behind", PATIENCE, async || {
        let behind = position(NAMESPACE, &primary).await?.bytes_since(position(NAMESPACE, &lagging).await?);
        Ok(if behind > LAG_BYTES { Look::Done(behind) } else { Look::NotYet(format!("{behind} bytes behind")) })
    })
    .await?;
    println!("   {lagging} receives nothing any more and is {} KiB behind {primary}", behind / 1024);
    Ok(lagging)
}

pub(crate) async fn cut(shop: &Cluster, writer: &WriterPod, lagging: &str) -> Result<Cut> {
    let before = shop.status().await?;
    let old_primary = before.primary.clone().ok_or("no primary")?;
    let node = shop.node_of(&old_primary).await?;
    writer.wait_progress(20).await?;
    writer.reset_gap().await?;
    if script("node.sh", &["cut", &node]).await.is_ok() {
        println!("   node {node} of the primary {old_primary} is cut off from everything");
    } else {
        println!(
            "   this Kubernetes is not the demo's own: the primary's pod is force-deleted instead of cutting its node"
        );
        kubectl(NAMESPACE, &["delete", "pod", &old_primary, "--force", "--grace-period=0"]).await?;
    }
    let failed_over = until("the failover", PATIENCE, async || {
        let status = shop.status().await?;
        let done = status
            .last_failover
            .clone()
            .filter(|_| status.term > before.term && status.primary.as_ref() != Some(&old_primary));
        Ok(done.map_or_else(|| Look::NotYet(pgherd_e2e::cluster::describe(&status)), Look::Done))
    })
    .await?;
    let ledger = writer.wait_progress(100).await?;
    println!("   {} -> {} because {}", failed_over.from, failed_over.to, failed_over.reason);
    for candidate in &failed_over.candidates {
        println!(
            "   candidate {:8} at {:12} {}",
            candidate.pod,
            candidate.lsn.clone().unwrap_or_default(),
            candidate.why
        );
    }
    println!(
        "   detect {} ms, seal {} ms, promote {} ms, route {} ms; longest time without a write {} ms",
        failed_over.detect_ms, failed_over.seal_ms, failed_over.promote_ms, failed_over.route_ms, ledger.longest_gap_ms
    );
    if failed_over.to == lagging {
        return Err(format!("the lagging replica {lagging} was promoted").into());
    }
    let candidates = failed_over.candidates.into_iter();
    let figures = FailoverFigures {
        gap_ms: ledger.longest_gap_ms,
        promoted: failed_over.to,
        candidates: candidates.map(|c| Candidate { pod: c.pod, lsn: c.lsn.unwrap_or_default(), why: c.why }).collect(),
    };
    Ok(Cut { node, old_primary, figures })
}

pub(crate) async fn heal(shop: &Cluster, node: &str, old_primary: &str) -> Result<()> {
    // Only the demo's own Kubernetes had its node cut; elsewhere there is nothing to heal.
    if script("node.sh", &["heal", node]).await.is_ok() {
        println!("   node {node} is back");
    }
    let status = tokio::time::timeout(Duration::from_secs(300), shop.wait_ready(4)).await??;
    let member =
        status.members.iter().find(|member| member.pod == old_primary).ok_or("the old primary is not in status")?;
    let source = member.source.clone().map(|source| source.reason).unwrap_or_default();
    println!("   {old_primary} is a {} again: {source}", member.role);
    if member.role == "replica" { Ok(()) } else { Err(format!("{old_primary} is {}", member.role).into()) }
}

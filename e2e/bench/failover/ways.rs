//! The ways in which a primary goes.

use pgherd_crds::{PostgresClusterStatus, v1alpha1::postgres_cluster::LastFailover};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, describe},
    containers::{self, Kind},
    kubectl::kubectl,
    nodes, operators,
    wait::{Look, until},
    writer::WriterPod,
};
use std::time::Duration;

/// How long a version that knows nothing of switchovers is given to show that it does.
const ACTED_WITHIN: Duration = Duration::from_secs(20);

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// kill -9 of the postmaster.
    PostmasterKilled,
    /// `kubectl delete pod`, default grace.
    PodDeleted,
    /// The annotation.
    Switchover,
    /// The primary's node loses its network; the operator leads elsewhere.
    NodeCut,
    /// The same with the leading operator on that node.
    NodeCutWithLeader,
}

impl Way {
    pub(crate) const ALL: [Self; 5] =
        [Self::PostmasterKilled, Self::PodDeleted, Self::Switchover, Self::NodeCut, Self::NodeCutWithLeader];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostmasterKilled => "postmaster-killed",
            Self::PodDeleted => "pod-deleted",
            Self::Switchover => "switchover",
            Self::NodeCut => "node-cut",
            Self::NodeCutWithLeader => "node-cut-with-leader",
        }
    }

    /// The goal for the 95th percentile, in milliseconds.
    pub(crate) fn goal_p95_ms(self) -> u64 {
        match self {
            Self::PostmasterKilled | Self::PodDeleted => 3_000,
            Self::Switchover => 1_000,
            Self::NodeCut | Self::NodeCutWithLeader => 10_000,
        }
    }

    /// CloudNativePG 1.30 with its defaults (asynchronous, 3 instances) on a 2-core machine with the same kind of local
    /// Kubernetes 1.37, a client inserting each 10 ms; measured by this project.
    pub(crate) fn peer(self) -> &'static str {
        match self {
            Self::PostmasterKilled => "1.1-11.2 s, median 4",
            Self::PodDeleted => "3.0 s; 185 s with a session left open",
            Self::Switchover => "7.3 s",
            Self::NodeCut | Self::NodeCutWithLeader => "102-107 s, and 19,400 rows lost",
        }
    }

    pub(crate) async fn prepare(self, node: &str) -> Result<()> {
        match self {
            Self::NodeCut => operators::lead_elsewhere(node).await,
            Self::NodeCutWithLeader => operators::lead_on(node).await,
            _ => Ok(()),
        }
    }

    /// Makes it happen and waits until writes go on. The record of the failover, if there was one.
    pub(crate) async fn happen(
        self,
        cluster: &Cluster,
        before: &PostgresClusterStatus,
        primary: &str,
        node: &str,
        writer: &WriterPod,
    ) -> Result<Option<LastFailover>> {
        let namespace = &cluster.namespace;
        match self {
            Self::PostmasterKilled => {
                containers::of_pod(namespace, primary)?.signal("KILL", &[Kind::Postmaster]).await?;
                writer.wait_progress(100).await?;
                let status = cluster.wait_ready(3).await?;
                Ok(status.last_failover.filter(|failover| Some(failover.term) > before.term))
            }
            Self::PodDeleted => {
                kubectl(namespace, &["delete", "pod", primary, "--wait=false"]).await?;
                wait_failover(cluster, before, PATIENCE).await.map(Some)
            }
            Self::Switchover => {
                let ask = ["annotate", "postgrescluster", &cluster.name, "pgherd.dev/switchover=any", "--overwrite"];
                kubectl(namespace, &ask).await?;
                let moved = wait_failover(cluster, before, ACTED_WITHIN).await;
                moved.map(Some).map_err(|_| "skipped: the operator does not act on pgherd.dev/switchover".into())
            }
            Self::NodeCut | Self::NodeCutWithLeader => {
                nodes::while_cut(node, async || {
                    let failover = wait_failover(cluster, before, PATIENCE).await?;
                    writer.wait_progress(100).await?;
                    Ok(Some(failover))
                })
                .await
            }
        }
    }
}

async fn wait_failover(cluster: &Cluster, before: &PostgresClusterStatus, limit: Duration) -> Result<LastFailover> {
    until("the failover", limit, async || {
        let status = cluster.status().await?;
        let recorded = status.last_failover.clone().filter(|failover| Some(failover.term) > before.term);
        Ok(recorded.map_or_else(|| Look::NotYet(describe(&status)), Look::Done))
    })
    .await
}

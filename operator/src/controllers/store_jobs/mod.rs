//! Jobs that work on a cluster's part of the store and talk to nobody else: retention, deletion, verification. They have no
//! account in Kubernetes: how they ended is read from their pod's termination message.

pub mod build;
pub mod observe;
pub mod trial;

/// Value of the label `app.kubernetes.io/name` on Jobs of retention.
pub const RETENTION_APP: &str = "pgherd-retention";
/// The same on Jobs that delete one backup's data.
pub const DELETION_APP: &str = "pgherd-deletion";
/// The same on Jobs of verification.
pub const VERIFICATION_APP: &str = "pgherd-verification";

/// Why a Job could not be made or looked at.
#[derive(Debug, thiserror::Error)]
pub enum StoreJobError {
    /// The Job's configuration could not be rendered.
    #[error("failed to render the configuration of the Job {name}")]
    RenderConfig {
        /// The Job.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The Job could not be created.
    #[error("failed to create the Job {name}")]
    Create {
        /// The Job.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The pods of a Job could not be listed.
    #[error("failed to list the pods of the Job {name}")]
    ListPods {
        /// The Job.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

impl StoreJobError {
    /// The stage that failed, for metrics.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match self {
            Self::RenderConfig { .. } => "build",
            Self::Create { .. } => "apply",
            Self::ListPods { .. } => "observe",
        }
    }

    /// The namespace is being deleted: no Job can be made in it any more.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        let Self::Create { source: kube::Error::Api(status), .. } = self else { return false };
        status.is_forbidden() && status.message.contains("being terminated")
    }
}

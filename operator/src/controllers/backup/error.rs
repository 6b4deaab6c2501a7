//! Errors of the Backup controller. What a user can do something about is a condition, not an error.

use crate::controllers::store_jobs::StoreJobError;

/// A step that failed; the reconciliation is repeated.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The Backup lacks what the API server always gives: a namespace or a UID.
    #[error("the Backup has no {0}")]
    Incomplete(&'static str),
    /// Other Backups of the cluster could not be listed.
    #[error("failed to list Backups")]
    ListBackups(#[source] kube::Error),
    /// The Jobs of the Backup could not be listed.
    #[error("failed to list Jobs")]
    ListJobs(#[source] kube::Error),
    /// The pods of a Job could not be listed.
    #[error("failed to list the pods of the Job {job}")]
    ListPods {
        /// The Job.
        job: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A Secret's metadata or the operator's identity could not be read.
    #[error("failed to read the Secret {name}")]
    ReadSecret {
        /// The Secret.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The Job's account or its rights could not be applied.
    #[error("failed to apply {kind} {name}")]
    ApplyAccount {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// An object of the account's name belongs to somebody else.
    #[error("{kind} {name} is not managed by pgherd for this cluster; delete or rename it")]
    ForeignObject {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
    },
    /// The Job could not be created.
    #[error("failed to create the Job {name}")]
    CreateJob {
        /// The Job.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The Job's configuration could not be rendered.
    #[error("failed to render the Job's configuration")]
    RenderConfig(#[source] serde_json::Error),
    /// A Job that deletes the backup's data.
    #[error(transparent)]
    Job(#[from] StoreJobError),
    /// The status could not be patched; a conflict means that the Backup has changed since it was read.
    #[error("failed to patch the status of the Backup")]
    PatchStatus(#[source] kube::Error),
}

impl BackupError {
    /// The stage that failed, for metrics.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Incomplete(_)
            | Self::ListBackups(_)
            | Self::ListJobs(_)
            | Self::ListPods { .. }
            | Self::ReadSecret { .. } => "observe",
            Self::RenderConfig(_) => "build",
            Self::ApplyAccount { .. } | Self::ForeignObject { .. } | Self::CreateJob { .. } => "apply",
            Self::Job(error) => error.stage(),
            Self::PatchStatus(_) => "status",
        }
    }
}

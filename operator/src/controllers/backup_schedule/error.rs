//! Errors of the BackupSchedule controller. What a user can do something about is a condition, not an error.

use crate::controllers::{backup::error::BackupError, store_jobs::StoreJobError};

/// A step that failed; the reconciliation is repeated.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleControllerError {
    /// The BackupSchedule lacks what the API server always gives.
    #[error("the BackupSchedule has no {0}")]
    Incomplete(&'static str),
    /// The Backup of a run could not be created.
    #[error("failed to create the Backup {name}")]
    CreateBackup {
        /// The Backup.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// An old Backup could not be deleted.
    #[error("failed to delete the Backup {name}")]
    DeleteBackup {
        /// The Backup.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// A Backup's status could not be told what became of its data.
    #[error("failed to write into the status of the Backup {name} what became of its data")]
    MarkBackup {
        /// The Backup.
        name: String,
        /// Why.
        #[source]
        source: Box<BackupError>,
    },
    /// A Job of retention or verification.
    #[error(transparent)]
    Job(#[from] StoreJobError),
    /// The status could not be patched.
    #[error("failed to patch the status of the BackupSchedule")]
    PatchStatus(#[source] kube::Error),
}

impl ScheduleControllerError {
    /// The stage that failed, for metrics.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Incomplete(_) => "observe",
            Self::CreateBackup { .. } | Self::DeleteBackup { .. } => "apply",
            Self::Job(error) => error.stage(),
            Self::PatchStatus(_) | Self::MarkBackup { .. } => "status",
        }
    }
}

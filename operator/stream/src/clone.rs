//! A copy of a running instance straight into a data directory, verified by the manifest.

use std::path::Path;

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{base_backup::BaseBackupError, replication::{ConnectOptions, ReplicationError}, restore::{RestoreError, RestoreProgress}};

/// A finished copy.
#[derive(Clone, Debug, PartialEq)]
pub struct CloneOutcome {
    /// The system identifier of the source.
    pub system_id: String,
    /// WAL is needed from here.
    pub start_lsn: Lsn,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Bytes written into files.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Why a copy failed. The marker stays in the target.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// Connecting to the instance, or one of its answers.
    #[error("talking to the instance")]
    Replication(#[from] ReplicationError),
    /// The stream failed.
    #[error("streaming from the instance")]
    BaseBackup(#[from] BaseBackupError),
    /// Writing or verifying failed.
    #[error("writing the data directory")]
    Write(#[from] RestoreError),
    /// It was cancelled.
    #[error("the copy was cancelled")]
    Cancelled,
}

/// Copies an instance into an empty or absent directory.
///
/// # Errors
/// [`CloneError`].
pub async fn clone_from_instance(
    _connect: ConnectOptions,
    _target: &Path,
    _progress: watch::Sender<RestoreProgress>,
    _cancel: CancellationToken,
) -> Result<CloneOutcome, CloneError> {
    todo!()
}

//! A backup from the object store into a data directory, verified while it is written.

use std::path::{Path, PathBuf};

use pgherd_core::backup::{BackupLocation, BackupRecord};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{ObjectStore, StoreError};

/// A file in the target while it is not yet complete.
pub const INCOMPLETE_MARKER: &str = ".pgherd-incomplete";

/// How far a restore or a clone is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Bytes written.
    pub bytes_done: u64,
    /// All bytes, if known.
    pub bytes_total: Option<u64>,
}

/// A finished restore.
#[derive(Clone, Debug)]
pub struct RestoreOutcome {
    /// What was restored.
    pub record: BackupRecord,
    /// Files written.
    pub files: u64,
    /// Bytes written into files.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Why a restore failed. The marker stays in the target.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store failed.
    #[error("reading from the object store")]
    Store(#[from] StoreError),
    /// There is something in the target directory.
    #[error("{} is not empty{}", path.display(), if *incomplete { ": an earlier restore did not finish" } else { "" })]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
        /// It carries the marker of an unfinished restore or clone.
        incomplete: bool,
    },
    /// It was cancelled.
    #[error("the restore was cancelled")]
    Cancelled,
}

/// Restores a resolved backup (see [`crate::catalogue::resolve`]) into an empty or absent directory.
///
/// # Errors
/// [`RestoreError`].
pub async fn restore_backup(
    _store: &ObjectStore,
    _location: &BackupLocation,
    _target: &Path,
    _progress: watch::Sender<RestoreProgress>,
    _cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    todo!()
}

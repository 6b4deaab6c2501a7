//! A backup from a running PostgreSQL to the object store. Nothing touches a disk; `backup.json` is written last.

use pgherd_core::{backup::{BackupRecord, ClusterLocation}, lsn::Lsn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{base_backup::BaseBackupError, replication::{ConnectOptions, ReplicationError}, store::StoreError};

/// What to back up, where to, and with how much.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The instance to copy from.
    pub connect: ConnectOptions,
    /// Where to. An empty `system_id` is filled in from the instance; another one is an error.
    pub location: ClusterLocation,
    /// zstd level, 1 by default.
    pub level: i32,
    /// Frames compressed at the same time.
    pub workers: usize,
    /// Size of an uploaded part in bytes; at least 5 MiB.
    pub part_bytes: usize,
    /// Parts uploaded at the same time.
    pub concurrency: usize,
    /// Kilobytes per second that the server sends at most.
    pub max_rate: Option<u32>,
    /// An immediate checkpoint instead of a spread one.
    pub fast_checkpoint: bool,
}

impl BackupOptions {
    /// The defaults: level 1, 2 workers, 3 parts of 8 MiB, no limit, an immediate checkpoint.
    #[must_use]
    pub fn new(connect: ConnectOptions, location: ClusterLocation) -> Self {
        Self { connect, location, level: 1, workers: 2, part_bytes: 8 << 20, concurrency: 3, max_rate: None, fast_checkpoint: true }
    }
}

/// What a backup is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupPhase {
    /// Connecting to the instance and to the store.
    #[default]
    Connecting,
    /// Waiting for the checkpoint.
    Checkpoint,
    /// Data flows.
    Streaming,
    /// Checking the manifest and writing what makes the backup visible.
    Finishing,
    /// Done.
    Done,
}

/// How far a backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupProgress {
    /// Bytes received from PostgreSQL.
    pub bytes_done: u64,
    /// The server's estimate of all bytes, without WAL; known once data flows.
    pub bytes_total: Option<u64>,
    /// Bytes stored, compressed.
    pub stored_bytes: u64,
    /// What it is doing.
    pub phase: BackupPhase,
    /// The id, once it is known.
    pub backup_id: Option<String>,
    /// The start position, once it is known.
    pub start_lsn: Option<Lsn>,
}

/// A finished backup.
#[derive(Clone, Debug)]
pub struct BackupOutcome {
    /// What `backup.json` says.
    pub record: BackupRecord,
    /// Where it lies, with the system id filled in.
    pub location: ClusterLocation,
    /// Peak resident memory of this process in bytes, if the kernel tells.
    pub peak_rss_bytes: Option<u64>,
    /// Bytes that frames and parts hold at most by the formula in the module's documentation.
    pub bounded_bytes: u64,
    /// Seconds from the first to the last byte of data.
    pub seconds: f64,
}

/// Why a backup failed. Nothing of it is visible in the store.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Connecting to the instance, or one of its answers.
    #[error("talking to the instance")]
    Replication(#[from] ReplicationError),
    /// The stream failed; see [`BaseBackupError::CorruptSource`] for corrupt pages.
    #[error("streaming from the instance")]
    BaseBackup(#[from] BaseBackupError),
    /// The store failed.
    #[error("writing to the object store")]
    Store(#[from] StoreError),
    /// The instance belongs to another database system than the location says.
    #[error("the instance has the system identifier {found}, the location says {expected}")]
    WrongSystem {
        /// What the location says.
        expected: String,
        /// What the instance says.
        found: String,
    },
    /// It was cancelled.
    #[error("the backup was cancelled")]
    Cancelled,
}

/// Runs a backup to its end.
///
/// # Errors
/// [`BackupError`]. After any error all uploads of this backup are aborted and its objects deleted.
pub async fn run_backup(
    _options: BackupOptions,
    _progress: watch::Sender<BackupProgress>,
    _cancel: CancellationToken,
) -> Result<BackupOutcome, BackupError> {
    todo!()
}

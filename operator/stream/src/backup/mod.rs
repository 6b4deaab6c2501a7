//! A backup from a running PostgreSQL to the object store. Nothing touches a disk; `backup.json` is written last.
//!
//! Memory is bounded, whatever the size of the database and the speed of the store:
//!
//! ```text
//!   (workers + 2) x (1 MiB + compressed frame, at most 1 MiB + 4 KiB)           frames, see crate::frames
//! + (concurrency + 1) x part_bytes                                              parts, see crate::store::PartBuffers
//! + (workers + 2) x context of zstd at the highest level that may be used       see crate::frames::context
//! + about 40 bytes per file, and 8 per frame (index and manifest)               see crate::spool
//! + about 20 MiB (code, TLS, HTTP, read-ahead)
//! + 64 KiB where the backup is encrypted
//! + (readers + 3) x 256 KiB where local files are read, see crate::local
//! ```
//! For an incremental backup, before data flows, the parent's manifest (about 140 bytes per file).
//!
//! With the defaults (2 workers, 3 parts of 5 MiB in flight) frames and parts take at most 8 + 20 MiB, and less for data that
//! compresses: an output buffer is touched only as far as its frame is long. All queues wait; a slow store becomes TCP
//! backpressure and the server waits.

mod begin;
mod finish;
mod marker;
mod object;
mod parent;
mod run;
mod source;
mod stream;
mod sweep;
mod upload;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    compression::{LevelBounds, LevelsUsed},
    lsn::Lsn,
    timeline::TimelineId,
};

pub(crate) use finish::{INDEX_NAME, MANIFEST_NAME, render_data_path, render_stored_name};
pub(crate) use marker::{MARKER_NAME, MAX_MARKER_BYTES, Marker};
pub use parent::{BackupKind, IncrementalOptions};
pub use run::{observe_peak_rss, run_backup};
pub(crate) use sweep::remove_rest;
pub use sweep::{SILENT_AGE, SweepScope, sweep_abandoned};
pub(crate) use upload::render_object_name;

use crate::{
    age::AgeError,
    base_backup::BaseBackupError,
    encryption::KeyError,
    frames::FrameError,
    index::IndexError,
    local::{LocalError, LocalOptions},
    manifest::ManifestError,
    replication::{ConnectOptions, ReplicationError},
    store::{LONG_PATIENCE, StoreError},
    tar::TarError,
};

/// On whose behalf a backup runs. What an earlier attempt of the same owner left is removed at once: whoever starts attempts
/// starts one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupOwner {
    /// The UID of the Backup.
    pub id: String,
    /// From 1.
    pub attempt: u32,
}

/// Some stores take no more parts of an object.
pub const OBJECT_PARTS: u64 = 1000;

/// What to back up, where to, and with how much.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The instance to copy from.
    pub connect: ConnectOptions,
    /// Where to. An empty `system_id` is filled in from the instance; another one is an error.
    pub location: ClusterLocation,
    /// Levels of zstd, within which each frame gets its own.
    pub levels: LevelBounds,
    /// Frames compressed at the same time.
    pub workers: usize,
    /// Size of an uploaded part in bytes; at least 5 MiB.
    pub part_bytes: usize,
    /// Parts of an object at most, at least 1: what follows goes into the next object.
    pub object_parts: u64,
    /// Parts uploaded at the same time.
    pub concurrency: usize,
    /// Kilobytes per second that are read at most.
    pub max_rate: Option<u32>,
    /// An immediate checkpoint instead of a spread one.
    pub fast_checkpoint: bool,
    /// On whose behalf; `None` for a backup by hand.
    pub owner: Option<BackupOwner>,
    /// An incremental backup where that is possible; `None` for a full one.
    pub incremental: Option<IncrementalOptions>,
    /// The files of the data directory are read here, instead of having the server send them; `None` has it send them. An
    /// incremental backup is always sent by the server.
    pub local: Option<LocalOptions>,
    /// For so long each request is repeated that the store fails for a reason that may pass.
    pub patience: Duration,
}

impl BackupOptions {
    /// The defaults: [`LevelBounds::default`], 2 workers, 3 parts of 5 MiB, [`OBJECT_PARTS`] in an object, no limit, an immediate checkpoint,
    /// [`LONG_PATIENCE`].
    #[must_use]
    pub fn new(connect: ConnectOptions, location: ClusterLocation) -> Self {
        Self {
            connect,
            location,
            levels: LevelBounds::default(),
            workers: 2,
            part_bytes: 5 << 20,
            object_parts: OBJECT_PARTS,
            concurrency: 3,
            max_rate: None,
            fast_checkpoint: true,
            owner: None,
            incremental: None,
            local: None,
            patience: LONG_PATIENCE,
        }
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
    /// Bytes received from PostgreSQL, or read.
    pub bytes_done: u64,
    /// The estimate of all bytes, without WAL; known once data flows.
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
    /// What kind it became.
    pub kind: BackupKind,
    /// Where it lies, with the system id filled in.
    pub location: ClusterLocation,
    /// Peak resident memory of this process in bytes, if the kernel tells.
    pub peak_rss_bytes: Option<u64>,
    /// Levels of zstd that were used; none where nothing was compressed.
    pub levels: Option<LevelsUsed>,
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
    /// Reading local files failed; see [`LocalError::CorruptPage`] for corrupt pages.
    #[error("reading the data directory")]
    Local(#[from] LocalError),
    /// The store failed.
    #[error("writing to the object store")]
    Store(#[from] StoreError),
    /// The server sent an archive that is not acceptable.
    #[error("the server's tar archive")]
    Tar(#[from] TarError),
    /// Compression failed.
    #[error("compressing")]
    Frame(#[from] FrameError),
    /// The recipients cannot be used.
    #[error("the keys of the backup")]
    Key(#[from] KeyError),
    /// Encryption failed.
    #[error("encrypting")]
    Age(#[from] AgeError),
    /// What passed does not fit the manifest.
    #[error("checking the backup against its manifest")]
    Manifest(#[from] ManifestError),
    /// The index could not be written.
    #[error("writing the index")]
    Index(#[from] IndexError),
    /// What is told of each file could not be kept.
    #[error("compressing what is told of the files")]
    Spool(#[source] std::io::Error),
    /// The record could not be written.
    #[error("writing the record")]
    Record(#[source] serde_json::Error),
    /// A background task died.
    #[error("a background task died")]
    Task(#[source] tokio::task::JoinError),
    /// The server named an archive in an unknown way.
    #[error("the server sent an archive named \"{0}\"")]
    ArchiveName(String),
    /// The manifest is larger than this many bytes.
    #[error("the manifest is larger than {0} bytes")]
    ManifestTooLarge(usize),
    /// A segment between start and stop is not in the backup.
    #[error("the WAL segment {0} is missing in the backup")]
    MissingWal(String),
    /// The instance was promoted while the backup ran.
    #[error("the backup began on timeline {start} and ended on timeline {stop}")]
    TimelineChanged {
        /// At the start.
        start: TimelineId,
        /// At the end.
        stop: TimelineId,
    },
    /// The instance belongs to another database system than the location says.
    #[error("the instance has the system identifier {found}, the location says {expected}")]
    WrongSystem {
        /// What the location says.
        expected: String,
        /// What the instance says.
        found: String,
    },
    /// The connection that holds the replication slot ended while the data came.
    #[error("the replication slot that keeps the WAL of the backup is lost")]
    SlotLost(#[source] ReplicationError),
    /// Something with this id is in the store already.
    #[error("the object store holds something under the id {0} already")]
    IdTaken(String),
    /// Without its parent an incremental backup restores nothing.
    #[error("the backup {id}, which this one holds the changes since: {problem}")]
    ParentLost {
        /// The parent.
        id: String,
        /// What became of it.
        problem: String,
    },
    /// Another process took this backup for dead and removed what it had stored.
    #[error("another process took this backup for abandoned and removed it")]
    Abandoned,
    /// The stream stopped or was not in order.
    #[error("the stream was broken off")]
    Interrupted,
    /// It was cancelled.
    #[error("the backup was cancelled")]
    Cancelled,
}

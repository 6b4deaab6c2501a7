//! A backup from the object store into a data directory, verified while it is written.
//!
//! Runs of frames are fetched, decoded and written in parallel. Every file is checked against the manifest's CRC32C before
//! `pg_control` is put in place. Memory: [`CONCURRENT_RUNS`] x (about 4 MiB stored + 4 MiB decoded) + about 300 bytes per file.

mod extract;
mod plan;
mod target;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, stream};
use pgherd_core::backup::{BackupLocation, BackupRecord};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::{INDEX_NAME, MANIFEST_NAME},
    catalogue::{CatalogueError, read_record},
    frames::FrameError,
    index::{BackupIndex, IndexError},
    manifest::{Manifest, ManifestError, render_hex},
    store::{ObjectStore, StoreError},
    tar::TarError,
};
use extract::Extraction;
use plan::{FrameRun, RestorePlan, build_plan};
pub use target::INCOMPLETE_MARKER;
pub(crate) use target::Target;

/// Runs of frames that are fetched and written at the same time.
pub const CONCURRENT_RUNS: usize = 4;
/// Left free beside the restored files: PostgreSQL needs room for WAL to start at all.
const SPARE_BYTES: u64 = 64 << 20;

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

/// Why a restore failed. Where writing had begun, the marker stays in the target and `pg_control` is absent.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store failed.
    #[error("reading from the object store")]
    Store(#[from] StoreError),
    /// The backup's record cannot be read.
    #[error("reading the backup's record")]
    Catalogue(#[from] CatalogueError),
    /// The index is unreadable.
    #[error("reading the backup's index")]
    Index(#[from] IndexError),
    /// The manifest is wrong, or does not fit.
    #[error("checking against the manifest")]
    Manifest(#[from] ManifestError),
    /// A path or an archive is not acceptable.
    #[error("the backup's tar archive")]
    Tar(#[from] TarError),
    /// There is something in the target directory.
    #[error("{} is not empty{}", path.display(), if *incomplete { ": an earlier restore did not finish" } else { "" })]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
        /// It carries the marker of an unfinished restore or clone.
        incomplete: bool,
    },
    /// The file system is too small.
    #[error("{needed} bytes are needed, {free} are free")]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The backup has tablespaces, whose places do not exist in an instance.
    #[error("tablespaces are not supported: {}", .0.join(", "))]
    Tablespaces(Vec<String>),
    /// The backup holds a symbolic link.
    #[error("the symbolic link \"{0}\" is not supported")]
    Symlink(String),
    /// A frame is damaged.
    #[error("the frame at byte {offset} of {key} is damaged")]
    Frame {
        /// The object.
        key: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// A file has other bytes than it must have.
    #[error("\"{path}\" has CRC32C {found:08x} instead of {expected:08x}, or another length")]
    Damaged {
        /// The file.
        path: String,
        /// By the manifest.
        expected: u32,
        /// As written.
        found: u32,
    },
    /// Record, index and objects contradict each other.
    #[error("the backup contradicts itself: {0}")]
    Inconsistent(String),
    /// An object that belongs to the backup is missing.
    #[error("the object {0} is missing")]
    MissingObject(String),
    /// A local file.
    #[error("{what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] tokio::task::JoinError),
    /// It was cancelled.
    #[error("the restore was cancelled")]
    Cancelled,
}

/// Restores a resolved backup (see [`crate::catalogue::resolve`]) into an empty or absent directory.
///
/// # Errors
/// [`RestoreError`]. Nothing is written before record, index and manifest were found to agree.
pub async fn restore_backup(
    store: &ObjectStore,
    location: &BackupLocation,
    target: &Path,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RestoreError::Cancelled),
        outcome = restore(store, location, target, &progress) => outcome,
    }
}

async fn restore(
    store: &ObjectStore,
    location: &BackupLocation,
    root: &Path,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<RestoreOutcome, RestoreError> {
    let began = Instant::now();
    let prefix = location.cluster.backup_prefix(&location.backup_id);
    let record = read_record(store, &location.cluster, &location.backup_id)
        .await?
        .ok_or_else(|| RestoreError::MissingObject(format!("{prefix}{}", crate::catalogue::RECORD_NAME)))?;
    let index = get_companion(store, &prefix, INDEX_NAME).await?;
    let manifest = get_companion(store, &prefix, MANIFEST_NAME).await?;
    let (plan, manifest) = {
        let record = record.clone();
        let plan = move || {
            if render_hex(&Sha256::digest(&manifest)) != record.manifest_sha256 {
                return Err(RestoreError::Inconsistent("the manifest is not the one of the record".to_owned()));
            }
            let plan = build_plan(&record, BackupIndex::decode(&index)?, &Manifest::parse(&manifest)?)?;
            Ok((plan, manifest))
        };
        tokio::task::spawn_blocking(plan).await??
    };
    let RestorePlan { directories, files, runs, bytes } = plan;
    progress.send_modify(|progress| progress.bytes_total = Some(record.tar_bytes));
    let root = root.to_owned();
    let prepare = move || {
        let target = Target::prepare(&root)?;
        target.validate_space(bytes + SPARE_BYTES)?;
        directories.iter().try_for_each(|path| target.make_directory(path))?;
        let extraction = Extraction::new(target, files);
        extraction.make_empty_files()?;
        Ok::<_, RestoreError>(Arc::new(extraction))
    };
    let extraction = tokio::task::spawn_blocking(prepare).await??;
    fetch_runs(store, &prefix, runs, &extraction, progress).await?;
    let finish = move || {
        let extraction = Arc::into_inner(extraction)
            .ok_or_else(|| RestoreError::Inconsistent("a writer is still running".to_owned()))?;
        let (target, files) = extraction.verify()?;
        target.write_file(MANIFEST_NAME, &manifest)?;
        target.finish()?;
        Ok::<_, RestoreError>(files)
    };
    let files = tokio::task::spawn_blocking(finish).await??;
    Ok(RestoreOutcome { record, files, bytes, seconds: began.elapsed().as_secs_f64() })
}

async fn get_companion(store: &ObjectStore, prefix: &str, name: &str) -> Result<bytes::Bytes, RestoreError> {
    let key = format!("{prefix}{name}");
    store.get(&key).await?.ok_or(RestoreError::MissingObject(key))
}

async fn fetch_runs(
    store: &ObjectStore,
    prefix: &str,
    runs: Vec<FrameRun>,
    extraction: &Arc<Extraction>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<(), RestoreError> {
    let fetches = stream::iter(runs).map(|run| async move {
        let key = format!("{prefix}base.tar.zst.{:04}", run.object);
        let body = store.get_range(&key, run.offset, run.stored).await.map_err(|error| match error {
            StoreError::NoSuchObject(key) => RestoreError::MissingObject(key),
            error => error.into(),
        })?;
        let extraction = Arc::clone(extraction);
        let written = tokio::task::spawn_blocking(move || extraction.write_run(&key, &run, &body)).await??;
        progress.send_modify(|progress| progress.bytes_done += written);
        Ok::<_, RestoreError>(())
    });
    fetches.buffer_unordered(CONCURRENT_RUNS).try_for_each(|()| async { Ok(()) }).await
}

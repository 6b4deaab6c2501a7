//! A copy of a running instance straight into a data directory, verified by the manifest.
//!
//! The same stream as a backup's, written as it comes; the same proof at the end; `pg_control` is put in place last.

use std::{path::Path, time::Instant};

use bytes::Bytes;
use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    backup::MANIFEST_NAME,
    base_backup::{BaseBackup, BaseBackupError, BaseBackupEvent, BaseBackupOptions, estimate_bytes},
    manifest::Manifest,
    replication::{ConnectOptions, ReplicationClient, ReplicationError},
    restore::{RestoreError, RestoreProgress, TarWriter, Target, Writers},
};

/// Pieces of 32 KiB on their way from the network to the disk.
const QUEUED_PIECES: usize = 64;

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

/// Why a copy failed. Where writing had begun, the marker stays in the target and `pg_control` is absent.
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
    /// The source was promoted while the copy ran.
    #[error("the copy began on timeline {start} and ended on timeline {stop}")]
    TimelineChanged {
        /// At the start.
        start: TimelineId,
        /// At the end.
        stop: TimelineId,
    },
    /// The stream was not in order.
    #[error("the stream was not in order")]
    Order,
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] tokio::task::JoinError),
    /// It was cancelled.
    #[error("the copy was cancelled")]
    Cancelled,
}

/// Copies an instance into an empty or absent directory.
///
/// # Errors
/// [`CloneError`]. Whatever the outcome, nothing writes any more.
pub async fn clone_from_instance(
    connect: ConnectOptions,
    target: &Path,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<CloneOutcome, CloneError> {
    let writers = Writers::default();
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(CloneError::Cancelled),
        outcome = copy(&connect, target, &progress, &writers) => outcome,
    };
    writers.end().await;
    outcome
}

async fn copy(
    connect: &ConnectOptions,
    target: &Path,
    progress: &watch::Sender<RestoreProgress>,
    writers: &Writers,
) -> Result<CloneOutcome, CloneError> {
    let began = Instant::now();
    let mut slot = ReplicationClient::connect(connect).await?;
    let system_id = slot.identify_system().await?.system_id;
    slot.create_physical_slot(&format!("pgherd_clone_{}", Uuid::new_v4().simple()), true, true).await?;
    let client = ReplicationClient::connect(connect).await?;
    // Refused before the source is asked for a checkpoint.
    let (root, writer) = (target.to_owned(), writers.enter());
    let target = tokio::task::spawn_blocking(move || Target::prepare(&root, writer)).await??;
    let options = BaseBackupOptions {
        label: "pgherd copy".to_owned(),
        fast_checkpoint: true,
        max_rate: None,
        manifest: true,
        incremental: false,
    };
    let mut backup = BaseBackup::start(client, &options).await?;
    let BaseBackupEvent::Start { lsn, timeline, tablespaces } = backup.next().await? else {
        return Err(CloneError::Order);
    };
    let places: Vec<String> =
        tablespaces.iter().filter(|t| t.oid.is_some()).map(|tablespace| tablespace.location.clone()).collect();
    if !places.is_empty() {
        return Err(RestoreError::Tablespaces(places).into());
    }
    let estimate = estimate_bytes(&tablespaces);
    target.validate_space(estimate.unwrap_or(0))?;
    progress.send_modify(|progress| progress.bytes_total = estimate);

    let (queue, pieces) = mpsc::channel(QUEUED_PIECES);
    let writer = tokio::task::spawn_blocking(move || TarWriter::new(target).write_all(pieces));
    let streamed = feed(&mut backup, queue, progress).await;
    // The writer's error is the cause when its queue closed early.
    let written = writer.await?;
    let (writer, (manifest, stop_lsn, stop_timeline)) = (written?, streamed?);
    if stop_timeline != timeline {
        return Err(CloneError::TimelineChanged { start: timeline, stop: stop_timeline });
    }
    slot.close().await;
    let bytes = writer.bytes();
    tokio::task::spawn_blocking(move || finish(writer, &manifest, timeline, lsn, stop_lsn)).await??;
    let seconds = began.elapsed().as_secs_f64();
    Ok(CloneOutcome { system_id, start_lsn: lsn, stop_lsn, timeline, bytes, seconds })
}

/// Passes the archive to the writer; returns the manifest and the end.
async fn feed(
    backup: &mut BaseBackup,
    queue: mpsc::Sender<Bytes>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<(Vec<u8>, Lsn, TimelineId), CloneError> {
    let mut manifest = Vec::new();
    loop {
        match backup.next().await? {
            BaseBackupEvent::Start { .. } => return Err(CloneError::Order),
            BaseBackupEvent::Archive { name, .. } if name == "base.tar" => {}
            BaseBackupEvent::Archive { path, .. } => return Err(RestoreError::Tablespaces(vec![path]).into()),
            BaseBackupEvent::Data(data) => {
                let length = data.len() as u64;
                queue.send(data).await.map_err(|_| CloneError::Order)?;
                progress.send_modify(|progress| progress.bytes_done += length);
            }
            BaseBackupEvent::Manifest(data) => manifest.extend_from_slice(&data),
            BaseBackupEvent::Progress(_) => {}
            BaseBackupEvent::End { stop_lsn, timeline } => return Ok((manifest, stop_lsn, timeline)),
        }
    }
}

/// Proves the copy by the manifest and completes the directory.
fn finish(writer: TarWriter, manifest: &[u8], timeline: TimelineId, start: Lsn, stop: Lsn) -> Result<(), RestoreError> {
    let (target, seen) = writer.finish()?;
    let parsed = Manifest::parse(manifest)?;
    parsed.compare(&seen)?;
    parsed.validate_wal(timeline, start, stop)?;
    target.write_file(MANIFEST_NAME, manifest)?;
    target.finish()
}

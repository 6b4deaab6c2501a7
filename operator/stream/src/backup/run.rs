//! The course of a backup: slot first, then the stream, then the proof, then the record; and after a failure nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgherd_core::backup::{BackupRecord, ClusterLocation};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use super::{
    BackupError, BackupOptions, BackupOutcome, BackupPhase, BackupProgress,
    begin::Source,
    finish::{BackupIdentity, build_record, validate_backup, write_companions},
    marker::{Claim, MARKER_NAME, Marker},
    object::ObjectWriter,
    parent::validate_parent,
    source::{ScannedBackup, read_backup},
    stream::Stream,
    sweep::{SILENT_AGE, SweepScope, remove_failed, sweep_abandoned},
    upload::{StoredBackup, Uploader},
};
use crate::{
    catalogue::render_checksum,
    encryption::Keys,
    frames, local,
    replication::ReplicationClient,
    store::{ObjectStore, PartBuffers},
};

/// Removing what a failure left must not take longer than a pod has to stop.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(45);
/// Removing what others left must not hold up a finished backup.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Smallest part that S3 takes.
const MIN_PART_BYTES: usize = 5 << 20;

/// Runs a backup to its end.
///
/// # Errors
/// [`BackupError`]. After any error all uploads of this backup are aborted and its objects deleted, as far as the store
/// answers; what is left is invisible and removed by [`sweep_abandoned`].
pub async fn run_backup(
    options: BackupOptions,
    progress: watch::Sender<BackupProgress>,
    cancel: CancellationToken,
) -> Result<BackupOutcome, BackupError> {
    // As a task: on the thread that hears from the network first, so that no other has to be woken for each message.
    let task = AbortOnDropHandle::new(tokio::spawn(run(options, progress, cancel)));
    task.await.map_err(BackupError::Task)?
}

async fn run(
    options: BackupOptions,
    progress: watch::Sender<BackupProgress>,
    cancel: CancellationToken,
) -> Result<BackupOutcome, BackupError> {
    let progress = Arc::new(progress);
    let keys = Keys::of(&options.location.store)?;
    // Where the identity is at hand, a backup that it does not open is refused. A Job of a cluster has none.
    keys.validate_pair()?;
    let connect = async {
        let store = ObjectStore::connect(&options.location.store).await?;
        store.probe().await?;
        Ok::<_, BackupError>(store)
    };
    let store = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        store = connect => store?,
    };
    let mut source = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        source = Source::begin(&options, &keys, &store, &progress) => source?,
    };
    let prefix = source.location.backup_prefix(&source.identity.id);
    let archives = source.archives.clone();
    // Of its own, so that the backup can end itself without ending its caller.
    let cancel = cancel.child_token();
    // From here on something is lost with it. Not for the removal after a failure, which has its own bound.
    let patient = store.with_long_patience(options.patience, &cancel);
    let run =
        Run { options: &options, keys: &keys, store: &patient, prefix: &prefix, progress: &progress, cancel: &cancel };
    let parent = source.parent.take();
    let result = match &parent {
        None => run.copy(source).await,
        Some(parent) => tokio::select! {
            result = run.copy(source) => result,
            never = parent.lock.renew() => match never {},
        },
    };
    // Only now: as long as the record is not there, nobody else can know that the parent is needed.
    if let Some(parent) = parent {
        parent.lock.release().await;
    }
    if let Err(error) = &result
        && !matches!(error, BackupError::IdTaken(_))
    {
        // Not under `cancel`: this is what a cancelled backup still has to do.
        match tokio::time::timeout(CLEANUP_TIMEOUT, remove_failed(&store, &prefix, &archives)).await {
            Ok(Ok(())) => {}
            Ok(Err(cleanup)) => tracing::warn!(error = %cleanup, "removing a failed backup"),
            Err(_) => tracing::warn!("removing a failed backup took too long"),
        }
    }
    result
}

struct Run<'a> {
    options: &'a BackupOptions,
    keys: &'a Keys,
    store: &'a ObjectStore,
    prefix: &'a str,
    progress: &'a Arc<watch::Sender<BackupProgress>>,
    cancel: &'a CancellationToken,
}

impl Run<'_> {
    async fn copy(&self, source: Source) -> Result<BackupOutcome, BackupError> {
        let Source { mut stream, mut slot, identity, location, archives, kind, parent: _ } = source;
        let marker = Marker {
            id: identity.id.clone(),
            started_at: identity.started_at.parse().unwrap_or(Timestamp::UNIX_EPOCH),
            archives,
            run: Uuid::new_v4().simple().to_string(),
            owner: self.options.owner.clone(),
            deleting: false,
        };
        let claim = Claim::take(self.store, self.prefix, marker).await?;
        let began = Instant::now();
        let own_id = identity.id.clone();
        let work = async {
            let (scanned, (stored, mut objects)) = self.stream_held(&mut stream, &mut slot).await?;
            let seconds = began.elapsed().as_secs_f64();
            let levels = stored.levels.used();
            // Only now is the WAL of no more use.
            slot.close().await;
            self.progress.send_modify(|progress| progress.phase = BackupPhase::Finishing);
            let record = tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(BackupError::Cancelled),
                record = self.prove(identity, scanned, stored, &mut objects) => record,
            };
            objects.abort().await;
            Ok((record?, levels, seconds))
        };
        let done = self.beside_renewal(&claim, &location, &own_id, work).await;
        let (record, levels, seconds) = match done {
            Ok(done) => done,
            Err(error) => {
                claim.abort().await;
                return Err(error);
            }
        };
        if let Err(error) = validate_parent(self.store, &location, record.parent.as_ref()).await {
            claim.abort().await;
            return Err(error);
        }
        // Not to be cancelled: a request on its way could make the backup appear after it was cleaned up.
        claim.commit(&record).await?;
        if let Err(error) = self.store.delete(&format!("{}{MARKER_NAME}", self.prefix)).await {
            tracing::warn!(error = %error, "removing the marker of a finished backup");
        }
        self.progress.send_modify(|progress| {
            progress.phase = BackupPhase::Done;
            progress.stored_bytes = record.stored_bytes;
        });
        Ok(BackupOutcome {
            record,
            kind,
            location,
            peak_rss_bytes: observe_peak_rss(),
            levels,
            bounded_bytes: self.bounded_bytes(),
            seconds,
        })
    }

    fn bounded_bytes(&self) -> u64 {
        let options = self.options;
        let readers = options.local.as_ref().map_or(0, |local| local::bounded_bytes(local.readers));
        let parts = (options.concurrency + 1) * self.part_bytes();
        frames::bounded_bytes(options.workers, options.levels.highest()) + parts as u64 + readers
    }

    fn part_bytes(&self) -> usize {
        self.options.part_bytes.max(MIN_PART_BYTES)
    }

    /// Does the work while the claim is renewed and what dead attempts left is removed.
    async fn beside_renewal<T>(
        &self,
        claim: &Claim<'_>,
        location: &ClusterLocation,
        own_id: &str,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        let work = async { tokio::join!(work, self.sweep(location, own_id)).0 };
        // Whatever became of it: the backup is not ours any more.
        self.unless_lost(work, claim.renew()).await
    }

    /// [`Self::stream`] while the slot is there: without it the server may remove WAL that the backup needs, which would show at its
    /// end alone, and as something else.
    async fn stream_held(
        &self,
        stream: &mut Stream,
        slot: &mut ReplicationClient,
    ) -> Result<(ScannedBackup, (StoredBackup, ObjectWriter)), BackupError> {
        self.unless_lost(self.stream(stream), async { BackupError::SlotLost(slot.watch().await) }).await
    }

    /// Does the work for as long as what it needs is not lost; then it is cancelled, but never dropped: what it has on its way it ends
    /// itself.
    async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T, BackupError>>,
        lost: impl Future<Output = BackupError>,
    ) -> Result<T, BackupError> {
        tokio::pin!(work);
        let lost = tokio::select! {
            biased;
            done = &mut work => return done,
            lost = lost => lost,
        };
        self.cancel.cancel();
        let _ = work.await;
        Err(lost)
    }

    /// Reads, compresses and uploads at the same time.
    async fn stream(&self, stream: &mut Stream) -> Result<(ScannedBackup, (StoredBackup, ObjectWriter)), BackupError> {
        let concurrency = self.options.concurrency.max(1);
        let buffers = PartBuffers::new(concurrency + 1, self.part_bytes());
        let gauge = Box::new(buffers.gauge());
        let (writer, reader) = frames::pipeline(self.options.levels, self.options.workers, gauge)?;
        let stop_upload = CancellationToken::new();
        let objects = ObjectWriter {
            store: self.store.clone(),
            recipients: self.keys.recipients().to_vec(),
            concurrency,
            buffers,
            max_parts: self.options.object_parts.max(1),
            progress: Arc::clone(self.progress),
            open: None,
        };
        let uploader = Uploader {
            objects,
            prefix: self.prefix.to_owned(),
            cancel: stop_upload.clone(),
            archive: None,
            done: StoredBackup::default(),
        };
        let upload = tokio::spawn(uploader.run(reader));
        let scanned = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(BackupError::Cancelled),
            scanned = read_backup(stream, writer, self.progress) => scanned,
        };
        if !matches!(scanned, Ok(_) | Err(BackupError::Frame(_))) {
            stop_upload.cancel();
        }
        // After the last byte was read the upload still runs: a cancel must reach it there too.
        let mut upload = upload;
        let end = tokio::select! {
            biased;
            end = &mut upload => end,
            () = self.cancel.cancelled() => {
                stop_upload.cancel();
                upload.await
            }
        };
        let end = end.map_err(BackupError::Task)?;
        match (scanned, end) {
            (Ok(scanned), Ok(stored)) => Ok((scanned, stored)),
            // When the upload fails first, the reading side only learns that nobody takes its frames.
            (Err(BackupError::Frame(_)) | Ok(_), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
        }
    }

    async fn prove(
        &self,
        identity: BackupIdentity,
        scanned: ScannedBackup,
        stored: StoredBackup,
        objects: &mut ObjectWriter,
    ) -> Result<BackupRecord, BackupError> {
        let (encryption, manifest) = (self.keys.record(), scanned.manifest.clone());
        let check = move || {
            validate_backup(&identity, &scanned)?;
            build_record(identity, scanned, stored.archives, Timestamp::now().to_string(), encryption)
        };
        let (mut record, index) = tokio::task::spawn_blocking(check).await.map_err(BackupError::Task)??;
        record.index_sha256 = Some(write_companions(objects, self.prefix, index, manifest).await?);
        record.checksum = Some(render_checksum(&record).map_err(BackupError::Record)?);
        Ok(record)
    }

    /// What earlier processes left. Its failure is no failure of this backup.
    async fn sweep(&self, location: &ClusterLocation, own_id: &str) {
        let scope = SweepScope { own_id, owner: self.options.owner.as_ref(), silent_age: SILENT_AGE };
        let sweep = tokio::time::timeout(SWEEP_TIMEOUT, sweep_abandoned(self.store, location, &scope));
        let swept = tokio::select! {
            () = self.cancel.cancelled() => return,
            swept = sweep => swept,
        };
        match swept {
            Ok(Ok(removed)) if removed.is_empty() => {}
            Ok(Ok(removed)) => tracing::info!(?removed, "removed what abandoned backups left"),
            Ok(Err(error)) => tracing::warn!(error = %error, "looking for abandoned backups"),
            Err(_) => tracing::warn!("removing what abandoned backups left takes too long"),
        }
    }
}

/// Peak resident memory of this process in bytes.
#[must_use]
pub fn observe_peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_the_peak_of_memory() {
        assert!(observe_peak_rss().is_some_and(|bytes| bytes > 1 << 20));
    }
}

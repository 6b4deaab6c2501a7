//! The course of a backup: slot first, then the stream, then the proof, then the record; and after a failure nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    lsn::Lsn,
    timeline::TimelineId,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    BackupError, BackupOptions, BackupOutcome, BackupPhase, BackupProgress,
    finish::{BackupIdentity, build_record, validate_backup, write_companions},
    marker::{Claim, MARKER_NAME, Marker},
    source::{ScannedBackup, read_backup},
    sweep::{SILENT_AGE, SweepScope, remove_failed, sweep_abandoned},
    upload::{StoredArchive, Uploader},
};
use crate::{
    base_backup::{BaseBackup, BaseBackupEvent, BaseBackupOptions, Tablespace, estimate_bytes},
    catalogue::render_checksum,
    encryption::Keys,
    frames,
    replication::{ReplicationClient, ReplicationError},
    store::ObjectStore,
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
    let progress = Arc::new(progress);
    let keys = Keys::of(&options.location.store)?;
    // Where the identity is at hand, a backup that it does not open is refused. A Job of a cluster has none.
    keys.validate_pair()?;
    let began = async {
        let store = ObjectStore::connect(&options.location.store).await?;
        store.probe().await?;
        let source = Source::begin(&options, &progress).await?;
        Ok::<_, BackupError>((store, source))
    };
    let (store, source) = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        began = began => began?,
    };
    let prefix = source.location.backup_prefix(&source.identity.id);
    let archives = source.archives.clone();
    // Of its own, so that the backup can end itself without ending its caller.
    let cancel = cancel.child_token();
    let run =
        Run { options: &options, keys: &keys, store: &store, prefix: &prefix, progress: &progress, cancel: &cancel };
    let result = run.copy(source).await;
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

/// A stream that is about to send its first byte, and the slot that keeps its WAL.
struct Source {
    backup: BaseBackup,
    slot: ReplicationClient,
    identity: BackupIdentity,
    location: ClusterLocation,
    archives: Vec<String>,
}

impl Source {
    async fn begin(options: &BackupOptions, progress: &watch::Sender<BackupProgress>) -> Result<Self, BackupError> {
        let mut slot = ReplicationClient::connect(&options.connect).await?;
        let system = slot.identify_system().await?;
        let mut location = options.location.clone();
        if location.system_id.is_empty() {
            location.system_id.clone_from(&system.system_id);
        } else if location.system_id != system.system_id {
            return Err(BackupError::WrongSystem { expected: location.system_id, found: system.system_id });
        }
        let server_version = slot.server_version().await?;
        let wal_segment_bytes = slot.wal_segment_bytes().await?;
        // The slot is there before the backup begins and goes with its connection: no WAL can vanish meanwhile.
        let name = format!("pgherd_backup_{}", Uuid::new_v4().simple());
        slot.create_physical_slot(&name, true, true).await?;

        let client = ReplicationClient::connect(&options.connect).await?;
        let wire_options = BaseBackupOptions {
            label: format!("pgherd backup of {}", location.cluster),
            fast_checkpoint: options.fast_checkpoint,
            max_rate: options.max_rate,
            manifest: true,
        };
        progress.send_modify(|progress| progress.phase = BackupPhase::Checkpoint);
        let mut backup = BaseBackup::start(client, &wire_options).await?;
        let BaseBackupEvent::Start { lsn, timeline, tablespaces } = backup.next().await? else {
            return Err(ReplicationError::Protocol("a base backup without a start".to_owned()).into());
        };
        let started = Timestamp::now();
        let identity = BackupIdentity {
            id: render_id(started, timeline, lsn),
            cluster: location.cluster.clone(),
            system_id: system.system_id,
            server_version,
            timeline,
            start_lsn: lsn,
            started_at: started.to_string(),
            wal_segment_bytes,
        };
        let name = |tablespace: &Tablespace| tablespace.oid.map_or_else(|| "base".to_owned(), |oid| oid.to_string());
        let sizes = estimate_bytes(&tablespaces);
        progress.send_modify(|progress| {
            progress.phase = BackupPhase::Streaming;
            progress.bytes_total = sizes;
            progress.backup_id = Some(identity.id.clone());
            progress.start_lsn = Some(lsn);
        });
        Ok(Self { backup, slot, identity, location, archives: tablespaces.iter().map(name).collect() })
    }
}

/// `<UTC yyyymmddThhmmssZ>-<timeline>-<start LSN with a dash>`.
fn render_id(started: Timestamp, timeline: TimelineId, lsn: Lsn) -> String {
    let lsn = lsn.to_string().replace('/', "-");
    format!("{}-{timeline}-{lsn}", started.strftime("%Y%m%dT%H%M%SZ"))
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
        let Source { mut backup, slot, identity, location, archives } = source;
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
            let (scanned, stored) = self.stream(&mut backup).await?;
            let seconds = began.elapsed().as_secs_f64();
            // Only now is the WAL of no more use.
            slot.close().await;
            self.progress.send_modify(|progress| progress.phase = BackupPhase::Finishing);
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(BackupError::Cancelled),
                record = self.prove(identity, scanned, stored) => Ok((record?, seconds)),
            }
        };
        let done = self.beside_renewal(&claim, &location, &own_id, work).await;
        let (record, seconds) = match done {
            Ok(done) => done,
            Err(error) => {
                claim.abort().await;
                return Err(error);
            }
        };
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
            location,
            peak_rss_bytes: observe_peak_rss(),
            bounded_bytes: frames::bounded_bytes(self.options.workers)
                + ((self.options.concurrency + 1) * self.part_bytes()) as u64,
            seconds,
        })
    }

    fn part_bytes(&self) -> usize {
        self.options.part_bytes.max(MIN_PART_BYTES)
    }

    /// Does the work while the claim is renewed and what dead attempts left is removed. The work is never dropped: what it
    /// has on its way it ends itself.
    async fn beside_renewal<T>(
        &self,
        claim: &Claim<'_>,
        location: &ClusterLocation,
        own_id: &str,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        let work = async { tokio::join!(work, self.sweep(location, own_id)).0 };
        tokio::pin!(work);
        let lost = tokio::select! {
            biased;
            done = &mut work => return done,
            lost = claim.renew() => lost,
        };
        self.cancel.cancel();
        // Whatever became of it: the backup is not ours any more.
        let _ = work.await;
        Err(lost)
    }

    /// Reads, compresses and uploads at the same time.
    async fn stream(&self, backup: &mut BaseBackup) -> Result<(ScannedBackup, Vec<StoredArchive>), BackupError> {
        let (writer, reader) = frames::pipeline(self.options.level, self.options.workers)?;
        let stop_upload = CancellationToken::new();
        let uploader = Uploader {
            store: self.store.clone(),
            prefix: self.prefix.to_owned(),
            recipients: self.keys.recipients().to_vec(),
            part_bytes: self.part_bytes(),
            concurrency: self.options.concurrency.max(1),
            progress: Arc::clone(self.progress),
            cancel: stop_upload.clone(),
        };
        let upload = tokio::spawn(uploader.run(reader));
        let scanned = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(BackupError::Cancelled),
            scanned = read_backup(backup, writer, self.progress) => scanned,
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
        stored: Vec<StoredArchive>,
    ) -> Result<BackupRecord, BackupError> {
        let encryption = self.keys.record();
        let check = move || {
            validate_backup(&identity, &scanned)?;
            build_record(identity, scanned, stored, Timestamp::now().to_string(), encryption)
        };
        let (mut record, index, manifest) = tokio::task::spawn_blocking(check).await.map_err(BackupError::Task)??;
        let recipients = self.keys.recipients().to_vec();
        record.index_sha256 = Some(write_companions(self.store, self.prefix, recipients, index, manifest).await?);
        record.checksum = Some(render_checksum(&record).map_err(BackupError::Record)?);
        Ok(record)
    }

    /// What earlier processes left. Its failure is no failure of this backup.
    async fn sweep(&self, location: &ClusterLocation, own_id: &str) {
        let scope =
            SweepScope { own_id, owner: self.options.owner.as_ref(), now: Timestamp::now(), silent_age: SILENT_AGE };
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
    fn an_id_says_when_and_from_where() {
        let started: Timestamp = "2026-11-22T02:03:04.567Z".parse().unwrap();
        assert_eq!(render_id(started, TimelineId(18), Lsn(0x16_B374_D848)), "20261122T020304Z-00000012-16-B374D848");
        assert!(observe_peak_rss().is_some_and(|bytes| bytes > 1 << 20));
    }
}

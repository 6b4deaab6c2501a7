//! A backup from the object store into a data directory, verified while it is written.
//!
//! Runs of frames are fetched, decoded and written in parallel. Every file is checked against the manifest's CRC32C before
//! `pg_control` is put in place. Memory: [`CONCURRENT_RUNS`] x (about 3 MiB stored + 1 MiB decoded), used again and again, + about 300 bytes per file;
//! what is encrypted is decrypted where it lies. For an incremental backup its whole chain is restored and combined.

mod chain;
mod combine;
mod error;
mod extract;
mod hold;
mod lock;
mod plan;
mod scratch;
mod sealed;
mod tar_writer;
mod target;
mod verify;
mod writers;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use pgherd_core::backup::{ArchiveRecord, BackupLocation, BackupRecord};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backup::{INDEX_NAME, MANIFEST_NAME, render_stored_name},
    catalogue::read_record,
    index::BackupIndex,
    manifest::{Manifest, render_hex},
    store::ObjectStore,
};
use chain::{locate, lock_chain, restore_chain};
pub use error::RestoreError;
use extract::Extraction;
pub use hold::BackupHold;
pub(crate) use lock::{LOCK_AGE, RestoreLock, observe_locks};
use plan::{ArchivePlan, RestorePlan, build_plan};
pub use scratch::remove_scratch;
use sealed::{ArchiveSource, BackupKeys};
pub(crate) use tar_writer::TarWriter;
pub use target::INCOMPLETE_MARKER;
pub(crate) use target::Target;
pub use verify::{VerifyOutcome, verify_backup};
pub(crate) use writers::Writers;

/// Runs of frames that are fetched and written at the same time.
pub const CONCURRENT_RUNS: usize = 4;
/// Left free beside the restored files: PostgreSQL needs room for WAL to start at all.
const SPARE_BYTES: u64 = 64 << 20;

/// An index or a manifest of more stored bytes is refused: no backup can have been made with one.
const MAX_COMPANION_BYTES: u64 = 600 << 20;

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

/// Where tablespaces go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TablespacePlaces {
    /// A backup with tablespaces is refused.
    #[default]
    Refuse,
    /// Into the data directory, below `pg_tblspc/<oid>`: PostgreSQL 15 and later take a directory there, with
    /// `allow_in_place_tablespaces`, which is set in `postgresql.auto.conf`.
    InPlace,
    /// To these absolute paths by OID; an OID that is not named is refused.
    At(BTreeMap<String, PathBuf>),
}

/// What a restore needs besides the backup and the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreSettings {
    /// Where tablespaces go.
    pub places: TablespacePlaces,
    /// PostgreSQL's `pg_combinebackup` of the backup's major version; without it an incremental backup is refused.
    pub combine: Option<PathBuf>,
}

/// Restores a resolved full backup without tablespaces (see [`crate::catalogue::resolve`]) into an empty or absent directory.
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
    restore_backup_with(store, location, target, &RestoreSettings::default(), progress, cancel).await
}

/// As [`restore_backup`], of either kind and with tablespaces.
///
/// # Errors
/// [`RestoreError`]. Of a chain, nothing is written before that was found of all members. Whatever the outcome, nothing writes any more.
pub async fn restore_backup_with(
    store: &ObjectStore,
    location: &BackupLocation,
    target: &Path,
    settings: &RestoreSettings,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    let writers = Writers::default();
    let work = |members| restore(store, location, members, target, settings, &progress, &writers);
    let outcome = read_locked(store, location, &cancel, work).await;
    // Whoever is told that it failed may put something else there at once.
    writers.end().await;
    if matches!(outcome, Err(RestoreError::Cancelled)) {
        // The work was dropped where it stood.
        let target = target.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_scratch(&target)).await?;
        if let Err(error) = removed {
            tracing::warn!(error = %error, "removing the scratch directory of a chain");
        }
    }
    outcome
}

/// Has `work` read a backup, with the records of all that it needs, while nobody deletes any of them.
async fn read_locked<T, F: Future<Output = Result<T, RestoreError>>>(
    store: &ObjectStore,
    location: &BackupLocation,
    cancel: &CancellationToken,
    work: impl FnOnce(Vec<BackupRecord>) -> F,
) -> Result<T, RestoreError> {
    let mut locks = Vec::new();
    let members = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RestoreError::Cancelled),
        members = lock_chain(store, location, &mut locks) => members,
    };
    let outcome = match members {
        Err(error) => Err(error),
        Ok(members) => tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RestoreError::Cancelled),
            outcome = work(members) => outcome,
            _ = join_all(locks.iter().map(RestoreLock::renew)) => Err(RestoreError::Cancelled),
        },
    };
    join_all(locks.into_iter().map(RestoreLock::release)).await;
    explain_absence(store, location, outcome).await
}

/// An object that is missing because the whole backup was deleted is told as that.
async fn explain_absence<T>(
    store: &ObjectStore,
    location: &BackupLocation,
    outcome: Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    match outcome {
        Err(RestoreError::MissingObject(key)) => {
            match read_record(store, &location.cluster, &location.backup_id).await {
                Ok(None) => Err(RestoreError::Deleted(location.backup_id.clone())),
                _ => Err(RestoreError::MissingObject(key)),
            }
        }
        other => other,
    }
}

/// What is known of a backup before its data is read.
struct Scene {
    record: BackupRecord,
    plan: RestorePlan,
    manifest: Vec<u8>,
    prefix: String,
    keys: Option<BackupKeys>,
}

/// Reads record, index and manifest, and has them agree.
async fn observe_scene(store: &ObjectStore, location: &BackupLocation) -> Result<Scene, RestoreError> {
    let prefix = location.cluster.backup_prefix(&location.backup_id);
    let record = read_record(store, &location.cluster, &location.backup_id)
        .await?
        .ok_or_else(|| RestoreError::MissingObject(format!("{prefix}{}", crate::catalogue::RECORD_NAME)))?;
    // A missing or wrong identity is told before anything else is asked for.
    let keys = BackupKeys::read(&location.cluster.store, &record)?;
    let index = get_companion(store, &prefix, INDEX_NAME, keys.as_ref()).await?;
    let manifest = get_companion(store, &prefix, MANIFEST_NAME, keys.as_ref()).await?;
    let checked = record.clone();
    let plan = move || plan_restore(&checked, &index, &manifest).map(|plan| (plan, manifest));
    let (plan, manifest) = tokio::task::spawn_blocking(plan).await??;
    Ok(Scene { record, plan, manifest, prefix, keys })
}

/// What is to be done, from a record and what came with it.
fn plan_restore(record: &BackupRecord, index: &[u8], manifest: &[u8]) -> Result<RestorePlan, RestoreError> {
    let other = |name: &str| RestoreError::Inconsistent(format!("{}/{name} is not the one of the record", record.id));
    if render_hex(&Sha256::digest(manifest)) != record.manifest_sha256 {
        return Err(other(MANIFEST_NAME));
    }
    if record.index_sha256.as_ref().is_some_and(|stated| *stated != render_hex(&Sha256::digest(index))) {
        return Err(other(INDEX_NAME));
    }
    build_plan(record, BackupIndex::decode(index)?, &Manifest::parse(manifest)?)
}

/// The files that a restore would write, as paths below the data directory.
///
/// # Errors
/// [`RestoreError`], as a restore has it before it writes anything.
pub fn list_files(record: &BackupRecord, index: &[u8], manifest: &[u8]) -> Result<Vec<String>, RestoreError> {
    let plan = plan_restore(record, index, manifest)?;
    Ok(plan.archives.into_iter().flat_map(|archive| archive.files).map(|file| file.path).collect())
}

/// The archives that are a tablespace.
pub(crate) fn list_tablespaces(record: &BackupRecord) -> impl Iterator<Item = &ArchiveRecord> {
    record.archives.iter().filter(|archive| archive.name != "base")
}

/// Its OID, and where it was.
pub(crate) fn render_tablespace(archive: &ArchiveRecord) -> String {
    format!("{} ({})", archive.name, archive.tablespace_path)
}

/// Each tablespace's place; `None` below the data directory.
fn decide_places(
    record: &BackupRecord,
    places: &TablespacePlaces,
) -> Result<Vec<(String, Option<PathBuf>)>, RestoreError> {
    let mut decided = Vec::new();
    let mut unplaced = Vec::new();
    for archive in list_tablespaces(record) {
        match places {
            TablespacePlaces::InPlace => decided.push((archive.name.clone(), None)),
            TablespacePlaces::At(paths) if paths.contains_key(&archive.name) => {
                decided.push((archive.name.clone(), paths.get(&archive.name).cloned()));
            }
            _ => unplaced.push(render_tablespace(archive)),
        }
    }
    if unplaced.is_empty() { Ok(decided) } else { Err(RestoreError::Tablespaces(unplaced)) }
}

async fn restore(
    store: &ObjectStore,
    location: &BackupLocation,
    members: Vec<BackupRecord>,
    target: &Path,
    settings: &RestoreSettings,
    progress: &watch::Sender<RestoreProgress>,
    writers: &Writers,
) -> Result<RestoreOutcome, RestoreError> {
    progress.send_modify(|progress| progress.bytes_total = Some(sum_tar_bytes(&members)));
    match members.len() {
        0 | 1 => restore_one(store, location, target, &settings.places, progress, writers).await,
        _ => restore_chain(store, location, members, target, settings, progress, writers).await,
    }
}

fn sum_tar_bytes(members: &[BackupRecord]) -> u64 {
    members.iter().fold(0, |sum, member| sum.saturating_add(member.tar_bytes))
}

/// Extracts one backup as it is.
async fn restore_one(
    store: &ObjectStore,
    location: &BackupLocation,
    root: &Path,
    places: &TablespacePlaces,
    progress: &watch::Sender<RestoreProgress>,
    writers: &Writers,
) -> Result<RestoreOutcome, RestoreError> {
    let began = Instant::now();
    let Scene { record, plan, manifest, prefix, keys } = observe_scene(store, location).await?;
    let places = decide_places(&record, places)?;
    let RestorePlan { directories, archives, bytes } = plan;
    let (root, writer) = (root.to_owned(), writers.enter());
    let (has_tablespaces, in_place) = (!places.is_empty(), places.iter().any(|(_, place)| place.is_none()));
    let prepare = move || {
        let target = Target::prepare(&root, writer)?;
        target.validate_space(bytes.saturating_add(SPARE_BYTES))?;
        for (oid, place) in &places {
            match place {
                Some(place) => target.place_tablespace(oid, place)?,
                None => target.make_directory(&format!("pg_tblspc/{oid}"))?,
            }
        }
        directories.iter().try_for_each(|path| target.make_directory(path))?;
        Ok::<_, RestoreError>(Arc::new(target))
    };
    let target = tokio::task::spawn_blocking(prepare).await??;
    let source = ArchiveSource::new(store, &prefix, keys.as_ref());
    let files = read_archives(&source, archives, Some(&target), progress).await?;
    let finish = move || {
        let target = Arc::into_inner(target)
            .ok_or_else(|| RestoreError::Inconsistent("a writer is still running".to_owned()))?;
        if has_tablespaces {
            // The links are made already; with this file PostgreSQL would make those of the source.
            target.remove_file("tablespace_map")?;
        }
        if in_place {
            // Recovery stops at a directory in pg_tblspc unless it is told that it is meant.
            target.append_line("postgresql.auto.conf", "allow_in_place_tablespaces = on")?;
        }
        target.write_file(MANIFEST_NAME, &manifest)?;
        target.finish()
    };
    tokio::task::spawn_blocking(finish).await??;
    Ok(RestoreOutcome { record, files, bytes, seconds: began.elapsed().as_secs_f64() })
}

/// The manifest of a backup, proven to be the one of its record.
pub(crate) async fn read_manifest(
    store: &ObjectStore,
    location: &BackupLocation,
    record: &BackupRecord,
) -> Result<Vec<u8>, RestoreError> {
    let prefix = location.cluster.backup_prefix(&record.id);
    let keys = BackupKeys::read(&location.cluster.store, record)?;
    let manifest = get_companion(store, &prefix, MANIFEST_NAME, keys.as_ref()).await?;
    if render_hex(&Sha256::digest(&manifest)) == record.manifest_sha256 {
        return Ok(manifest);
    }
    Err(RestoreError::Inconsistent(format!("{prefix}{MANIFEST_NAME} is not the one of the record")))
}

async fn get_companion(
    store: &ObjectStore,
    prefix: &str,
    name: &str,
    keys: Option<&BackupKeys>,
) -> Result<Vec<u8>, RestoreError> {
    let key = format!("{prefix}{}", render_stored_name(name, keys.is_some()));
    let Some(body) = store.get_at_most(&key, MAX_COMPANION_BYTES).await? else {
        return Err(RestoreError::MissingObject(key));
    };
    match keys {
        Some(keys) => Ok(keys.open_whole(&key, body.into())?),
        None => Ok(body.into()),
    }
}

/// Another order of what is worked on [`CONCURRENT_RUNS`] at a time: neighbours come from distant places, so that they seldom write
/// into the same file, where each would wait for the other.
fn spread<T>(items: Vec<T>) -> Vec<T> {
    let share = items.len().div_ceil(CONCURRENT_RUNS).max(1);
    let mut numbered: Vec<(usize, T)> = items.into_iter().enumerate().collect();
    numbered.sort_by_key(|(number, _)| (number % share, number / share));
    numbered.into_iter().map(|(_, item)| item).collect()
}

/// Reads all archives and checks every file; writes them where there is a target. Returns the number of files.
async fn read_archives(
    source: &ArchiveSource<'_>,
    archives: Vec<ArchivePlan>,
    target: Option<&Arc<Target>>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<u64, RestoreError> {
    let mut count = 0;
    for ArchivePlan { name, files, objects, runs } in archives {
        let extraction = Arc::new(Extraction::new(target.cloned(), files));
        let empty = Arc::clone(&extraction);
        tokio::task::spawn_blocking(move || empty.make_empty_files()).await??;
        let objects = source.open_objects(&name, &objects).await?;
        let writing = TaskTracker::new();
        let fetches = stream::iter(spread(runs)).map(|run| {
            let (objects, writing, extraction) = (&objects, &writing, Arc::clone(&extraction));
            async move {
                let fetched = source.fetch(objects, &run).await?;
                let write = move || {
                    let opened = fetched.open()?;
                    let written = extraction.write_run(&opened.key, &run, opened.frames())?;
                    Ok::<_, RestoreError>((written, opened.into_memory()))
                };
                let (written, memory) = writing.spawn_blocking(write).await??;
                source.reuse(memory);
                progress.send_modify(|progress| progress.bytes_done += written);
                Ok::<_, RestoreError>(())
            }
        });
        let read = fetches.buffer_unordered(CONCURRENT_RUNS).try_for_each(|()| async { Ok(()) }).await;
        if let (Err(_), Some(target)) = (&read, target) {
            target.stop();
        }
        // After the first failure the others' futures are gone, and their threads still write.
        writing.close();
        writing.wait().await;
        read?;
        let verify = move || {
            let extraction = Arc::into_inner(extraction)
                .ok_or_else(|| RestoreError::Inconsistent("a writer is still running".to_owned()))?;
            extraction.verify()
        };
        count += tokio::task::spawn_blocking(verify).await??;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_at_the_same_time_lies_far_apart_and_nothing_is_left_out() {
        assert_eq!(spread((0..10).collect()), [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]);
        for length in 0..40 {
            let mut all = spread((0..length).collect());
            all.sort_unstable();
            assert_eq!(all, (0..length).collect::<Vec<_>>());
        }
    }
}

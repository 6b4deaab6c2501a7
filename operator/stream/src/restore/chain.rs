//! A chain of incremental backups into a data directory. Each member is extracted and verified on its own into a scratch
//! directory beside the target, the full one first; PostgreSQL's `pg_combinebackup` makes one of them, which is verified
//! again and then put in place by a rename: the target is whole or it is not there.
//!
//! All members are proven before anything is written. Needs room for all of them and for the result. Memory is that of one
//! member, and some 100 bytes per incremental file.

use std::{collections::HashSet, path::Path, time::Instant};

use pgherd_core::{
    backup::{BackupLocation, BackupRecord},
    chain::{ChainError, validate_link},
};
use tokio::sync::watch;

use super::{
    RestoreError, RestoreOutcome, RestoreProgress, RestoreSettings, SPARE_BYTES, TablespacePlaces, combine,
    list_tablespaces, lock::RestoreLock, observe_scene, render_tablespace, restore_one, scratch::Scratch,
    writers::Writers,
};
use crate::{catalogue::read_record, store::ObjectStore};

/// What PostgreSQL puts before the name of a file that holds only some blocks.
const INCREMENTAL_PREFIX: &str = "INCREMENTAL.";

/// Takes a lock on the backup and on all that it needs, and reads their records: the full one first.
pub(super) async fn lock_chain(
    store: &ObjectStore,
    location: &BackupLocation,
    locks: &mut Vec<RestoreLock>,
) -> Result<Vec<BackupRecord>, RestoreError> {
    // The lock is there before the record is read: whoever deletes backups looks for it after having said so.
    locks.push(RestoreLock::take(store, location).await?);
    let key = || format!("{}{}", location.cluster.backup_prefix(&location.backup_id), crate::catalogue::RECORD_NAME);
    let record = read_record(store, &location.cluster, &location.backup_id).await?;
    let mut child = record.ok_or_else(|| RestoreError::MissingObject(key()))?;
    let mut members = Vec::new();
    while let Some(id) = child.parent.as_ref().map(|parent| parent.id.clone()) {
        locks.push(RestoreLock::take(store, &locate(location, &id)).await?);
        let parent = read_record(store, &location.cluster, &id).await?;
        let parent = parent.ok_or_else(|| ChainError::Missing { child: child.id.clone(), parent: id })?;
        validate_link(&child, &parent)?;
        members.push(std::mem::replace(&mut child, parent));
    }
    members.push(child);
    members.reverse();
    Ok(members)
}

pub(super) fn locate(location: &BackupLocation, id: &str) -> BackupLocation {
    BackupLocation { cluster: location.cluster.clone(), backup_id: id.to_owned() }
}

/// Restores the last of `members`, which all of them are needed for.
pub(super) async fn restore_chain(
    store: &ObjectStore,
    location: &BackupLocation,
    members: Vec<BackupRecord>,
    target: &Path,
    settings: &RestoreSettings,
    progress: &watch::Sender<RestoreProgress>,
    writers: &Writers,
) -> Result<RestoreOutcome, RestoreError> {
    let began = Instant::now();
    let Some(record) = members.last().cloned() else { return Err(RestoreError::Inconsistent("an empty chain".into())) };
    let Some(program) = &settings.combine else { return Err(RestoreError::NoCombine(record.id)) };
    if let Some(archive) = members.iter().flat_map(list_tablespaces).next() {
        return Err(RestoreError::Tablespaces(vec![render_tablespace(archive)]));
    }
    combine::validate_version(program, record.server_version / 10_000, writers.enter()).await?;
    let needed = prove_members(store, location, &members).await?.saturating_add(SPARE_BYTES);
    let (root, writer) = (target.to_owned(), writers.enter());
    let scratch = tokio::task::spawn_blocking(move || Scratch::prepare(&root, needed, writer)).await??;
    let fill = async {
        let mut folders = Vec::new();
        for (number, member) in members.iter().enumerate() {
            let (at, folder) = (locate(location, &member.id), scratch.member(number));
            restore_one(store, &at, &folder, &TablespacePlaces::Refuse, progress, writers).await?;
            folders.push(folder);
        }
        combine::run(program, &folders, &scratch.combined(), writers.enter()).await?;
        let (combined, newest, checked) = (scratch.combined(), scratch.member(members.len() - 1), record.clone());
        tokio::task::spawn_blocking(move || combine::verify(&combined, &newest, &checked)).await?
    };
    let filled = fill.await;
    // Also after a failure: its room is needed for whatever is tried next.
    let (files, bytes) = tokio::task::spawn_blocking(move || scratch.finish(filled)).await??;
    Ok(RestoreOutcome { record, files, bytes, seconds: began.elapsed().as_secs_f64() })
}

/// Reads index and manifest of every member, has them agree, and adds up the bytes that a restore needs: those of all members
/// and those of the result.
async fn prove_members(
    store: &ObjectStore,
    location: &BackupLocation,
    members: &[BackupRecord],
) -> Result<u64, RestoreError> {
    let (mut needed, mut wanted) = (0u64, HashSet::new());
    for (newer, member) in members.iter().rev().enumerate() {
        let plan = observe_scene(store, &locate(location, &member.id)).await?.plan;
        needed = needed.saturating_add(plan.bytes);
        for file in plan.archives.iter().flat_map(|archive| &archive.files) {
            let (path, whole) = match find_plain_path(&file.path) {
                Some(path) => (path, false),
                None => (file.path.clone(), true),
            };
            // A block of the result comes from one of these files; it has no more blocks than they have together.
            if newer == 0 || wanted.contains(&path) {
                needed = needed.saturating_add(file.size);
            }
            if whole {
                wanted.remove(&path);
            } else if newer == 0 {
                wanted.insert(path);
            }
        }
    }
    match wanted.into_iter().next() {
        None => Ok(needed),
        Some(path) => Err(RestoreError::Inconsistent(format!("no backup of the chain holds the whole of {path}"))),
    }
}

/// `base/5/16384.1` of `base/5/INCREMENTAL.16384.1`; none for a whole file.
fn find_plain_path(path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let plain = name.strip_prefix(INCREMENTAL_PREFIX)?;
    Some(if folder.is_empty() { plain.to_owned() } else { format!("{folder}/{plain}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_some_blocks_names_the_whole_one() {
        assert_eq!(find_plain_path("base/5/INCREMENTAL.16384.1").as_deref(), Some("base/5/16384.1"));
        assert_eq!(find_plain_path("INCREMENTAL.1").as_deref(), Some("1"));
        assert_eq!(find_plain_path("base/5/16384"), None);
        assert_eq!(find_plain_path("INCREMENTAL.d/1"), None);
    }
}

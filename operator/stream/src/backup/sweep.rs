//! Removing what failed or killed backups left: first the upload of the record, so that nothing can become visible any more,
//! then the other open uploads by exact key and id, then the objects, the marker last.
//!
//! A backup that is visible is never touched, and one that may be running neither.

use std::time::Duration;

use jiff::Timestamp;
use pgherd_core::backup::ClusterLocation;

use super::{
    BackupOwner, INDEX_NAME, MANIFEST_NAME,
    marker::{MARKER_NAME, MAX_MARKER_BYTES, Marker},
    render_stored_name,
    upload::render_object_name,
};
use crate::{
    catalogue::RECORD_NAME,
    store::{ObjectStore, StoreError, StoredObject},
};

/// A backup whose marker was not renewed for this long is dead.
pub const SILENT_AGE: Duration = Duration::from_secs(15 * 60);
/// Objects without a marker are judged by their own age.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Who sweeps, and what is dead to it.
#[derive(Clone, Copy, Debug)]
pub struct SweepScope<'a> {
    /// The sweeper's own backup, which is alive.
    pub own_id: &'a str,
    /// Earlier attempts of this owner are dead, and the same attempt under another id.
    pub owner: Option<&'a BackupOwner>,
    /// See [`SILENT_AGE`].
    pub silent_age: Duration,
}

/// What is to be done with a backup that has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It may be running.
    Leave,
    /// It is dead if the upload of its record could be aborted: then nothing can complete it.
    RemoveIfUncommitted,
    /// It is dead.
    Remove,
}

fn decide_fate(marker: Option<&Marker>, silent_for: Option<Duration>, scope: &SweepScope<'_>) -> Fate {
    let older_than = |age: Duration| silent_for.is_some_and(|silent| silent >= age);
    let Some(marker) = marker else {
        return if older_than(ORPHAN_AGE.max(scope.silent_age)) { Fate::Remove } else { Fate::Leave };
    };
    let superseded =
        |owner: &BackupOwner| scope.owner.is_some_and(|me| me.id == owner.id && me.attempt >= owner.attempt);
    if marker.deleting || older_than(scope.silent_age) {
        Fate::Remove
    } else if marker.owner.as_ref().is_some_and(superseded) {
        Fate::RemoveIfUncommitted
    } else {
        Fate::Leave
    }
}

/// Removes everything of one backup that failed, but the object of a record that was completed in spite of it is removed
/// first.
pub(super) async fn remove_failed(store: &ObjectStore, prefix: &str, archives: &[String]) -> Result<(), StoreError> {
    let record = format!("{prefix}{RECORD_NAME}");
    store.abort_stale_uploads(std::slice::from_ref(&record)).await?;
    store.delete(&record).await?;
    remove_rest(store, prefix, archives).await
}

/// Removes all but the record: open uploads, objects, and the marker last, so that another sweep finds the rest.
pub(crate) async fn remove_rest(store: &ObjectStore, prefix: &str, archives: &[String]) -> Result<(), StoreError> {
    let present = store.list(prefix).await?;
    let keys = decide_keys(prefix, archives, present.iter().map(|(key, _)| key.as_str()));
    store.abort_stale_uploads(&keys).await?;
    let marker = format!("{prefix}{MARKER_NAME}");
    let rest: Vec<String> = present.into_iter().map(|(key, _)| key).filter(|key| *key != marker).collect();
    store.delete_all(&rest).await?;
    store.delete(&marker).await
}

/// Removes backups that are neither visible nor running any more; returns their ids. A process that was killed leaves such.
///
/// # Errors
/// [`StoreError`].
pub async fn sweep_abandoned(
    store: &ObjectStore,
    location: &ClusterLocation,
    scope: &SweepScope<'_>,
) -> Result<Vec<String>, StoreError> {
    let (now, mut removed) = (store.observe_time().await?, Vec::new());
    for id in store.list_dirs(&format!("{}/base/", location.root())).await? {
        if id != scope.own_id && sweep_one(store, &location.backup_prefix(&id), scope, now).await? {
            removed.push(id);
        }
    }
    Ok(removed)
}

async fn sweep_one(
    store: &ObjectStore,
    prefix: &str,
    scope: &SweepScope<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let record_key = format!("{prefix}{RECORD_NAME}");
    if store.head(&record_key).await?.is_some() {
        return Ok(false);
    }
    let present = store.list_objects(prefix).await?;
    let marker = store.get_at_most(&format!("{prefix}{MARKER_NAME}"), MAX_MARKER_BYTES).await?;
    let marker: Option<Marker> = marker.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let fate = decide_fate(marker.as_ref(), observe_silence(&present, now), scope);
    if fate == Fate::Leave {
        return Ok(false);
    }
    let aborted = close_record(store, &record_key).await?;
    // It may have been completed since it was looked for; from here on it cannot be.
    if store.head(&record_key).await?.is_some() || (fate == Fate::RemoveIfUncommitted && aborted == 0) {
        return Ok(false);
    }
    let archives = marker.map_or_else(|| observe_archives(prefix, &present), |marker| marker.archives);
    remove_rest(store, prefix, &archives).await?;
    Ok(true)
}

/// Aborts the uploads of a record until there is none: a backup that goes on begins the next before it gives up the one before, and
/// looks whether that is still there (see [`super::marker`]). Returns how many there were.
pub(super) async fn close_record(store: &ObjectStore, key: &str) -> Result<usize, StoreError> {
    let (keys, mut aborted) = ([key.to_owned()], 0);
    loop {
        match store.abort_stale_uploads(&keys).await? {
            0 => return Ok(aborted),
            more => aborted += more,
        }
    }
}

/// Since when nothing was written, the marker included.
fn observe_silence(present: &[StoredObject], now: Timestamp) -> Option<Duration> {
    let newest = present.iter().filter_map(|object| object.modified).max()?;
    let silent = now.duration_since(newest);
    // It was written since the store was asked for the time.
    Some(if silent.is_negative() { Duration::ZERO } else { silent.unsigned_abs() })
}

/// The archives that the objects belong to.
fn observe_archives(prefix: &str, present: &[StoredObject]) -> Vec<String> {
    let name = |object: &StoredObject| {
        let (archive, _) = object.key.strip_prefix(prefix)?.split_once(".tar.zst.")?;
        Some(archive.to_owned())
    };
    let mut archives: Vec<String> = present.iter().filter_map(name).chain(["base".to_owned()]).collect();
    archives.sort();
    archives.dedup();
    archives
}

/// The keys that may have an open upload: of each archive the objects that are there, and the one after them, and what is written
/// behind them; plain or not is not known.
fn decide_keys<'a>(prefix: &str, archives: &[String], present: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let companions = [INDEX_NAME, MANIFEST_NAME].into_iter();
    let companions = companions.flat_map(|name| [false, true].map(|sealed| render_stored_name(name, sealed)));
    let mut keys: Vec<String> = companions.map(|name| format!("{prefix}{name}")).collect();
    for archive in archives {
        let stem = format!("{prefix}{archive}.tar.zst.");
        let numbers = present.clone().filter_map(|key| key.strip_prefix(&stem)?.get(..4)?.parse::<usize>().ok());
        let next = numbers.max().map_or(0, |number| number + 1);
        let names =
            (0..=next).flat_map(|number| [false, true].map(|sealed| render_object_name(archive, number, sealed)));
        keys.extend(names.map(|name| format!("{prefix}{name}")));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(owner: Option<(&str, u32)>) -> Marker {
        Marker {
            id: "x".into(),
            started_at: Timestamp::UNIX_EPOCH,
            archives: vec![],
            run: "r".into(),
            owner: owner.map(|(id, attempt)| BackupOwner { id: id.into(), attempt }),
            deleting: false,
        }
    }

    #[test]
    fn the_object_after_those_that_are_there_may_be_open() {
        let expected = [
            "p/index.json.zst",
            "p/backup_manifest",
            "p/16384.tar.zst.0000",
            "p/16384.tar.zst.0001",
            "p/16384.tar.zst.0002",
            "p/base.tar.zst.0000",
        ];
        let expected: Vec<String> = expected.iter().flat_map(|key| [(*key).to_owned(), format!("{key}.age")]).collect();
        for present in [
            ["p/16384.tar.zst.0000", "p/16384.tar.zst.0001", "p/inprogress.json"],
            ["p/16384.tar.zst.0000.age", "p/16384.tar.zst.0001.age", "p/inprogress.json"],
        ] {
            let keys = decide_keys("p/", &["16384".to_owned(), "base".to_owned()], present.into_iter());
            assert_eq!(keys, expected);
        }
    }

    #[test]
    fn an_earlier_attempt_of_the_same_owner_is_dead_and_another_owner_s_only_when_it_is_silent() {
        let me = BackupOwner { id: "a".to_owned(), attempt: 2 };
        let scope = SweepScope { own_id: "now", owner: Some(&me), silent_age: SILENT_AGE };
        let fate =
            |marker: Option<&Marker>, seconds: u64| decide_fate(marker, Some(Duration::from_secs(seconds)), &scope);
        assert_eq!(fate(Some(&marker(Some(("a", 1)))), 1), Fate::RemoveIfUncommitted);
        assert_eq!(fate(Some(&marker(Some(("a", 2)))), 1), Fate::RemoveIfUncommitted);
        assert_eq!(fate(Some(&marker(Some(("a", 3)))), 1), Fate::Leave, "a later attempt is not ours to end");
        assert_eq!(fate(Some(&marker(Some(("b", 1)))), 1), Fate::Leave);
        assert_eq!(fate(Some(&marker(None)), 899), Fate::Leave);
        assert_eq!(fate(Some(&marker(None)), 900), Fate::Remove);
        assert_eq!(fate(Some(&Marker { deleting: true, ..marker(None) }), 1), Fate::Remove);
        assert_eq!(fate(None, 901), Fate::Leave, "without a marker only great age tells");
        assert_eq!(fate(None, 24 * 3600), Fate::Remove);
        assert_eq!(decide_fate(None, None, &scope), Fate::Leave);
    }
}

//! Removing what failed or killed backups left: open uploads by exact key, then objects, `backup.json` before all others.
//!
//! A backup that is visible is never touched.

use std::time::Duration;

use jiff::Timestamp;
use pgherd_core::backup::ClusterLocation;
use serde::{Deserialize, Serialize};

use super::upload::render_object_name;
use crate::{
    catalogue::RECORD_NAME,
    store::{ObjectStore, StoreError},
};

/// Name of the object that says which archives a running backup writes. It is there only while the backup runs, or when
/// it died.
pub(super) const MARKER_NAME: &str = "inprogress.json";

/// What a running backup writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    pub(super) id: String,
    pub(super) started_at: Timestamp,
    pub(super) archives: Vec<String>,
}

/// Removes everything of one backup that failed.
pub(super) async fn remove_failed(store: &ObjectStore, prefix: &str, keys: &[String]) -> Result<(), StoreError> {
    // If it became visible in spite of its failure, it must be the first to go.
    store.delete(&format!("{prefix}{RECORD_NAME}")).await?;
    store.abort_stale_uploads(keys).await?;
    let marker = format!("{prefix}{MARKER_NAME}");
    for (key, _) in store.list(prefix).await?.iter().filter(|(key, _)| *key != marker) {
        store.delete(key).await?;
    }
    // The marker is the last: as long as it is there, another sweep finds the rest.
    store.delete(&marker).await
}

/// Removes backups that began at least `min_age` before `now` and are neither visible nor running any more; returns their
/// ids. A process that was killed leaves such.
///
/// # Errors
/// [`StoreError`].
pub async fn sweep_abandoned(
    store: &ObjectStore,
    location: &ClusterLocation,
    now: Timestamp,
    min_age: Duration,
) -> Result<Vec<String>, StoreError> {
    let mut removed = Vec::new();
    for id in store.list_dirs(&format!("{}/base/", location.root())).await? {
        let prefix = location.backup_prefix(&id);
        if store.head(&format!("{prefix}{RECORD_NAME}")).await?.is_some() {
            continue;
        }
        let marker = store.get(&format!("{prefix}{MARKER_NAME}")).await?;
        let marker: Option<Marker> = marker.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // Without a readable marker nothing says how old it is: such a folder is not ours to judge.
        let Some(marker) = marker else { continue };
        let age = now.duration_since(marker.started_at);
        if age.is_negative() || age.unsigned_abs() < min_age {
            continue;
        }
        let present = store.list(&prefix).await?;
        let keys = decide_keys(&prefix, &marker, present.iter().map(|(key, _)| key.as_str()));
        remove_failed(store, &prefix, &keys).await?;
        removed.push(id);
    }
    Ok(removed)
}

/// The keys that may have an open upload: of each archive the objects that are there, and the one after them.
fn decide_keys<'a>(prefix: &str, marker: &Marker, present: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let mut keys = Vec::new();
    for archive in &marker.archives {
        let stem = format!("{prefix}{archive}.tar.zst.");
        let numbers = present.clone().filter_map(|key| key.strip_prefix(&stem)?.parse::<usize>().ok());
        let next = numbers.max().map_or(0, |number| number + 1);
        keys.extend((0..=next).map(|number| format!("{prefix}{}", render_object_name(archive, number))));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_after_those_that_are_there_may_be_open() {
        let marker =
            Marker { id: "x".into(), started_at: Timestamp::UNIX_EPOCH, archives: vec!["16384".into(), "base".into()] };
        let present = ["p/16384.tar.zst.0000", "p/16384.tar.zst.0001", "p/inprogress.json"];
        let keys = decide_keys("p/", &marker, present.into_iter());
        let expected = ["p/16384.tar.zst.0000", "p/16384.tar.zst.0001", "p/16384.tar.zst.0002", "p/base.tar.zst.0000"];
        assert_eq!(keys, expected);
    }
}

//! `locks/<id>.<nonce>.json`: says that somebody reads a backup, so that retention leaves it.
//!
//! The reader writes its lock and then looks for the mark of a deletion; who deletes writes the mark and then looks for locks:
//! one of them sees the other. A reader that cannot write goes on without a lock.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use pgherd_core::backup::{BackupLocation, ClusterLocation};
use uuid::Uuid;

use super::RestoreError;
use crate::{
    backup::{MARKER_NAME, MAX_MARKER_BYTES, Marker},
    store::{ObjectStore, StoreError},
};

/// A lock that was not renewed for this long is of a dead reader; the mark of a deletion, of a dead deleter.
pub(crate) const LOCK_AGE: Duration = Duration::from_secs(15 * 60);
const RENEW_EVERY: Duration = Duration::from_secs(60);
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// A lock that cannot be removed goes stale by itself.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A reader's lock. It must be released.
pub(crate) struct RestoreLock {
    store: ObjectStore,
    key: Option<String>,
}

fn render_folder(location: &ClusterLocation) -> String {
    format!("{}/locks/", location.root())
}

impl RestoreLock {
    pub(crate) async fn take(store: &ObjectStore, location: &BackupLocation) -> Result<Self, RestoreError> {
        let nonce = Uuid::new_v4().simple();
        let key = format!("{}{}.{nonce}.json", render_folder(&location.cluster), location.backup_id);
        // A restore must not depend on a right to write, nor on room in the store.
        let put = tokio::time::timeout(TAKE_TIMEOUT, store.put(&key, Bytes::from_static(b"{}"))).await;
        let key = match put {
            Ok(Ok(())) => Some(key),
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "reading without a lock: retention may delete the backup meanwhile");
                None
            }
            Err(_) => {
                tracing::warn!("reading without a lock, which took too long to write");
                None
            }
        };
        let lock = Self { store: store.clone(), key };
        if observe_deletion(store, location).await? {
            lock.release().await;
            return Err(RestoreError::BeingDeleted(location.backup_id.clone()));
        }
        Ok(lock)
    }

    /// Renews the lock for ever.
    pub(crate) async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            if let Some(key) = &self.key
                && let Err(error) = self.store.put(key, Bytes::from_static(b"{}")).await
            {
                tracing::warn!(error = %error, "renewing the lock of the backup");
            }
        }
    }

    pub(crate) async fn release(self) {
        let Some(key) = self.key else { return };
        match tokio::time::timeout(RELEASE_TIMEOUT, self.store.delete(&key)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %error, "removing the lock of the backup"),
            Err(_) => tracing::warn!("removing the lock of the backup takes too long"),
        }
    }
}

/// Whether somebody is about to delete the backup.
async fn observe_deletion(store: &ObjectStore, location: &BackupLocation) -> Result<bool, StoreError> {
    let key = format!("{}{MARKER_NAME}", location.cluster.backup_prefix(&location.backup_id));
    let found = store.list_objects(&key).await?.into_iter().find(|object| object.key == key);
    let Some(found) = found else { return Ok(false) };
    // Where the store does not say what time it is, the reader's own clock does: at worst it says later that the backup is gone.
    let now = store.observe_time().await.unwrap_or_else(|_| Timestamp::now());
    if !is_fresh(found.modified, now) {
        return Ok(false);
    }
    let marker = store.get_at_most(&key, MAX_MARKER_BYTES).await?;
    let marker = marker.and_then(|bytes| serde_json::from_slice::<Marker>(&bytes).ok());
    Ok(marker.is_some_and(|marker| marker.deleting))
}

fn is_fresh(modified: Option<Timestamp>, now: Timestamp) -> bool {
    // Without a time it may be new.
    modified.is_none_or(|modified| {
        let age = now.duration_since(modified);
        age.is_negative() || age.unsigned_abs() < LOCK_AGE
    })
}

/// Ids of the backups that somebody reads; `now` is by the store's clock ([`ObjectStore::observe_time`]).
pub(crate) async fn observe_locks(
    store: &ObjectStore,
    location: &ClusterLocation,
    now: Timestamp,
) -> Result<BTreeSet<String>, StoreError> {
    let folder = render_folder(location);
    let objects = store.list_objects(&folder).await?;
    let fresh = objects.iter().filter(|object| is_fresh(object.modified, now));
    let id = |key: &str| Some(key.strip_prefix(&folder)?.split_once('.')?.0.to_owned());
    Ok(fresh.filter_map(|object| id(&object.key)).collect())
}

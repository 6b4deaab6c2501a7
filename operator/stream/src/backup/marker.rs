//! `inprogress.json`: says that a backup is being made, by whom, and by its age in the store whether that process lives.
//!
//! Two things make a process that was taken for dead harmless: the marker is its alone, and `backup.json` is an upload that was
//! begun before the first byte of data. Who removes the backup aborts that upload first; it cannot be completed afterwards.
//!
//! A backup that takes long begins another upload before a store takes the first one for forgotten. It goes on with it only if the
//! one before is still open *after* that. Who removes the backup aborts until a list of its uploads is empty: either that list was made
//! after the other upload had begun, which then is aborted too, or before, and then the one before was gone by the time it was
//! looked for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use pgherd_core::backup::BackupRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{BackupError, BackupOwner};
use crate::{
    catalogue::RECORD_NAME,
    store::{MultipartUpload, ObjectStore, PutOutcome, StoreError},
};

/// Name of the object that says which archives a running backup writes. It is there only while the backup runs, or when
/// it died.
pub(crate) const MARKER_NAME: &str = "inprogress.json";
/// A longer marker is refused: it names a cluster's tablespaces.
pub(crate) const MAX_MARKER_BYTES: u64 = 1 << 20;
/// A running backup writes its marker anew this often.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// MinIO removes uploads that were begun more than 24 hours ago, whatever was sent since (`stale_uploads_expiry` of its `api` settings);
/// it looks for them every 6 hours. Other stores have such rules if somebody made them, in days.
const BEGIN_ANEW_EVERY: Duration = Duration::from_secs(6 * 3600);

/// What a running backup writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    /// `base` and OIDs of tablespaces: with them the keys of open uploads are known.
    pub(crate) archives: Vec<String>,
    /// Tells processes with the same id apart.
    #[serde(default)]
    pub(crate) run: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<BackupOwner>,
    /// The backup was complete and is being deleted: nobody writes here any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deleting: bool,
}

impl Marker {
    pub(crate) fn encode(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }
}

/// A backup's right to its id, from before the first byte of data to the record.
pub(super) struct Claim<'a> {
    store: &'a ObjectStore,
    key: String,
    marker: Marker,
    body: Bytes,
    record_key: String,
    record: Mutex<MultipartUpload>,
    /// Another upload of the record was begun: one may be left open.
    begun_anew: AtomicBool,
}

impl<'a> Claim<'a> {
    /// Takes the id, create-only, and begins the upload of the record.
    pub(super) async fn take(store: &'a ObjectStore, prefix: &str, marker: Marker) -> Result<Self, BackupError> {
        if !store.list(prefix).await?.is_empty() {
            return Err(BackupError::IdTaken(marker.id));
        }
        let key = format!("{prefix}{MARKER_NAME}");
        let body = marker.encode().map_err(BackupError::Record)?;
        // A lost answer makes the second attempt find its own object.
        if store.put_if_absent(&key, body.clone()).await? == PutOutcome::Exists
            && store.get_at_most(&key, MAX_MARKER_BYTES).await?.as_ref() != Some(&body)
        {
            return Err(BackupError::IdTaken(marker.id));
        }
        let record_key = format!("{prefix}{RECORD_NAME}");
        let record = Mutex::new(MultipartUpload::begin(store, &record_key, 1).await?);
        Ok(Self { store, key, marker, body, record_key, record, begun_anew: AtomicBool::new(false) })
    }

    /// Writes the marker anew from time to time. Ends only when the backup was taken away.
    pub(super) async fn renew(&self) -> BackupError {
        let mut begun = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.observe_mine().await {
                Ok(false) => return BackupError::Abandoned,
                Ok(true) => {
                    if let Err(error) = self.store.put(&self.key, self.body.clone()).await {
                        tracing::warn!(error = %error, "renewing the marker of the backup");
                    }
                }
                // The store may answer next time; whoever takes the backup away meanwhile aborts the record's upload.
                Err(error) => tracing::warn!(error = %error, "looking for the marker of the backup"),
            }
            if begun.elapsed() >= BEGIN_ANEW_EVERY {
                match self.begin_anew().await {
                    Ok(true) => begun = Instant::now(),
                    Ok(false) => return BackupError::Abandoned,
                    // There is time for many attempts.
                    Err(error) => tracing::warn!(error = %error, "beginning the upload of the record anew"),
                }
            }
        }
    }

    /// Another upload of the record instead of the present one. False when that was aborted by somebody else.
    async fn begin_anew(&self) -> Result<bool, StoreError> {
        self.begun_anew.store(true, Ordering::Relaxed);
        let fresh = MultipartUpload::begin(self.store, &self.record_key, 1).await?;
        let mut record = self.record.lock().await;
        // In this order: see the module.
        let open = record.is_open().await;
        let unwanted = if matches!(open, Ok(true)) { std::mem::replace(&mut *record, fresh) } else { fresh };
        drop(record);
        if let Err(error) = unwanted.abort().await {
            tracing::warn!(error = %error, "aborting an upload of the record");
        }
        open
    }

    async fn observe_mine(&self) -> Result<bool, StoreError> {
        let found = self.store.get_at_most(&self.key, MAX_MARKER_BYTES).await?;
        let found: Option<Marker> = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(found.is_some_and(|found| found.run == self.marker.run))
    }

    /// Makes the backup visible: from here on it exists.
    pub(super) async fn commit(self, record: &BackupRecord) -> Result<(), BackupError> {
        if !self.observe_mine().await? {
            return Err(BackupError::Abandoned);
        }
        let body = Bytes::from(serde_json::to_vec_pretty(record).map_err(BackupError::Record)?);
        let mut upload = self.record.into_inner();
        upload.push_part(body).await?;
        upload.complete().await.map_err(|error| match error {
            StoreError::Other { code, .. } if code == "NoSuchUpload" => BackupError::Abandoned,
            error => error.into(),
        })?;
        // The end of the work may have come between a begin and an abort.
        if self.begun_anew.into_inner()
            && let Err(error) = self.store.abort_stale_uploads(&[self.record_key]).await
        {
            tracing::warn!(error = %error, "aborting other uploads of the record");
        }
        Ok(())
    }

    /// Ends what the claim holds open after a failure. What [`Self::renew`] may have left goes with the backup's other uploads.
    pub(super) async fn abort(self) {
        if let Err(error) = self.record.into_inner().abort().await {
            tracing::warn!(error = %error, "aborting the upload of the record");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backup::sweep::close_record, store::fake::FakeStore};

    const PREFIX: &str = "c/7/base/x/";
    const RECORD: &str = r#"{"format":1,"id":"x","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"0/1",
        "stopLsn":"0/2","startedAt":"","stoppedAt":"","archives":[],"manifestSha256":"","tarBytes":0,"storedBytes":0,
        "walSegmentBytes":16777216}"#;

    async fn claim(store: &ObjectStore) -> Claim<'_> {
        let marker = Marker {
            id: "x".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            archives: vec![],
            run: "r".to_owned(),
            owner: None,
            deleting: false,
        };
        Claim::take(store, PREFIX, marker).await.unwrap()
    }

    fn record() -> BackupRecord {
        serde_json::from_str(RECORD).unwrap()
    }

    #[tokio::test]
    async fn an_upload_that_was_begun_anew_is_completed_and_none_is_left() {
        let fake = FakeStore::start();
        let store = fake.connect().await;
        let claim = claim(&store).await;
        let first = fake.uploads();
        assert!(claim.begin_anew().await.unwrap());
        let second = fake.uploads();
        assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
        // As if the work had ended between the begin of another one and its end.
        MultipartUpload::begin(&store, &claim.record_key, 1).await.unwrap();
        claim.commit(&record()).await.unwrap();
        assert_eq!(fake.uploads(), [0; 0]);
        assert!(fake.keys().contains(&format!("{PREFIX}{RECORD_NAME}")));
    }

    #[tokio::test]
    async fn a_backup_that_was_taken_away_begins_no_upload_anew() {
        let fake = FakeStore::start();
        let store = fake.connect().await;
        let claim = claim(&store).await;
        assert_eq!(close_record(&store, &claim.record_key).await.unwrap(), 1);
        assert!(!claim.begin_anew().await.unwrap(), "the one before is gone");
        assert_eq!(fake.uploads(), [0; 0]);
        assert!(matches!(claim.commit(&record()).await, Err(BackupError::Abandoned)));
        assert!(!fake.keys().contains(&format!("{PREFIX}{RECORD_NAME}")));
    }

    #[tokio::test]
    async fn an_upload_that_begins_while_another_is_aborted_is_aborted_too() {
        let fake = FakeStore::start();
        let store = fake.connect().await;
        let claim = claim(&store).await;
        fake.begin_at_abort();
        assert_eq!(close_record(&store, &claim.record_key).await.unwrap(), 2);
        assert_eq!(fake.uploads(), [0; 0]);
    }
}

//! `inprogress.json`: says that a backup is being made, by whom, and by its age in the store whether that process lives.
//!
//! Two things make a process that was taken for dead harmless: the marker is its alone, and `backup.json` is an upload that was
//! begun before the first byte of data. Who removes the backup aborts that upload first; it cannot be completed afterwards.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use pgherd_core::backup::BackupRecord;
use serde::{Deserialize, Serialize};

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
    record: MultipartUpload,
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
        let record = MultipartUpload::begin(store, &format!("{prefix}{RECORD_NAME}"), 1).await?;
        Ok(Self { store, key, marker, body, record })
    }

    /// Writes the marker anew from time to time. Ends only when the backup was taken away.
    pub(super) async fn renew(&self) -> BackupError {
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
        }
    }

    async fn observe_mine(&self) -> Result<bool, StoreError> {
        let found = self.store.get_at_most(&self.key, MAX_MARKER_BYTES).await?;
        let found: Option<Marker> = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(found.is_some_and(|found| found.run == self.marker.run))
    }

    /// Makes the backup visible: from here on it exists.
    pub(super) async fn commit(mut self, record: &BackupRecord) -> Result<(), BackupError> {
        if !self.observe_mine().await? {
            return Err(BackupError::Abandoned);
        }
        let body = Bytes::from(serde_json::to_vec_pretty(record).map_err(BackupError::Record)?);
        self.record.push_part(body).await?;
        self.record.complete().await.map(|_| ()).map_err(|error| match error {
            StoreError::Other { code, .. } if code == "NoSuchUpload" => BackupError::Abandoned,
            error => error.into(),
        })
    }

    /// Ends what the claim holds open after a failure.
    pub(super) async fn abort(self) {
        if let Err(error) = self.record.abort().await {
            tracing::warn!(error = %error, "aborting the upload of the record");
        }
    }
}

//! Runs of frames out of objects, plain or encrypted. Of an age file only its header and the chunks around a run are fetched;
//! each chunk is proven to be the one of its place.

use std::sync::Arc;

use bytes::Bytes;
use pgherd_core::backup::{BackupRecord, StoreConfig};

use super::{
    RestoreError,
    plan::{FrameRun, ObjectPlan},
};
use crate::{
    age::{self, AgeError, CHUNK_BYTES, Opener, SEALED_CHUNK_BYTES, sealed_bytes},
    backup::render_object_name,
    encryption::{Identities, KeyError, Keys},
    store::{ObjectStore, StoreError},
};

/// What opens one backup.
pub(super) struct BackupKeys {
    identities: Identities,
    recipients: Vec<String>,
}

impl BackupKeys {
    /// Reads the identity file where the record says that the backup is encrypted.
    pub(super) fn read(config: &StoreConfig, record: &BackupRecord) -> Result<Option<Self>, KeyError> {
        let identities = Keys::of(config)?.identities_for(record)?;
        let recipients = record.encryption.as_ref().map(|encryption| encryption.recipients.clone()).unwrap_or_default();
        Ok(identities.map(|identities| Self { identities, recipients }))
    }

    /// Opens a whole object.
    pub(super) fn open_whole(&self, key: &str, body: Vec<u8>) -> Result<Vec<u8>, KeyError> {
        age::open(self.identities.all(), body).map_err(|error| self.identities.explain(key, &self.recipients, error))
    }

    fn open_begin(&self, key: &str, begin: &[u8]) -> Result<Opener, KeyError> {
        let explain = |error| self.identities.explain(key, &self.recipients, error);
        let (opener, start) = Opener::begin(self.identities.all(), begin).map_err(explain)?;
        // The chunks begin where the sizes say, or this is another object.
        if start == begin.len() { Ok(opener) } else { Err(explain(AgeError::Truncated)) }
    }
}

/// Where archives are read from.
pub(super) struct ArchiveSource<'a> {
    pub(super) store: &'a ObjectStore,
    /// Key prefix of the backup.
    pub(super) prefix: &'a str,
    /// None for a plain backup.
    pub(super) keys: Option<&'a BackupKeys>,
}

/// An object that runs are fetched from.
pub(super) struct OpenObject {
    key: String,
    sealed: Option<SealedObject>,
}

struct SealedObject {
    opener: Arc<Opener>,
    /// Where its chunks begin.
    begin: u64,
    /// Bytes of all its chunks.
    bytes: u64,
}

/// A run as it came from the store.
pub(super) struct FetchedRun {
    key: String,
    body: Bytes,
    sealed: Option<SealedRun>,
}

struct SealedRun {
    opener: Arc<Opener>,
    first_chunk: u64,
    ends: bool,
    /// Where in the opened chunks the run lies.
    skip: usize,
    length: usize,
}

impl ArchiveSource<'_> {
    /// Reads the headers of an archive's objects.
    pub(super) async fn open_objects(
        &self,
        archive: &str,
        objects: &[ObjectPlan],
    ) -> Result<Vec<OpenObject>, RestoreError> {
        // One small request for each 5 GiB or so.
        let mut opened = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            let name = render_object_name(archive, number, self.keys.is_some());
            opened.push(self.open_object(format!("{}{name}", self.prefix), *object).await?);
        }
        Ok(opened)
    }

    async fn open_object(&self, key: String, object: ObjectPlan) -> Result<OpenObject, RestoreError> {
        let Some(keys) = self.keys else { return Ok(OpenObject { key, sealed: None }) };
        let bytes = sealed_bytes(object.plain);
        let begin = object.stored.saturating_sub(bytes);
        let head = self.get(&key, 0, begin).await?;
        let opener = Arc::new(keys.open_begin(&key, &head)?);
        Ok(OpenObject { key, sealed: Some(SealedObject { opener, begin, bytes }) })
    }

    /// Fetches what holds a run.
    pub(super) async fn fetch(&self, objects: &[OpenObject], run: &FrameRun) -> Result<FetchedRun, RestoreError> {
        let object = objects.get(run.object);
        let OpenObject { key, sealed } =
            object.ok_or_else(|| RestoreError::Inconsistent(format!("there is no object {}", run.object)))?;
        let Some(SealedObject { opener, begin, bytes }) = sealed else {
            let body = self.get(key, run.offset, run.stored).await?;
            return Ok(FetchedRun { key: key.clone(), body, sealed: None });
        };
        let (chunk, sealed_chunk) = (CHUNK_BYTES as u64, SEALED_CHUNK_BYTES as u64);
        let first_chunk = run.offset / chunk;
        let from = first_chunk * sealed_chunk;
        let to = (run.offset + run.stored).div_ceil(chunk).saturating_mul(sealed_chunk).min(*bytes);
        let body = self.get(key, begin + from, to.saturating_sub(from)).await?;
        let too_long = |_| RestoreError::Inconsistent("a run is too long".to_owned());
        let sealed = SealedRun {
            opener: Arc::clone(opener),
            first_chunk,
            ends: to == *bytes,
            skip: usize::try_from(run.offset % chunk).map_err(too_long)?,
            length: usize::try_from(run.stored).map_err(too_long)?,
        };
        Ok(FetchedRun { key: key.clone(), body, sealed: Some(sealed) })
    }

    async fn get(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, RestoreError> {
        self.store.get_range(key, offset, length).await.map_err(|error| match error {
            StoreError::NoSuchObject(key) => RestoreError::MissingObject(key),
            error => error.into(),
        })
    }
}

impl FetchedRun {
    /// The object's key and the run's frames, decrypted in the memory that they came in. Takes processor time.
    pub(super) fn open(self) -> Result<(String, Bytes), RestoreError> {
        let Self { key, body, sealed } = self;
        let Some(SealedRun { opener, first_chunk, ends, skip, length }) = sealed else { return Ok((key, body)) };
        let damaged = |problem| KeyError::Object { key: key.clone(), problem };
        let opened = Bytes::from(opener.open(first_chunk, ends, body.into()).map_err(damaged)?);
        if opened.len() < skip + length {
            return Err(damaged(AgeError::Truncated).into());
        }
        Ok((key, opened.slice(skip..skip + length)))
    }
}

//! Runs of frames out of objects, plain or encrypted. Of an age file only its header and the chunks around a run are fetched;
//! each chunk is proven to be the one of its place.

use std::sync::{Arc, Mutex, PoisonError};

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
    store: &'a ObjectStore,
    /// Key prefix of the backup.
    prefix: &'a str,
    /// None for a plain backup.
    keys: Option<&'a BackupKeys>,
    /// Memory of runs that were written: as many as were ever read at the same time.
    idle: Mutex<Vec<Vec<u8>>>,
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
    body: Vec<u8>,
    sealed: Option<SealedRun>,
}

/// A run that can be decoded.
pub(super) struct OpenRun {
    /// The object's key.
    pub(super) key: String,
    bytes: Vec<u8>,
    /// Where in them the run lies.
    skip: usize,
    length: usize,
}

struct SealedRun {
    opener: Arc<Opener>,
    first_chunk: u64,
    ends: bool,
    /// Where in the opened chunks the run lies.
    skip: usize,
    length: usize,
}

impl<'a> ArchiveSource<'a> {
    pub(super) fn new(store: &'a ObjectStore, prefix: &'a str, keys: Option<&'a BackupKeys>) -> Self {
        Self { store, prefix, keys, idle: Mutex::default() }
    }

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

    /// Takes back the memory of a run.
    pub(super) fn reuse(&self, memory: Vec<u8>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }

    async fn get(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, RestoreError> {
        let memory = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        self.store.get_range_in(key, offset, length, memory).await.map_err(|error| match error {
            StoreError::NoSuchObject(key) => RestoreError::MissingObject(key),
            error => error.into(),
        })
    }
}

impl FetchedRun {
    /// Decrypts the run in the memory that it came in. Takes processor time.
    pub(super) fn open(self) -> Result<OpenRun, RestoreError> {
        let Self { key, body, sealed } = self;
        let Some(SealedRun { opener, first_chunk, ends, skip, length }) = sealed else {
            return Ok(OpenRun { key, skip: 0, length: body.len(), bytes: body });
        };
        let damaged = |problem| KeyError::Object { key: key.clone(), problem };
        let bytes = opener.open(first_chunk, ends, body).map_err(damaged)?;
        if bytes.len() < skip + length {
            return Err(damaged(AgeError::Truncated).into());
        }
        Ok(OpenRun { key, bytes, skip, length })
    }
}

impl OpenRun {
    /// The run's frames.
    pub(super) fn frames(&self) -> &[u8] {
        self.bytes.get(self.skip..self.skip + self.length).unwrap_or_default()
    }

    pub(super) fn into_memory(self) -> Vec<u8> {
        self.bytes
    }
}

//! Reading objects: whole or in ranges, asked for again where the bytes break off, and never more of them than they may have.

use std::{collections::HashMap, time::Duration};

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;

use super::{ObjectStore, StoreError, StoreSource, classify::classify};

/// No object that is read whole is longer: a WAL segment of 1 GiB that does not compress, encrypted, is the longest.
pub const MAX_WHOLE_BYTES: u64 = (1 << 30) + (64 << 20);
/// A body that stops in the middle is asked for again this often.
const BODY_ATTEMPTS: usize = 5;
/// The body of one object or range must come within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(180);

/// What the store keeps beside an object.
type Metadata = HashMap<String, String>;

enum BodyError {
    Answer(StoreError),
    Broken(StoreSource),
    TooLong,
}

impl ObjectStore {
    /// Reads an object whole; `None` only when the store said that there is none.
    ///
    /// # Errors
    /// [`StoreError`]; also for one of more than [`MAX_WHOLE_BYTES`].
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.get_at_most(key, MAX_WHOLE_BYTES).await
    }

    /// As [`ObjectStore::get`], of an object that has no more than `limit` bytes: no more of it comes into memory.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Damaged`] for a longer one.
    pub async fn get_at_most(&self, key: &str, limit: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get_noted(key, limit, "").await?.map(|(body, _)| body))
    }

    /// As [`ObjectStore::get_at_most`], with an entry of the object's metadata, if it has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_noted(
        &self,
        key: &str,
        limit: u64,
        note: &str,
    ) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
        match self.read_body(key, None, limit, &Vec::new).await {
            Ok((body, mut metadata)) => Ok(Some((body.into(), metadata.remove(note)))),
            Err(StoreError::NoSuchObject(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads `length` bytes from `offset`.
    ///
    /// # Errors
    /// [`StoreError`]; also when the object is absent or shorter.
    pub async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.get_range_in(key, offset, length, Vec::new).await.map(Bytes::from)
    }

    /// As [`ObjectStore::get_range`], into memory that was used before: `memory` is asked for it at each attempt.
    ///
    /// # Errors
    /// As there.
    pub async fn get_range_in(
        &self,
        key: &str,
        offset: u64,
        length: u64,
        memory: impl Fn() -> Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        // A store that takes no notice of the range sends the whole object: no more than was asked for is taken.
        let range = format!("bytes={offset}-{}", offset.saturating_add(length - 1));
        let (body, _) = self.read_body(key, Some(range), length, &memory).await?;
        if body.len() as u64 == length {
            return Ok(body);
        }
        let problem = format!("{} bytes came instead of {length} at {offset}", body.len());
        Err(StoreError::Damaged { key: key.to_owned(), problem })
    }

    /// The bytes, no more than `limit`, and the metadata of an object.
    async fn read_body(
        &self,
        key: &str,
        range: Option<String>,
        limit: u64,
        memory: &impl Fn() -> Vec<u8>,
    ) -> Result<(Vec<u8>, Metadata), StoreError> {
        self.persevere(|| self.try_read_body(key, range.clone(), limit, memory)).await
    }

    async fn try_read_body(
        &self,
        key: &str,
        range: Option<String>,
        limit: u64,
        memory: &impl Fn() -> Vec<u8>,
    ) -> Result<(Vec<u8>, Metadata), StoreError> {
        let attempt = || async {
            let request = self.client.get_object().bucket(&self.bucket).key(key).set_range(range.clone());
            let answer =
                request.send().await.map_err(|error| BodyError::Answer(classify(self.request("GET", key), error)))?;
            collect(answer, limit, memory()).await
        };
        let pause = ExponentialBuilder::default().with_jitter().with_max_times(BODY_ATTEMPTS);
        // The SDK retries requests, but not a body that breaks off after a good answer.
        let result = attempt.retry(pause).when(|error| matches!(error, BodyError::Broken(_))).await;
        result.map_err(|error| match error {
            BodyError::Answer(error) => error,
            BodyError::TooLong => {
                StoreError::Damaged { key: key.to_owned(), problem: format!("more than {limit} bytes came") }
            }
            BodyError::Broken(source) => StoreError::Unreachable {
                endpoint: self.endpoint.clone(),
                what: format!("GET {}/{key}", self.bucket),
                reason: "the object's bytes broke off".to_owned(),
                source,
            },
        })
    }
}

/// Takes the body as it comes, and never more of it than was announced or is allowed, into this memory.
async fn collect(answer: GetObjectOutput, limit: u64, mut bytes: Vec<u8>) -> Result<(Vec<u8>, Metadata), BodyError> {
    let announced = answer.content_length().and_then(|length| u64::try_from(length).ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(BodyError::TooLong);
    }
    let metadata = answer.metadata.unwrap_or_default();
    let mut body = answer.body;
    bytes.clear();
    bytes.reserve_exact(usize::try_from(announced.unwrap_or_default()).unwrap_or_default());
    let read = async {
        while let Some(piece) = body.try_next().await.map_err(|error| BodyError::Broken(Box::new(error)))? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(BodyError::TooLong);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(())
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.map_err(|error| BodyError::Broken(Box::new(error)))??;
    match announced {
        Some(length) if length != bytes.len() as u64 => {
            Err(BodyError::Broken("the body is shorter than announced".into()))
        }
        _ => Ok((bytes, metadata)),
    }
}

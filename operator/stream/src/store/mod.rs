//! The object store: S3 with create-only writes, ranged reads, and multipart uploads that leave nothing behind.
//!
//! An absent object is only what the store itself called absent; every doubt is an error.

mod classify;
mod client;
mod credentials;
mod delete;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod multipart;
mod patience;
mod read;
mod time;
mod trust;

use std::{collections::HashMap, fmt::Debug, time::Duration};

use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use bytes::Bytes;
use jiff::Timestamp;
use pgherd_core::backup::StoreConfig;

use classify::{Request, classify, status};
pub use error::{StoreError, StoreSource};
pub use multipart::{MultipartUpload, PartBuffer, PartBuffers};
pub use patience::LONG_PATIENCE;
use patience::Patience;
pub use read::MAX_WHOLE_BYTES;

/// Whether a create-only write wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is new.
    Created,
    /// An object of this name existed and was left alone.
    Exists,
}

/// What a listing says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Option<Timestamp>,
}

/// A connection to one bucket. Cheap to clone; keys are whole keys, with the configured prefix.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    client: Client,
    bucket: String,
    endpoint: String,
    /// What is sent is encrypted and authenticated on its way.
    is_tls: bool,
    /// None for requests that are made anew soon by whoever wanted them.
    patience: Option<Patience>,
}

/// A store that cannot decide between two writers says so; it is asked again this often.
const CONFLICT_ATTEMPTS: usize = 5;

impl ObjectStore {
    /// Prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Config`] for an unusable endpoint or CA file, [`StoreError::CredentialsFile`] for unreadable
    /// credentials.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(Self {
            client: client::build_client(config)?,
            bucket: config.bucket.clone(),
            endpoint: config.endpoint.clone(),
            is_tls: config.endpoint.starts_with("https://"),
            patience: None,
        })
    }

    /// The same store, which takes a request for failed when no answer has begun within ten seconds.
    #[must_use]
    pub fn with_short_patience(&self) -> Self {
        let config = self.client.config().to_builder();
        let client = Client::from_conf(client::shorten_patience(config).build());
        Self { client, patience: None, ..self.clone() }
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Asks for one key of the bucket: it exists and the credentials are good. Answers within ten seconds.
    ///
    /// # Errors
    /// [`StoreError`] tells wrong credentials, a missing bucket, an unreachable store and a TLS failure apart.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).customize();
        let answer = request.config_override(client::shorten_patience(aws_sdk_s3::Config::builder())).send().await;
        answer.map(|_| ()).map_err(|error| classify(self.request("LIST", ""), error))
    }

    /// Writes an object only if there is none of this name.
    ///
    /// A repeated attempt whose first answer was lost finds its own object: whoever must tell that apart compares.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome, StoreError> {
        self.put_if_absent_noted(key, body, None).await
    }

    /// As [`ObjectStore::put_if_absent`], with an entry (name, value) of the object's metadata, which the store keeps beside it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_if_absent_noted(
        &self,
        key: &str,
        body: Bytes,
        note: Option<(&str, &str)>,
    ) -> Result<PutOutcome, StoreError> {
        let metadata = note.map(|(name, value)| HashMap::from([(name.to_owned(), value.to_owned())]));
        self.persevere(|| self.try_put_if_absent(key, body.clone(), metadata.clone())).await
    }

    async fn try_put_if_absent(
        &self,
        key: &str,
        body: Bytes,
        metadata: Option<HashMap<String, String>>,
    ) -> Result<PutOutcome, StoreError> {
        let mut attempt = 0;
        loop {
            let request = self.client.put_object().bucket(&self.bucket).key(key).if_none_match("*");
            let request = request.set_metadata(metadata.clone()).body(ByteStream::from(body.clone()));
            let error = match request.send().await {
                Ok(answer) => return require_etag(key, answer.e_tag()).map(|()| PutOutcome::Created),
                Err(error) => error,
            };
            match status(&error) {
                Some(412) => return Ok(PutOutcome::Exists),
                Some(409) if attempt < CONFLICT_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                }
                _ => return Err(classify(self.request("PUT", key), error)),
            }
        }
    }

    /// Writes an object, replacing any other.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let put = || async {
            let request = self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body.clone()));
            request.send().await.map_err(|error| classify(self.request("PUT", key), error))
        };
        require_etag(key, self.persevere(put).await?.e_tag())
    }

    /// An object's size in bytes; `None` only when the store said that there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.persevere(|| self.head_once(key)).await
    }

    async fn head_once(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => Ok(Some(u64::try_from(answer.content_length().unwrap_or(0)).unwrap_or(0))),
            // An answer to HEAD has no body, hence no code: a missing bucket looks the same.
            Err(error) if status(&error) == Some(404) => {
                self.probe().await?;
                Ok(None)
            }
            Err(error) => Err(classify(self.request("HEAD", key), error)),
        }
    }

    /// An entry of an object's metadata; `None` when there is no such entry, or no such object.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn head_note(&self, key: &str, name: &str) -> Result<Option<String>, StoreError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => Ok(answer.metadata().and_then(|metadata| metadata.get(name).cloned())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(classify(self.request("HEAD", key), error)),
        }
    }

    /// Keys and sizes below a prefix, sorted by key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let objects = self.list_objects(prefix).await?;
        Ok(objects.into_iter().map(|object| (object.key, object.size)).collect())
    }

    /// The objects below a prefix, sorted by key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_objects(&self, prefix: &str) -> Result<Vec<StoredObject>, StoreError> {
        self.persevere(|| self.try_list_objects(prefix)).await
    }

    async fn try_list_objects(&self, prefix: &str) -> Result<Vec<StoredObject>, StoreError> {
        let (mut objects, mut token) = (Vec::new(), None);
        loop {
            let (page, next) = self.observe_page(prefix, token).await?;
            objects.extend(page);
            if next.is_none() {
                break;
            }
            token = next;
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Keys and sizes below a prefix, as many as the store names at once: 1,000 at most. With what leads to the next ones, if there are any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_page(
        &self,
        prefix: &str,
        token: Option<String>,
    ) -> Result<(Vec<(String, u64)>, Option<String>), StoreError> {
        let (page, next) = self.observe_page(prefix, token).await?;
        Ok((page.into_iter().map(|object| (object.key, object.size)).collect(), next))
    }

    async fn observe_page(
        &self,
        prefix: &str,
        token: Option<String>,
    ) -> Result<(Vec<StoredObject>, Option<String>), StoreError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let page = request.set_continuation_token(token.clone()).send().await;
        let page = page.map_err(|error| classify(self.request("LIST", prefix), error))?;
        let describe = |object: &aws_sdk_s3::types::Object| {
            let size = u64::try_from(object.size().unwrap_or(0)).unwrap_or(0);
            let modified = object.last_modified().and_then(|time| Timestamp::from_second(time.secs()).ok());
            object.key().map(|key| StoredObject { key: key.to_owned(), size, modified })
        };
        let objects = page.contents().iter().filter_map(describe).collect();
        // A page that leads nowhere new is the last one.
        Ok((objects, page.next_continuation_token.filter(|next| !next.is_empty() && Some(next) != token.as_ref())))
    }

    /// Names of the "folders" directly below a prefix that ends with a slash (or is empty), without slashes, sorted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).delimiter("/");
        let mut pages = request.into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify(self.request("LIST", prefix), error))?;
            let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            names.extend(
                folders.filter_map(|folder| folder.strip_prefix(prefix)).map(|n| n.trim_end_matches('/').to_owned()),
            );
        }
        names.sort();
        Ok(names)
    }

    fn request<'a>(&'a self, verb: &'static str, key: &'a str) -> Request<'a> {
        Request { endpoint: &self.endpoint, bucket: &self.bucket, verb, key }
    }

    fn classify<E>(
        &self,
        verb: &'static str,
        key: &str,
        error: SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
    ) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + Debug + 'static,
    {
        classify(self.request(verb, key), error)
    }
}

/// What stands between here and the store can say 200 as well, but only a store that has the object names its ETag.
fn require_etag(key: &str, etag: Option<&str>) -> Result<(), StoreError> {
    let problem = || "its write was answered without an ETag".to_owned();
    etag.map(|_| ()).ok_or_else(|| StoreError::Damaged { key: key.to_owned(), problem: problem() })
}

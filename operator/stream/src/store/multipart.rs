//! Multipart uploads: parts go up concurrently out of a fixed set of buffers; an upload ends by [`MultipartUpload::complete`]
//! or must be aborted by [`MultipartUpload::abort`]. A process that dies leaves it open: see `abort_stale_uploads`.

use std::time::Duration;

use aws_sdk_s3::{
    operation::create_multipart_upload::CreateMultipartUploadOutput,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};

use super::{ObjectStore, StoreError};

/// How long an abort waits for parts on their way.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);
/// An upload that comes back is aborted this often.
const ABORT_ATTEMPTS: u32 = 5;

/// A fixed set of equal buffers. A buffer that was sent comes back when its request is done, so uploads that are slower
/// than their source make the source wait.
#[derive(Debug)]
pub struct PartBuffers {
    free: mpsc::Receiver<Vec<u8>>,
    home: mpsc::Sender<Vec<u8>>,
    part_bytes: usize,
}

impl PartBuffers {
    /// `count` buffers of `part_bytes`; memory is touched only when it is used.
    #[must_use]
    pub fn new(count: usize, part_bytes: usize) -> Self {
        let (home, free) = mpsc::channel(count.max(1));
        for _ in 0..count.max(1) {
            let _ = home.try_send(Vec::with_capacity(part_bytes));
        }
        Self { free, home, part_bytes }
    }

    /// Bytes of a full buffer.
    #[must_use]
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    /// Says, also from elsewhere, whether every buffer is in use.
    pub fn gauge(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let home = self.home.clone();
        // What is in the channel is free.
        move || home.capacity() == home.max_capacity()
    }

    /// Waits for a free buffer.
    pub async fn take(&mut self) -> PartBuffer {
        // The channel cannot close: `self` holds a sender.
        let bytes = self.free.recv().await.unwrap_or_default();
        PartBuffer { bytes, limit: self.part_bytes, home: self.home.clone() }
    }
}

/// A buffer that is being filled. Dropping it, or the [`Bytes`] made of it, frees it.
#[derive(Debug)]
pub struct PartBuffer {
    bytes: Vec<u8>,
    limit: usize,
    home: mpsc::Sender<Vec<u8>>,
}

impl PartBuffer {
    /// Takes as many bytes from the front of `input` as fit.
    pub fn fill(&mut self, input: &mut &[u8]) {
        let (now, later) = input.split_at((self.limit - self.bytes.len()).min(input.len()));
        self.bytes.extend_from_slice(now);
        *input = later;
    }

    /// Nothing more fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.limit
    }

    /// Nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its bytes, without copying them; the buffer is free again when the last clone is dropped.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PartBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PartBuffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        // Fails only when the set itself is gone.
        let _ = self.home.try_send(bytes);
    }
}

/// What the store compares a part with before it takes it, wherever TLS ended on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartProof {
    /// The SHA-256 in the request's signature, which costs both sides a tenth of a backup's processor time.
    Signature,
    /// A CRC32C beside it; only of a store that promised to compare it.
    Crc32c,
}

/// An upload in parts.
#[derive(Debug)]
pub struct MultipartUpload {
    store: ObjectStore,
    key: String,
    upload_id: String,
    proof: PartProof,
    concurrency: usize,
    next_part: i32,
    bytes: u64,
    running: JoinSet<Result<CompletedPart, StoreError>>,
    done: Vec<CompletedPart>,
}

impl MultipartUpload {
    /// Begins an upload with at most `concurrency` parts on their way.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin(store: &ObjectStore, key: &str, concurrency: usize) -> Result<Self, StoreError> {
        let answer = store.persevere(|| store.begin_upload(key)).await?;
        let upload_id = answer.upload_id().unwrap_or_default().to_owned();
        let promised = answer.checksum_algorithm() == Some(&ChecksumAlgorithm::Crc32C);
        Ok(Self {
            store: store.clone(),
            key: key.to_owned(),
            upload_id,
            proof: if promised { PartProof::Crc32c } else { PartProof::Signature },
            concurrency: concurrency.max(1),
            next_part: 1,
            bytes: 0,
            running: JoinSet::new(),
            done: Vec::new(),
        })
    }

    /// Sends the next part; waits while `concurrency` parts are on their way. All but the last must have at least 5 MiB.
    ///
    /// # Errors
    /// [`StoreError`] of this or an earlier part.
    pub async fn push_part(&mut self, body: Bytes) -> Result<(), StoreError> {
        while self.running.len() >= self.concurrency {
            self.wait_for_part().await?;
        }
        let number = self.next_part;
        self.next_part += 1;
        self.bytes += body.len() as u64;
        let (store, key, upload_id, proof) = (self.store.clone(), self.key.clone(), self.upload_id.clone(), self.proof);
        self.running.spawn(async move {
            let sum = (proof == PartProof::Crc32c).then(|| BASE64_STANDARD.encode(crc32c::crc32c(&body).to_be_bytes()));
            let send = || async {
                let request = store.client.upload_part().bucket(&store.bucket).key(&key).upload_id(&upload_id);
                let request = request.part_number(number).set_checksum_crc32_c(sum.clone());
                let request = request.body(ByteStream::from(body.clone())).customize();
                let request = if sum.is_some() { request.disable_payload_signing() } else { request };
                request.send().await.map_err(|error| store.classify("UPLOAD PART", &key, error))
            };
            let answer = store.persevere(send).await?;
            super::require_etag(&key, answer.e_tag())?;
            let part = CompletedPart::builder().part_number(number).set_checksum_crc32_c(sum.clone());
            Ok(part.set_e_tag(answer.e_tag().map(str::to_owned)).build())
        });
        Ok(())
    }

    async fn wait_for_part(&mut self) -> Result<(), StoreError> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Ok(part)) => {
                self.done.push(part?);
                Ok(())
            }
            Some(Err(error)) => Err(StoreError::Other {
                what: format!("UPLOAD PART {}", self.key),
                code: "task".to_owned(),
                message: error.to_string(),
                passing: false,
            }),
        }
    }

    /// Waits for all parts, makes the object appear and checks its size.
    ///
    /// # Errors
    /// [`StoreError`], then the upload is still open: abort it.
    pub async fn complete(&mut self) -> Result<u64, StoreError> {
        while !self.running.is_empty() {
            self.wait_for_part().await?;
        }
        self.done.sort_by_key(|part| part.part_number());
        self.store.persevere(|| self.try_complete()).await
    }

    async fn try_complete(&self) -> Result<u64, StoreError> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.done.clone())).build();
        let request = self.store.client.complete_multipart_upload().bucket(&self.store.bucket).key(&self.key);
        let answer = request.upload_id(&self.upload_id).multipart_upload(parts).send().await;
        let failure = match answer {
            Ok(answer) if answer.e_tag().is_some() => None,
            Ok(_) => Some(self.damaged("its completion was answered without an ETag")),
            Err(error) => Some(self.store.classify("COMPLETE UPLOAD", &self.key, error)),
        };
        // A completion whose answer was lost has happened all the same: the object's size tells.
        match (self.store.head_once(&self.key).await?, failure) {
            (Some(size), _) if size == self.bytes => Ok(size),
            (_, Some(failure)) => Err(failure),
            (size, None) => Err(self.damaged(&format!("{size:?} bytes instead of {}", self.bytes))),
        }
    }

    fn damaged(&self, problem: &str) -> StoreError {
        StoreError::Damaged { key: self.key.clone(), problem: problem.to_owned() }
    }

    /// Whether the store still lists it: then nobody has aborted it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_open(&self) -> Result<bool, StoreError> {
        Ok(self.store.list_uploads(&self.key).await?.contains(&self.upload_id))
    }

    /// Lets the parts on their way arrive, for a moment, and removes what was uploaded. An upload that is gone already is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort(mut self) -> Result<(), StoreError> {
        // A part that arrives after the abort stays, and some stores go on with one whose connection was closed.
        let arrive = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(ARRIVAL_TIMEOUT, arrive).await.is_err() {
            self.running.shutdown().await;
        }
        self.store.abort_upload(&self.key, &self.upload_id).await
    }
}

impl ObjectStore {
    /// Begins an upload. Over TLS it asks for parts with a CRC32C: a store that knows it says so in its answer, others take no notice or refuse.
    async fn begin_upload(&self, key: &str) -> Result<CreateMultipartUploadOutput, StoreError> {
        if self.is_tls {
            match self.try_begin_upload(key, Some(ChecksumAlgorithm::Crc32C)).await {
                Err(StoreError::Other { passing: false, code, .. }) => {
                    tracing::debug!(key, code, "the store takes no CRC32C for parts: their bodies are signed");
                }
                outcome => return outcome,
            }
        }
        self.try_begin_upload(key, None).await
    }

    async fn try_begin_upload(
        &self,
        key: &str,
        sum: Option<ChecksumAlgorithm>,
    ) -> Result<CreateMultipartUploadOutput, StoreError> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(key).set_checksum_algorithm(sum);
        request.send().await.map_err(|error| self.classify("BEGIN UPLOAD", key, error))
    }

    /// Aborts every open multipart upload of exactly these keys; returns how many there were. (MinIO lists uploads by exact
    /// key only.)
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort_stale_uploads(&self, keys: &[String]) -> Result<usize, StoreError> {
        let mut aborted = 0;
        for key in keys {
            for upload_id in self.list_uploads(key).await? {
                self.abort_upload(key, &upload_id).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }

    /// Ids of the open multipart uploads of exactly this key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_uploads(&self, key: &str) -> Result<Vec<String>, StoreError> {
        let mut ids = Vec::new();
        let (mut after_key, mut after_id) = (None, None);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(key);
            let request = request.set_key_marker(after_key.clone()).set_upload_id_marker(after_id.clone());
            let answer = request.send().await.map_err(|error| self.classify("LIST UPLOADS", key, error))?;
            let exact = answer.uploads().iter().filter(|upload| upload.key() == Some(key));
            ids.extend(exact.filter_map(|upload| upload.upload_id().map(str::to_owned)));
            let next = (answer.next_key_marker, answer.next_upload_id_marker);
            // A page that leads nowhere new is the last one.
            if answer.is_truncated != Some(true) || next.0.is_none() || next == (after_key, after_id) {
                return Ok(ids);
            }
            (after_key, after_id) = next;
        }
    }

    /// Aborts until the store does not list it any more: where a part was on its way, S3 asks for that.
    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        for attempt in 0..ABORT_ATTEMPTS {
            let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload_id);
            match request.send().await {
                Ok(_) => {}
                Err(error) if super::status(&error) == Some(404) => {}
                Err(error) => return Err(self.classify("ABORT UPLOAD", key, error)),
            }
            if !self.list_uploads(key).await?.iter().any(|found| found == upload_id) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        }
        Err(StoreError::Damaged {
            key: key.to_owned(),
            problem: "its upload is listed after it was aborted".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::{FakeStore, SumSupport};

    /// How a part comes to a store.
    async fn upload(support: SumSupport, is_tls: bool) -> (Option<String>, String) {
        let fake = FakeStore::start();
        fake.set_sum_support(support);
        let store = ObjectStore { is_tls, ..fake.connect().await };
        let mut upload = MultipartUpload::begin(&store, "key", 1).await.unwrap();
        upload.push_part(Bytes::from_static(b"123456789")).await.unwrap();
        upload.complete().await.unwrap();
        let mut parts = fake.part_proofs();
        assert_eq!(parts.len(), 1);
        parts.remove(0)
    }

    #[tokio::test]
    async fn a_part_has_a_checksum_where_the_store_promised_to_compare_it_and_is_signed_otherwise() {
        let signed = (None, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225".to_owned());
        for support in [SumSupport::Ignored, SumSupport::Refused] {
            assert_eq!(upload(support, true).await, signed, "{support:?}");
        }
        // Without TLS nothing but the signature keeps anybody from changing both.
        assert_eq!(upload(SumSupport::Compared, false).await, signed);
        // The check value of CRC-32C, 0xE3069283, as S3 writes it.
        let summed = (Some("4waSgw==".to_owned()), "UNSIGNED-PAYLOAD".to_owned());
        assert_eq!(upload(SumSupport::Compared, true).await, summed);
    }
}

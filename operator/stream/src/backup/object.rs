//! The objects of a backup, one after the other, out of one set of part buffers. Where there are recipients, each is an age file of
//! its own.

use std::sync::Arc;

use tokio::sync::watch;

use super::{BackupError, BackupProgress};
use crate::{
    age::{MAX_HEADER_BYTES, Recipient, Sealer, sealed_bytes},
    store::{MultipartUpload, ObjectStore, PartBuffer, PartBuffers},
};

/// However many parts it may have: 8 GiB. With the defaults it is 4.9 GiB long.
const MAX_OBJECT_BYTES: u64 = 8 << 30;

/// Writes objects. Whoever has it ends it by [`Self::finish`] or [`Self::abort`]: a multipart upload must not stay open.
pub(super) struct ObjectWriter {
    pub(super) store: ObjectStore,
    /// For whom the objects are encrypted; nobody for plain ones.
    pub(super) recipients: Vec<Recipient>,
    /// Parts on their way at the same time.
    pub(super) concurrency: usize,
    pub(super) buffers: PartBuffers,
    /// Parts of an object at most.
    pub(super) max_parts: u64,
    pub(super) progress: Arc<watch::Sender<BackupProgress>>,
    pub(super) open: Option<OpenObject>,
}

/// One object on its way. It becomes a multipart upload only when the first part is full.
pub(super) struct OpenObject {
    key: String,
    upload: Option<MultipartUpload>,
    buffer: Option<PartBuffer>,
    sealer: Option<Sealer>,
    /// Bytes that were written.
    plain: u64,
    /// Bytes given to parts.
    bytes: u64,
}

impl OpenObject {
    /// How long it is when `more` bytes follow and then its end.
    fn foretell_bytes(&self, more: u64) -> u64 {
        let plain = self.plain + more;
        // A header is well below the part size, and the limit is whole parts.
        if self.sealer.is_some() { sealed_bytes(plain) + MAX_HEADER_BYTES as u64 } else { plain }
    }
}

impl ObjectWriter {
    /// Names are others then.
    pub(super) fn is_sealing(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// The open object would be too long with `more` bytes.
    pub(super) fn is_full(&self, more: u64) -> bool {
        let limit = MAX_OBJECT_BYTES.min((self.buffers.part_bytes() as u64).saturating_mul(self.max_parts));
        self.open.as_ref().is_some_and(|object| object.foretell_bytes(more) > limit)
    }

    /// Opens an object, with the header of an age file if it is to be one.
    pub(super) async fn begin(&mut self, key: String) -> Result<(), BackupError> {
        let mut object = OpenObject { key, upload: None, buffer: None, sealer: None, plain: 0, bytes: 0 };
        let mut header = Vec::new();
        if self.is_sealing() {
            let (sealer, bytes) = Sealer::begin(&self.recipients)?;
            (object.sealer, header) = (Some(sealer), bytes);
        }
        self.open = Some(object);
        self.fill(&header).await
    }

    /// Writes to the open object.
    pub(super) async fn write(&mut self, mut input: &[u8]) -> Result<(), BackupError> {
        let Some(object) = &mut self.open else { return Err(BackupError::Interrupted) };
        object.plain += input.len() as u64;
        let Some(mut sealer) = object.sealer.take() else { return self.fill(input).await };
        while let Some(chunk) = sealer.push(&mut input)? {
            self.fill(chunk).await?;
        }
        if let Some(object) = &mut self.open {
            object.sealer = Some(sealer);
        }
        Ok(())
    }

    /// Puts bytes into parts, and sends those that are full and not the last.
    async fn fill(&mut self, mut input: &[u8]) -> Result<(), BackupError> {
        let Some(object) = &mut self.open else { return Err(BackupError::Interrupted) };
        object.bytes += input.len() as u64;
        while !input.is_empty() {
            let buffer = match object.buffer.take() {
                Some(buffer) if buffer.is_full() => {
                    object.send_part(buffer, &self.store, self.concurrency, &self.progress).await?;
                    None
                }
                other => other,
            };
            let mut buffer = match buffer {
                Some(buffer) => buffer,
                None => self.buffers.take().await,
            };
            buffer.fill(&mut input);
            object.buffer = Some(buffer);
        }
        Ok(())
    }

    /// Sends the rest of the open object and makes it appear; returns its bytes as they are stored. On failure it stays, to be aborted.
    pub(super) async fn finish(&mut self) -> Result<u64, BackupError> {
        let sealer = self.open.as_mut().and_then(|object| object.sealer.take());
        if let Some(mut sealer) = sealer {
            self.fill(sealer.finish()?).await?;
        }
        let Some(object) = &mut self.open else { return Err(BackupError::Interrupted) };
        let rest = object.buffer.take();
        let rest_bytes = rest.as_ref().map_or(0, |buffer| buffer.as_ref().len() as u64);
        match (&mut object.upload, rest) {
            (None, Some(buffer)) => self.store.put(&object.key, buffer.into_bytes()).await?,
            (None, None) => {}
            (Some(upload), rest) => {
                if let Some(buffer) = rest {
                    upload.push_part(buffer.into_bytes()).await?;
                }
                upload.complete().await?;
            }
        }
        let bytes = object.bytes;
        self.open = None;
        self.progress.send_modify(|progress| progress.stored_bytes += rest_bytes);
        Ok(bytes)
    }

    /// Gives up what is unfinished, if anything is.
    pub(super) async fn abort(&mut self) {
        if let Some(upload) = self.open.take().and_then(|object| object.upload)
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(error = %error, "aborting an upload failed");
        }
    }
}

impl OpenObject {
    async fn send_part(
        &mut self,
        buffer: PartBuffer,
        store: &ObjectStore,
        concurrency: usize,
        progress: &watch::Sender<BackupProgress>,
    ) -> Result<(), BackupError> {
        if self.upload.is_none() {
            self.upload = Some(MultipartUpload::begin(store, &self.key, concurrency).await?);
        }
        let bytes = buffer.as_ref().len() as u64;
        if let Some(upload) = &mut self.upload {
            upload.push_part(buffer.into_bytes()).await?;
        }
        progress.send_modify(|progress| progress.stored_bytes += bytes);
        Ok(())
    }
}

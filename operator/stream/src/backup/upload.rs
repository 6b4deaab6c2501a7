//! Frames into objects: parts are filled from frames and sent concurrently; an object ends at a frame's border. Where there are
//! recipients, each object is an age file of its own.
//!
//! This side cleans up after itself: whatever ends it, no multipart upload stays open that it knows of.

use std::sync::Arc;

use pgherd_core::compression::LevelCount;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{BackupError, BackupProgress, render_stored_name};
use crate::{
    age::{MAX_HEADER_BYTES, Recipient, Sealer, sealed_bytes},
    frames::{Frame, FrameItem, FrameReader},
    store::{MultipartUpload, ObjectStore, PartBuffer, PartBuffers},
};

/// An object is at most 1000 parts (some stores take no more) and 8 GiB long: 4.9 GiB with the default part size.
const MAX_OBJECT_BYTES: u64 = 8 << 30;
const MAX_PARTS: u64 = 1000;

/// What was stored of one archive.
#[derive(Debug, Default)]
pub(super) struct StoredArchive {
    /// For each object its frames: stored and decoded bytes.
    pub(super) segments: Vec<Vec<(u32, u32)>>,
    /// Bytes of each object, as stored.
    pub(super) sizes: Vec<u64>,
}

/// What was stored of all archives.
#[derive(Debug, Default)]
pub(super) struct StoredBackup {
    pub(super) archives: Vec<StoredArchive>,
    /// Of all frames.
    pub(super) levels: LevelCount,
}

/// Uploads what comes out of a frame pipeline.
pub(super) struct Uploader {
    pub(super) store: ObjectStore,
    /// Key prefix of the backup, with a slash at its end.
    pub(super) prefix: String,
    /// For whom the objects are encrypted; nobody for plain ones.
    pub(super) recipients: Vec<Recipient>,
    pub(super) concurrency: usize,
    pub(super) progress: Arc<watch::Sender<BackupProgress>>,
    /// Ends the upload early.
    pub(super) cancel: CancellationToken,
}

/// Name of an archive's object.
pub(crate) fn render_object_name(archive: &str, number: usize, sealed: bool) -> String {
    render_stored_name(&format!("{archive}.tar.zst.{number:04}"), sealed)
}

/// One object on its way. It becomes a multipart upload only when the first part is full.
struct OpenObject {
    key: String,
    upload: Option<MultipartUpload>,
    buffer: Option<PartBuffer>,
    sealer: Option<Sealer>,
    /// Bytes of its frames.
    plain: u64,
    /// Bytes given to parts.
    bytes: u64,
}

impl OpenObject {
    /// How long it is when frames of `more` bytes follow and then its end.
    fn foretell_bytes(&self, more: u64) -> u64 {
        let plain = self.plain + more;
        // A header is well below the part size, and the limit is whole parts.
        if self.sealer.is_some() { sealed_bytes(plain) + MAX_HEADER_BYTES as u64 } else { plain }
    }
}

impl Uploader {
    /// Runs until the pipeline ends.
    pub(super) async fn run(self, mut frames: FrameReader, buffers: PartBuffers) -> Result<StoredBackup, BackupError> {
        let mut state = State { buffers, open: None, archive: None, done: StoredBackup::default() };
        let cancel = self.cancel.clone();
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(BackupError::Cancelled),
            result = self.take_frames(&mut frames, &mut state) => result,
        };
        // An unfinished object is still here exactly when something failed.
        if let Some(upload) = state.open.take().and_then(|object| object.upload)
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(error = %error, "aborting an upload failed");
        }
        result.map(|()| state.done)
    }

    async fn take_frames(&self, frames: &mut FrameReader, state: &mut State) -> Result<(), BackupError> {
        while let Some(item) = frames.next().await? {
            match item {
                FrameItem::BeginArchive(name) => state.archive = Some((name, StoredArchive::default())),
                FrameItem::Frame(frame) => self.store_frame(&frame, state).await?,
                FrameItem::EndArchive => {
                    self.finish_object(state).await?;
                    state.done.archives.extend(state.archive.take().map(|(_, stored)| stored));
                }
            }
        }
        // The writer is gone: in the middle of an archive it has failed, and says why itself.
        if state.archive.is_some() { Err(BackupError::Interrupted) } else { Ok(()) }
    }

    async fn store_frame(&self, frame: &Frame, state: &mut State) -> Result<(), BackupError> {
        let length = frame.bytes().len() as u64;
        let limit = MAX_OBJECT_BYTES.min(state.buffers.part_bytes() as u64 * MAX_PARTS);
        if state.open.as_ref().is_some_and(|object| object.foretell_bytes(length) > limit) {
            self.finish_object(state).await?;
        }
        if state.open.is_none() {
            self.begin_object(state).await?;
        }
        state.done.levels.note(frame.level());
        let State { buffers, open, archive, .. } = state;
        let (Some(object), Some((_, stored))) = (open, archive) else { return Err(BackupError::Interrupted) };
        let entry = (u32::try_from(length).unwrap_or(u32::MAX), u32::try_from(frame.input_bytes()).unwrap_or(u32::MAX));
        stored.segments.last_mut().into_iter().for_each(|segment| segment.push(entry));
        object.plain += length;
        let mut input = frame.bytes();
        let Some(mut sealer) = object.sealer.take() else { return self.fill(object, buffers, input).await };
        while let Some(chunk) = sealer.push(&mut input)? {
            self.fill(object, buffers, chunk).await?;
        }
        object.sealer = Some(sealer);
        Ok(())
    }

    /// Opens the next object of the archive, with the header of an age file if it is to be one.
    async fn begin_object(&self, state: &mut State) -> Result<(), BackupError> {
        let State { buffers, open, archive, .. } = state;
        let Some((name, stored)) = archive else { return Err(BackupError::Interrupted) };
        let sealed = !self.recipients.is_empty();
        let key = format!("{}{}", self.prefix, render_object_name(name, stored.segments.len(), sealed));
        stored.segments.push(Vec::new());
        let object = open.insert(OpenObject { key, upload: None, buffer: None, sealer: None, plain: 0, bytes: 0 });
        if sealed {
            let (sealer, header) = Sealer::begin(&self.recipients)?;
            object.sealer = Some(sealer);
            self.fill(object, buffers, &header).await?;
        }
        Ok(())
    }

    /// Puts bytes into parts, and sends those that are full and not the last.
    async fn fill(
        &self,
        object: &mut OpenObject,
        buffers: &mut PartBuffers,
        mut input: &[u8],
    ) -> Result<(), BackupError> {
        object.bytes += input.len() as u64;
        while !input.is_empty() {
            let buffer = match object.buffer.take() {
                Some(buffer) if buffer.is_full() => {
                    self.send_part(object, buffer).await?;
                    None
                }
                other => other,
            };
            let mut buffer = match buffer {
                Some(buffer) => buffer,
                None => buffers.take().await,
            };
            buffer.fill(&mut input);
            object.buffer = Some(buffer);
        }
        Ok(())
    }

    async fn send_part(&self, object: &mut OpenObject, buffer: PartBuffer) -> Result<(), BackupError> {
        if object.upload.is_none() {
            object.upload = Some(MultipartUpload::begin(&self.store, &object.key, self.concurrency).await?);
        }
        let bytes = buffer.as_ref().len() as u64;
        if let Some(upload) = &mut object.upload {
            upload.push_part(buffer.into_bytes()).await?;
        }
        self.progress.send_modify(|progress| progress.stored_bytes += bytes);
        Ok(())
    }

    /// Sends the rest of the open object and makes it appear. On failure the object stays in the state to be aborted.
    async fn finish_object(&self, state: &mut State) -> Result<(), BackupError> {
        let State { buffers, open, archive, .. } = state;
        let (Some(object), Some((_, stored))) = (open, archive) else { return Ok(()) };
        if let Some(mut sealer) = object.sealer.take() {
            self.fill(object, buffers, sealer.finish()?).await?;
        }
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
        stored.sizes.push(object.bytes);
        state.open = None;
        self.progress.send_modify(|progress| progress.stored_bytes += rest_bytes);
        Ok(())
    }
}

struct State {
    buffers: PartBuffers,
    open: Option<OpenObject>,
    archive: Option<(String, StoredArchive)>,
    done: StoredBackup,
}

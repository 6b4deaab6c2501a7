//! Frames into objects: an object ends at a frame's border.
//!
//! This side cleans up after itself: whatever ends it, no multipart upload stays open that it knows of.

use pgherd_core::compression::LevelCount;
use tokio_util::sync::CancellationToken;

use super::{BackupError, object::ObjectWriter, render_stored_name};
use crate::frames::{Frame, FrameItem, FrameReader};

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
    pub(super) objects: ObjectWriter,
    /// Key prefix of the backup, with a slash at its end.
    pub(super) prefix: String,
    /// Ends the upload early.
    pub(super) cancel: CancellationToken,
    pub(super) archive: Option<(String, StoredArchive)>,
    pub(super) done: StoredBackup,
}

/// Name of an archive's object.
pub(crate) fn render_object_name(archive: &str, number: usize, sealed: bool) -> String {
    render_stored_name(&format!("{archive}.tar.zst.{number:04}"), sealed)
}

impl Uploader {
    /// Runs until the pipeline ends; gives back what wrote the objects.
    pub(super) async fn run(mut self, mut frames: FrameReader) -> Result<(StoredBackup, ObjectWriter), BackupError> {
        let cancel = self.cancel.clone();
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(BackupError::Cancelled),
            result = self.take_frames(&mut frames) => result,
        };
        // An unfinished object is still there exactly when something failed.
        self.objects.abort().await;
        result.map(|()| (self.done, self.objects))
    }

    async fn take_frames(&mut self, frames: &mut FrameReader) -> Result<(), BackupError> {
        while let Some(item) = frames.next().await? {
            match item {
                FrameItem::BeginArchive(name) => self.archive = Some((name, StoredArchive::default())),
                FrameItem::Frame(frame) => self.store_frame(&frame).await?,
                FrameItem::EndArchive => {
                    self.finish_object().await?;
                    self.done.archives.extend(self.archive.take().map(|(_, stored)| stored));
                }
            }
        }
        // The writer is gone: in the middle of an archive it has failed, and says why itself.
        if self.archive.is_some() { Err(BackupError::Interrupted) } else { Ok(()) }
    }

    async fn store_frame(&mut self, frame: &Frame) -> Result<(), BackupError> {
        let length = frame.bytes().len() as u64;
        if self.objects.is_full(length) {
            self.finish_object().await?;
        }
        let Some((name, stored)) = &mut self.archive else { return Err(BackupError::Interrupted) };
        if self.objects.open.is_none() {
            let name = render_object_name(name, stored.segments.len(), self.objects.is_sealing());
            stored.segments.push(Vec::new());
            self.objects.begin(format!("{}{name}", self.prefix)).await?;
        }
        self.done.levels.note(frame.level());
        let entry = (u32::try_from(length).unwrap_or(u32::MAX), u32::try_from(frame.input_bytes()).unwrap_or(u32::MAX));
        stored.segments.last_mut().into_iter().for_each(|segment| segment.push(entry));
        self.objects.write(frame.bytes()).await
    }

    async fn finish_object(&mut self) -> Result<(), BackupError> {
        if self.objects.open.is_some()
            && let Some((_, stored)) = &mut self.archive
        {
            stored.sizes.push(self.objects.finish().await?);
        }
        Ok(())
    }
}

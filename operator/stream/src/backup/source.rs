//! The stream from the source: archives pass through the tar scanner into the frame pipeline; the manifest, and what the index says of
//! each file, are kept compressed.
//!
//! It is complete only when the server said so after everything else ([`BaseBackupEvent::End`]).

use std::{io::Write, sync::Arc};

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{BackupError, BackupProgress, finish::render_data_path, stream::Stream};
use crate::{
    base_backup::BaseBackupEvent,
    frames::FrameWriter,
    index::{EntriesWriter, IndexEntry},
    manifest::{FilesSummary, ManifestFile, render_hex},
    spool::{Spool, SpoolWriter},
    tar::{TarKind, TarPiece, TarScanner},
};

/// A manifest larger than this is refused: about three million files.
const MAX_MANIFEST_BYTES: usize = 512 << 20;
/// Progress is told in steps of this many bytes.
const PROGRESS_STEP: u64 = 1 << 20;

/// What passed of one archive.
#[derive(Debug)]
pub(super) struct ScannedArchive {
    /// `base` or the tablespace's OID.
    pub(super) name: String,
    /// Where the tablespace was; empty for `base`.
    pub(super) path: String,
    /// As the index has them.
    pub(super) entries: Spool,
    pub(super) tar_bytes: u64,
}

/// What passed of the whole backup.
#[derive(Debug)]
pub(super) struct ScannedBackup {
    pub(super) archives: Vec<ScannedArchive>,
    pub(super) files: FilesSummary,
    pub(super) manifest: Spool,
    pub(super) manifest_sha256: String,
    pub(super) stop_lsn: Lsn,
    pub(super) stop_timeline: TimelineId,
}

struct OpenArchive {
    name: String,
    path: String,
    scanner: TarScanner,
    entries: EntriesWriter,
    /// A file whose content passes.
    file: Option<IndexEntry>,
}

/// What is known of all archives so far.
#[derive(Default)]
struct Scanned {
    archives: Vec<ScannedArchive>,
    files: FilesSummary,
}

/// The manifest so far.
struct OpenManifest {
    text: SpoolWriter,
    sum: Sha256,
    bytes: usize,
}

/// Reads everything after [`BaseBackupEvent::Start`] and feeds the pipeline.
pub(super) async fn read_backup(
    stream: &mut Stream,
    mut frames: FrameWriter,
    progress: &Arc<watch::Sender<BackupProgress>>,
) -> Result<ScannedBackup, BackupError> {
    let mut scanned = Scanned::default();
    let mut open: Option<OpenArchive> = None;
    let mut manifest = OpenManifest::begin()?;
    let mut untold = 0;
    loop {
        match stream.next().await? {
            BaseBackupEvent::Start { .. } => return Err(BackupError::Interrupted),
            BaseBackupEvent::Progress(_) => {}
            BaseBackupEvent::Archive { name, path } => {
                scanned.finish_archive(&mut open, &mut frames).await?;
                let name = parse_archive_name(&name)?;
                frames.begin_archive(&name).await?;
                let (scanner, entries) = (TarScanner::new(), EntriesWriter::begin()?);
                open = Some(OpenArchive { name, path, scanner, entries, file: None });
            }
            BaseBackupEvent::Data(data) => {
                let Some(archive) = &mut open else { return Err(BackupError::Interrupted) };
                scanned.scan(archive, &data)?;
                frames.write(&data).await?;
                untold += data.len() as u64;
                if untold >= PROGRESS_STEP {
                    progress.send_modify(|progress| progress.bytes_done += untold);
                    untold = 0;
                }
            }
            BaseBackupEvent::Manifest(data) => {
                scanned.finish_archive(&mut open, &mut frames).await?;
                manifest.push(&data)?;
            }
            BaseBackupEvent::End { stop_lsn, timeline } => {
                scanned.finish_archive(&mut open, &mut frames).await?;
                progress.send_modify(|progress| progress.bytes_done += untold);
                let Scanned { archives, files } = scanned;
                let (manifest, manifest_sha256) = manifest.finish()?;
                let stop_timeline = timeline;
                return Ok(ScannedBackup { archives, files, manifest, manifest_sha256, stop_lsn, stop_timeline });
            }
        }
    }
}

impl OpenManifest {
    fn begin() -> Result<Self, BackupError> {
        Ok(Self { text: Spool::writer().map_err(BackupError::Spool)?, sum: Sha256::new(), bytes: 0 })
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), BackupError> {
        self.bytes += piece.len();
        if self.bytes > MAX_MANIFEST_BYTES {
            return Err(BackupError::ManifestTooLarge(MAX_MANIFEST_BYTES));
        }
        self.sum.update(piece);
        self.text.write_all(piece).map_err(BackupError::Spool)
    }

    /// The text and its SHA-256.
    fn finish(self) -> Result<(Spool, String), BackupError> {
        Ok((self.text.finish().map_err(BackupError::Spool)?, render_hex(&self.sum.finalize())))
    }
}

impl Scanned {
    fn scan(&mut self, archive: &mut OpenArchive, mut data: &[u8]) -> Result<(), BackupError> {
        while let Some(piece) = archive.scanner.next(&mut data)? {
            match piece {
                TarPiece::Entry(entry) if entry.kind == TarKind::File => archive.file = Some(IndexEntry::new(entry)),
                TarPiece::Entry(entry) => archive.entries.push(&IndexEntry::new(entry))?,
                TarPiece::Data(_) => {}
                TarPiece::EndOfFile { crc32c } => {
                    let Some(entry) = archive.file.take() else { return Err(BackupError::Interrupted) };
                    let entry = IndexEntry { crc32c, ..entry };
                    archive.entries.push(&entry)?;
                    let path = render_data_path(&archive.name, &entry.path);
                    self.files.add(ManifestFile { path, size: entry.size, crc32c: Some(crc32c) });
                }
            }
        }
        Ok(())
    }

    async fn finish_archive(
        &mut self,
        open: &mut Option<OpenArchive>,
        frames: &mut FrameWriter,
    ) -> Result<(), BackupError> {
        if let Some(OpenArchive { name, path, scanner, entries, file: _ }) = open.take() {
            let tar_bytes = scanner.position();
            scanner.finish()?;
            frames.end_archive().await?;
            self.archives.push(ScannedArchive { name, path, entries: entries.finish()?, tar_bytes });
        }
        Ok(())
    }
}

/// `base.tar` or `<oid>.tar`: nothing else may become part of an object's key.
fn parse_archive_name(name: &str) -> Result<String, BackupError> {
    let stem = name.strip_suffix(".tar").filter(|stem| *stem == "base" || stem.parse::<u32>().is_ok());
    stem.map(str::to_owned).ok_or_else(|| BackupError::ArchiveName(name.to_owned()))
}

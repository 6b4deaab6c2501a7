//! The stream from the source: archives pass through the tar scanner into the frame pipeline; the manifest is kept.
//!
//! It is complete only when the server said so after everything else ([`BaseBackupEvent::End`]).

use std::sync::Arc;

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use tokio::sync::watch;

use super::{BackupError, BackupProgress, stream::Stream};
use crate::{
    base_backup::BaseBackupEvent,
    frames::FrameWriter,
    index::IndexEntry,
    tar::{TarPiece, TarScanner},
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
    pub(super) entries: Vec<IndexEntry>,
    pub(super) tar_bytes: u64,
}

/// What passed of the whole backup.
#[derive(Debug)]
pub(super) struct ScannedBackup {
    pub(super) archives: Vec<ScannedArchive>,
    pub(super) manifest: Vec<u8>,
    pub(super) stop_lsn: Lsn,
    pub(super) stop_timeline: TimelineId,
}

struct OpenArchive {
    scanner: TarScanner,
    scanned: ScannedArchive,
}

/// Reads everything after [`BaseBackupEvent::Start`] and feeds the pipeline.
pub(super) async fn read_backup(
    stream: &mut Stream,
    mut frames: FrameWriter,
    progress: &Arc<watch::Sender<BackupProgress>>,
) -> Result<ScannedBackup, BackupError> {
    let mut archives = Vec::new();
    let mut open: Option<OpenArchive> = None;
    let mut manifest = Vec::new();
    let mut untold = 0;
    loop {
        match stream.next().await? {
            BaseBackupEvent::Start { .. } => return Err(BackupError::Interrupted),
            BaseBackupEvent::Progress(_) => {}
            BaseBackupEvent::Archive { name, path } => {
                finish_archive(&mut open, &mut archives, &mut frames).await?;
                let name = parse_archive_name(&name)?;
                frames.begin_archive(&name).await?;
                let scanned = ScannedArchive { name, path, entries: Vec::new(), tar_bytes: 0 };
                open = Some(OpenArchive { scanner: TarScanner::new(), scanned });
            }
            BaseBackupEvent::Data(data) => {
                let Some(archive) = &mut open else { return Err(BackupError::Interrupted) };
                scan(archive, &data)?;
                frames.write(&data).await?;
                untold += data.len() as u64;
                if untold >= PROGRESS_STEP {
                    progress.send_modify(|progress| progress.bytes_done += untold);
                    untold = 0;
                }
            }
            BaseBackupEvent::Manifest(data) => {
                finish_archive(&mut open, &mut archives, &mut frames).await?;
                if manifest.len() + data.len() > MAX_MANIFEST_BYTES {
                    return Err(BackupError::ManifestTooLarge(MAX_MANIFEST_BYTES));
                }
                manifest.extend_from_slice(&data);
            }
            BaseBackupEvent::End { stop_lsn, timeline } => {
                finish_archive(&mut open, &mut archives, &mut frames).await?;
                progress.send_modify(|progress| progress.bytes_done += untold);
                return Ok(ScannedBackup { archives, manifest, stop_lsn, stop_timeline: timeline });
            }
        }
    }
}

fn scan(archive: &mut OpenArchive, mut data: &[u8]) -> Result<(), BackupError> {
    while let Some(piece) = archive.scanner.next(&mut data)? {
        match piece {
            TarPiece::Entry(entry) => archive.scanned.entries.push(IndexEntry::new(entry)),
            TarPiece::Data(_) => {}
            TarPiece::EndOfFile { crc32c } => {
                archive.scanned.entries.last_mut().into_iter().for_each(|entry| entry.crc32c = crc32c);
            }
        }
    }
    Ok(())
}

async fn finish_archive(
    open: &mut Option<OpenArchive>,
    archives: &mut Vec<ScannedArchive>,
    frames: &mut FrameWriter,
) -> Result<(), BackupError> {
    if let Some(OpenArchive { scanner, mut scanned }) = open.take() {
        scanned.tar_bytes = scanner.position();
        scanner.finish()?;
        frames.end_archive().await?;
        archives.push(scanned);
    }
    Ok(())
}

/// `base.tar` or `<oid>.tar`: nothing else may become part of an object's key.
fn parse_archive_name(name: &str) -> Result<String, BackupError> {
    let stem = name.strip_suffix(".tar").filter(|stem| *stem == "base" || stem.parse::<u32>().is_ok());
    stem.map(str::to_owned).ok_or_else(|| BackupError::ArchiveName(name.to_owned()))
}

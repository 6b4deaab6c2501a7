//! A plain tar archive into a data directory, as its bytes come.

use std::{collections::HashMap, fs::File};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{RestoreError, Target};
use crate::{
    manifest::SeenFile,
    tar::{TarEntry, TarKind, TarPiece, TarScanner},
};

/// Writes the archive's files and remembers their sizes and checksums.
pub(crate) struct TarWriter {
    target: Target,
    scanner: TarScanner,
    open: Option<(File, TarEntry, u64)>,
    seen: HashMap<String, SeenFile>,
    bytes: u64,
}

impl TarWriter {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, scanner: TarScanner::new(), open: None, seen: HashMap::new(), bytes: 0 }
    }

    /// Bytes written into files so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes all pieces of the queue.
    pub(crate) fn write_all(mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<Self, RestoreError> {
        while let Some(piece) = pieces.blocking_recv() {
            self.write(&piece)?;
        }
        Ok(self)
    }

    /// Writes the next bytes of the archive.
    pub(crate) fn write(&mut self, mut input: &[u8]) -> Result<(), RestoreError> {
        while let Some(piece) = self.scanner.next(&mut input)? {
            match piece {
                TarPiece::Entry(entry) => match &entry.kind {
                    TarKind::Directory => self.target.make_directory(&entry.path)?,
                    TarKind::File => self.open = Some((self.target.open(&entry.path, entry.mode)?, entry, 0)),
                    TarKind::Symlink(_) => return Err(RestoreError::Symlink(entry.path)),
                },
                TarPiece::Data(data) => {
                    if let Some((file, entry, offset)) = &mut self.open {
                        self.target.write_at(file, &entry.path, data, *offset)?;
                        *offset += data.len() as u64;
                        self.bytes += data.len() as u64;
                    }
                }
                TarPiece::EndOfFile { crc32c } => {
                    if let Some((_, entry, size)) = self.open.take() {
                        self.seen.insert(entry.path, SeenFile { size, crc32c });
                    }
                }
            }
        }
        Ok(())
    }

    /// The directory, without its last touch, and what was written into it. The archive must have come to its end.
    pub(crate) fn finish(self) -> Result<(Target, HashMap<String, SeenFile>), RestoreError> {
        self.scanner.finish()?;
        Ok((self.target, self.seen))
    }
}

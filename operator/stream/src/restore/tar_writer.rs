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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::*;
    use crate::{restore::writers::Writer, tar::tests::header};

    fn list(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    proptest! {
        /// Also by a link that an earlier entry makes.
        #[test]
        fn no_archive_writes_outside_of_the_data_directory(
            entries in prop::collection::vec((
                "(\\.\\./|\\./|/|a/|b/|link/){0,4}[ab.]{0,2}",
                prop::sample::select(b"0000521".to_vec()),
                prop::sample::select(vec!["", "..", "../beside", "/tmp", "a"]),
                0usize..700,
            ), 1..8),
        ) {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("beside")).unwrap();
            let root = dir.path().join("pgdata");
            let mut writer = TarWriter::new(Target::prepare(&root, Writer::alone()).unwrap());
            for (path, kind, link, length) in entries {
                let mut bytes = header(&path, kind, length as u64, link).to_vec();
                if kind == b'0' {
                    bytes.resize(bytes.len() + length.next_multiple_of(512), b'x');
                }
                // What the writer made before it refused counts as well.
                if writer.write(&bytes).is_err() {
                    break;
                }
            }
            prop_assert_eq!(list(dir.path()), ["beside", "pgdata"]);
            prop_assert!(list(&dir.path().join("beside")).is_empty());
        }
    }
}

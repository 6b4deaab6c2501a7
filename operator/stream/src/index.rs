//! `index.json.zst`: where each frame lies and what each archive holds, so that a restore can run in parallel. Without it
//! a backup can still be restored one byte after the other.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::tar::{TarEntry, TarKind};

/// Version of the index format.
pub const INDEX_FORMAT: u32 = 1;
/// A decoded index larger than this is refused: 16 million files at 128 bytes.
const MAX_INDEX_BYTES: u64 = 2 << 30;

/// The whole index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupIndex {
    /// [`INDEX_FORMAT`].
    pub format: u32,
    /// One for each archive of the backup, in the same order.
    pub archives: Vec<ArchiveIndex>,
}

/// One archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveIndex {
    /// `base` or the tablespace's OID.
    pub name: String,
    /// For each object of the archive its frames: `[stored bytes, decoded bytes]`, in order without gaps.
    pub segments: Vec<Vec<(u32, u32)>>,
    /// The entries of the tar archive, in order.
    pub entries: Vec<IndexEntry>,
}

/// One entry of a tar archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexEntry {
    /// Path as in the archive.
    pub path: String,
    /// What it is.
    pub kind: TarKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Where its content begins in the archive.
    pub offset: u64,
    /// CRC32C of its content; zero for anything but a file.
    pub crc32c: u32,
}

impl IndexEntry {
    /// An entry whose checksum is not known yet.
    #[must_use]
    pub fn new(entry: TarEntry) -> Self {
        let TarEntry { path, kind, mode, size, offset } = entry;
        Self { path, kind, mode, size, offset, crc32c: 0 }
    }
}

/// Why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// zstd refused.
    #[error("the index is not readable zstd")]
    Zstd(#[from] std::io::Error),
    /// Not JSON of the known form.
    #[error("the index is malformed")]
    Json(#[from] serde_json::Error),
    /// Made by a later version.
    #[error("the index has the unknown format {0}")]
    Format(u32),
}

impl BackupIndex {
    /// Serialises and compresses in one pass.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn encode(&self) -> Result<Vec<u8>, IndexError> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3)?;
        encoder.include_checksum(true)?;
        let mut buffered = std::io::BufWriter::new(encoder);
        serde_json::to_writer(&mut buffered, self)?;
        buffered.flush()?;
        let encoder = buffered.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(encoder.finish()?)
    }

    /// Reads what [`BackupIndex::encode`] wrote.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let decoder = zstd::Decoder::new(bytes)?.take(MAX_INDEX_BYTES);
        let index: Self = serde_json::from_reader(std::io::BufReader::new(decoder))?;
        if index.format == INDEX_FORMAT { Ok(index) } else { Err(IndexError::Format(index.format)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_as_it_was() {
        let entry =
            |path: &str, kind| IndexEntry { path: path.into(), kind, mode: 0o600, size: 5, offset: 512, crc32c: 7 };
        let archive = ArchiveIndex {
            name: "base".into(),
            segments: vec![vec![(10, 20), (3, 4)], vec![(1, 2)]],
            entries: vec![
                entry("a", TarKind::File),
                entry("b", TarKind::Directory),
                entry("c", TarKind::Symlink("/x".into())),
            ],
        };
        let index = BackupIndex { format: INDEX_FORMAT, archives: vec![archive] };
        assert_eq!(BackupIndex::decode(&index.encode().unwrap()).unwrap(), index);
        let later = BackupIndex { format: 2, archives: vec![] };
        assert!(matches!(BackupIndex::decode(&later.encode().unwrap()), Err(IndexError::Format(2))));
        assert!(BackupIndex::decode(b"garbage").is_err());
    }
    #[test]
    fn an_index_that_never_ends_is_refused_as_it_is_read() {
        for endless in
            [b"[".repeat(8 << 20), b" ".repeat(64 << 20), [br#"{"archives":["#, &b"[],".repeat(1 << 20)[..]].concat()]
        {
            let bomb = zstd::bulk::compress(&endless, 1).unwrap();
            assert!(bomb.len() < endless.len() / 1000 && BackupIndex::decode(&bomb).is_err());
        }
    }
}

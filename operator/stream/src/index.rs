//! `index.json.zst`: where each frame lies and what each archive holds, so that a restore can run in parallel. Without it
//! a backup can still be restored one byte after the other.

use std::io::{self, BufReader, BufWriter, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{
    spool::{Spool, SpoolWriter},
    tar::{TarEntry, TarKind},
};

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
    Zstd(#[from] io::Error),
    /// Not JSON of the known form.
    #[error("the index is malformed")]
    Json(#[from] serde_json::Error),
    /// Made by a later version.
    #[error("the index has the unknown format {0}")]
    Format(u32),
}

impl BackupIndex {
    /// The index as it is stored.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn encode(&self) -> Result<Vec<u8>, IndexError> {
        let encode = |archive: &ArchiveIndex| {
            let mut entries = EntriesWriter::begin()?;
            archive.entries.iter().try_for_each(|entry| entries.push(entry))?;
            let (name, segments) = (archive.name.clone(), archive.segments.clone());
            Ok::<_, IndexError>(EncodedArchive { name, segments, entries: entries.finish()? })
        };
        let archives: Vec<_> = self.archives.iter().map(encode).collect::<Result<_, _>>()?;
        Ok(encode_index(self.format, archives)?.into_pieces().collect::<Vec<_>>().concat())
    }

    /// Reads what [`BackupIndex::encode`] wrote.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let decoder = zstd::Decoder::new(bytes)?.take(MAX_INDEX_BYTES);
        let index: Self = serde_json::from_reader(BufReader::new(decoder))?;
        if index.format == INDEX_FORMAT { Ok(index) } else { Err(IndexError::Format(index.format)) }
    }
}

/// The entries of an archive as they pass: a part of the index, compressed already.
pub(crate) struct EntriesWriter {
    writer: SpoolWriter,
    separator: &'static [u8],
}

impl EntriesWriter {
    pub(crate) fn begin() -> Result<Self, IndexError> {
        Ok(Self { writer: Spool::writer()?, separator: b"[" })
    }

    pub(crate) fn push(&mut self, entry: &IndexEntry) -> Result<(), IndexError> {
        let text = serde_json::to_vec(entry)?;
        self.writer.write_all(self.separator)?;
        self.separator = b",";
        Ok(self.writer.write_all(&text)?)
    }

    pub(crate) fn finish(mut self) -> Result<Spool, IndexError> {
        self.writer.write_all(if self.separator == b"[" { b"[]" } else { b"]" })?;
        Ok(self.writer.finish()?)
    }
}

/// An archive whose entries have passed.
#[derive(Debug)]
pub(crate) struct EncodedArchive {
    pub(crate) name: String,
    pub(crate) segments: Vec<Vec<(u32, u32)>>,
    /// Of an [`EntriesWriter`].
    pub(crate) entries: Spool,
}

/// A [`BackupIndex`] as it is stored. The entries stay compressed as they are: zstd frames one after the other are zstd.
pub(crate) fn encode_index(
    format: u32,
    archives: impl IntoIterator<Item = EncodedArchive>,
) -> Result<Spool, IndexError> {
    let mut index = Spool::default();
    let mut before = format!("{{\"format\":{format},\"archives\":[");
    for EncodedArchive { name, segments, entries } in archives {
        let mut writer = BufWriter::new(Spool::writer()?);
        write!(writer, "{before}{{\"name\":{},\"segments\":", serde_json::Value::from(name))?;
        serde_json::to_writer(&mut writer, &segments)?;
        writer.write_all(b",\"entries\":")?;
        index.append(writer.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?);
        index.append(entries);
        before = "},".to_owned();
    }
    let end = if before == "}," { "}]}".to_owned() } else { format!("{before}]}}") };
    let mut writer = Spool::writer()?;
    writer.write_all(end.as_bytes())?;
    index.append(writer.finish()?);
    Ok(index)
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

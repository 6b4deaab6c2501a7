//! A manifest as it is read: each file is handed on when it is known, so that whoever does not keep the files needs no memory for them.

use std::{
    fmt,
    io::{self, BufReader, Read},
    marker::PhantomData,
};

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use sha2::{Digest, Sha256};

use super::{Manifest, ManifestError, ManifestFile, WalRange, parse_hex, render_hex};

/// Begins the line that everything before it is proven by.
const MARK: &[u8] = b"\n\"Manifest-Checksum\"";
/// That line is the last, and shorter than this.
const TAIL_BYTES: usize = 4 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawManifest<Files> {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "System-Identifier")]
    system_id: Option<u64>,
    #[serde(bound(deserialize = "Files: Default + Extend<ManifestFile>"))]
    files: Collected<Files>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<RawRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// What became of the files; the first malformed one, if there is any.
struct Collected<Files>(Result<Files, ManifestError>);

impl<'de, Files: Default + Extend<ManifestFile>> Deserialize<'de> for Collected<Files> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Collector(PhantomData))
    }
}

struct Collector<Files>(PhantomData<Files>);

impl<'de, Files: Default + Extend<ManifestFile>> Visitor<'de> for Collector<Files> {
    type Value = Collected<Files>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut files = Ok(Files::default());
        while let Some(raw) = list.next_element()? {
            match (&mut files, parse_file(raw)) {
                (Ok(files), Ok(file)) => files.extend([file]),
                (Ok(_), Err(error)) => files = Err(error),
                (Err(_), _) => {}
            }
        }
        Ok(Collected(files))
    }
}

impl<Files: Default + Extend<ManifestFile>> Manifest<Files> {
    /// Reads a manifest to its end and proves it by its own SHA-256 line.
    pub(crate) fn read(text: impl Read) -> Result<Self, ManifestError> {
        let mut text = BufReader::new(ProvenText { text, sum: Sha256::new(), tail: Vec::new() });
        let raw: RawManifest<Files> = serde_json::from_reader(&mut text)?;
        text.into_inner().validate(&raw.checksum)?;
        if !(1..=2).contains(&raw.version) {
            return Err(ManifestError::Version(raw.version));
        }
        let range = |range: RawRange| WalRange {
            timeline: TimelineId(range.timeline),
            start_lsn: range.start,
            end_lsn: range.end,
        };
        Ok(Self {
            files: raw.files.0?,
            wal_ranges: raw.wal_ranges.into_iter().map(range).collect(),
            system_id: raw.system_id,
        })
    }
}

/// Sums up what is read, but for the end, since where the covered text ends is not known before.
struct ProvenText<R> {
    text: R,
    sum: Sha256,
    tail: Vec<u8>,
}

impl<R: Read> Read for ProvenText<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(into)?;
        self.tail.extend_from_slice(into.get(..read).unwrap_or_default());
        let covered = self.tail.len().saturating_sub(TAIL_BYTES);
        self.sum.update(self.tail.get(..covered).unwrap_or_default());
        self.tail.drain(..covered);
        Ok(read)
    }
}

impl<R> ProvenText<R> {
    /// The checksum covers everything before its own line.
    fn validate(mut self, stated: &str) -> Result<(), ManifestError> {
        let at = self.tail.windows(MARK.len()).rposition(|window| window == MARK).ok_or(ManifestError::NoChecksum)?;
        self.sum.update(self.tail.get(..=at).unwrap_or_default());
        if render_hex(&self.sum.finalize()) == stated.to_ascii_lowercase() {
            Ok(())
        } else {
            Err(ManifestError::Checksum)
        }
    }
}

fn parse_file(raw: RawFile) -> Result<ManifestFile, ManifestError> {
    let encoded = || parse_hex(raw.encoded_path.as_deref()?).and_then(|bytes| String::from_utf8(bytes).ok());
    let path = raw.path.clone().or_else(encoded).ok_or_else(|| ManifestError::Entry {
        path: raw.encoded_path.clone().unwrap_or_default(),
        problem: "no path in UTF-8",
    })?;
    crate::tar::validate_path(&path)
        .map_err(|_| ManifestError::Entry { path: path.clone(), problem: "an unsafe path" })?;
    let crc32c = match (raw.algorithm.as_deref(), raw.checksum.as_deref()) {
        // PostgreSQL writes the bytes of the number as they lie in the memory of a little-endian machine.
        (Some("CRC32C"), Some(text)) => {
            let bytes: Option<[u8; 4]> = parse_hex(text).and_then(|bytes| bytes.try_into().ok());
            let bytes = bytes.ok_or(ManifestError::Entry { path: path.clone(), problem: "a malformed CRC32C" })?;
            Some(u32::from_le_bytes(bytes))
        }
        (None, None) => None,
        _ => return Err(ManifestError::Entry { path, problem: "a checksum other than CRC32C" }),
    };
    Ok(ManifestFile { path, size: raw.size, crc32c })
}

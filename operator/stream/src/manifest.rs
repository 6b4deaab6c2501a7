//! `backup_manifest`: what PostgreSQL says a backup holds, parsed, proven by its own checksum, and compared with what was
//! seen. Nothing is repaired: any difference is an error that names the file.

mod reader;

use std::collections::{HashMap, HashSet};

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use sha2::{Digest, Sha256};

/// A file by the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ManifestFile {
    /// Path below the data directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// CRC32C; `None` when the manifest was made without checksums.
    pub crc32c: Option<u32>,
}

/// WAL that is needed to make the backup consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// On this timeline.
    pub timeline: TimelineId,
    /// From here.
    pub start_lsn: Lsn,
    /// Up to here.
    pub end_lsn: Lsn,
}

/// A parsed manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest<Files = Vec<ManifestFile>> {
    /// All files but WAL, or what was kept of them.
    pub files: Files,
    /// The WAL that belongs to the backup.
    pub wal_ranges: Vec<WalRange>,
    /// The system identifier (PostgreSQL 17 and later).
    pub system_id: Option<u64>,
}

/// What was seen of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Bytes.
    pub size: u64,
    /// CRC32C of the content.
    pub crc32c: u32,
}

/// A list of files without the files, but for WAL: what tells it from any other list, or from another order.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilesSummary {
    sum: Sha256,
    /// Few, and no manifest has them all: the server lists nothing but the `.done` files of the archiver.
    pub(crate) wal: Vec<ManifestFile>,
}

impl FilesSummary {
    pub(crate) fn add(&mut self, file: ManifestFile) {
        if is_wal(&file.path) {
            return self.wal.push(file);
        }
        // No path has a zero byte.
        self.sum.update(file.path.as_bytes());
        self.sum.update([0, u8::from(file.crc32c.is_some())]);
        self.sum.update(file.size.to_le_bytes());
        self.sum.update(file.crc32c.unwrap_or_default().to_le_bytes());
    }

    /// Whether a manifest with this list holds for what was seen, in the same order. If not, [`Manifest::compare`] knows more.
    pub(crate) fn fits(&self, seen: &Self) -> bool {
        let wal: HashSet<&ManifestFile> = seen.wal.iter().collect();
        self.sum.clone().finalize() == seen.sum.clone().finalize() && self.wal.iter().all(|file| wal.contains(file))
    }
}

impl Extend<ManifestFile> for FilesSummary {
    fn extend<T: IntoIterator<Item = ManifestFile>>(&mut self, files: T) {
        files.into_iter().for_each(|file| self.add(file));
    }
}

/// Why a manifest is not acceptable, or does not fit what was seen.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The manifest is not JSON of the known form.
    #[error("the backup manifest is malformed")]
    Json(#[from] serde_json::Error),
    /// It lacks the line with its own checksum.
    #[error("the backup manifest has no checksum line at its end")]
    NoChecksum,
    /// Its own checksum is wrong.
    #[error("the backup manifest does not fit its own checksum")]
    Checksum,
    /// Its version is not known.
    #[error("the backup manifest has the unknown version {0}")]
    Version(u32),
    /// An entry is malformed.
    #[error("the backup manifest has a malformed entry for \"{path}\": {problem}")]
    Entry {
        /// The file.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file of the manifest was not there.
    #[error("\"{0}\" is in the manifest but not in the backup")]
    Missing(String),
    /// A file was there that the manifest does not know.
    #[error("\"{0}\" is in the backup but not in the manifest")]
    Extra(String),
    /// A file differs.
    #[error("\"{path}\" differs from the manifest: {size} bytes with CRC32C {crc32c:08x}, expected {expected}")]
    Differs {
        /// The file.
        path: String,
        /// Bytes seen.
        size: u64,
        /// CRC32C seen.
        crc32c: u32,
        /// What the manifest says.
        expected: String,
    },
    /// The WAL named by the manifest does not cover the backup.
    #[error("the manifest's WAL does not reach from {start_lsn} to {stop_lsn} on timeline {timeline}")]
    WalRange {
        /// The backup's timeline.
        timeline: TimelineId,
        /// The backup's start.
        start_lsn: Lsn,
        /// The backup's end.
        stop_lsn: Lsn,
    },
}

impl Manifest {
    /// Parses a manifest and proves it by its own SHA-256 line.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        Self::read(text)
    }

    /// Compares with what was seen: each file of the manifest with its size and checksum, and nothing else but WAL.
    ///
    /// # Errors
    /// [`ManifestError`] names the first difference.
    pub fn compare(&self, seen: &HashMap<String, SeenFile>) -> Result<(), ManifestError> {
        for file in &self.files {
            let found = seen.get(&file.path).ok_or_else(|| ManifestError::Missing(file.path.clone()))?;
            if found.size != file.size || file.crc32c.is_some_and(|crc32c| crc32c != found.crc32c) {
                return Err(ManifestError::Differs {
                    path: file.path.clone(),
                    size: found.size,
                    crc32c: found.crc32c,
                    expected: format!("{} bytes with CRC32C {:08x}", file.size, file.crc32c.unwrap_or_default()),
                });
            }
        }
        let counted = seen.keys().filter(|path| !is_wal(path)).count();
        let listed = self.files.iter().filter(|file| !is_wal(&file.path)).count();
        if counted == listed {
            return Ok(());
        }
        let known: HashSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        let extra = seen.keys().find(|path| !is_wal(path) && !known.contains(path.as_str()));
        Err(ManifestError::Extra(extra.cloned().unwrap_or_default()))
    }
}

impl<Files> Manifest<Files> {
    /// Checks that the WAL ranges end on `timeline` and reach from `start_lsn` to `stop_lsn`.
    ///
    /// # Errors
    /// [`ManifestError::WalRange`].
    pub fn validate_wal(&self, timeline: TimelineId, start_lsn: Lsn, stop_lsn: Lsn) -> Result<(), ManifestError> {
        let covers =
            |range: &WalRange| range.timeline == timeline && range.start_lsn <= start_lsn && range.end_lsn >= stop_lsn;
        if self.wal_ranges.iter().any(covers) {
            return Ok(());
        }
        Err(ManifestError::WalRange { timeline, start_lsn, stop_lsn })
    }
}

/// WAL and its archive status are not in the manifest, and change when the copy starts.
#[must_use]
pub fn is_wal(path: &str) -> bool {
    path.starts_with("pg_wal/")
}

/// Lower-case hexadecimal digits.
pub(crate) fn render_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(files: &[(&str, &[u8])]) -> Vec<u8> {
        let entries: Vec<_> = files
            .iter()
            .map(|(path, content)| {
                let crc = render_hex(&crc32c::crc32c(content).to_le_bytes());
                format!(
                    "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
                     \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
                    content.len()
                )
            })
            .collect();
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n",
            entries.join(",\n")
        );
        let sum = render_hex(&Sha256::digest(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
    }

    fn seen(files: &[(&str, &[u8])]) -> HashMap<String, SeenFile> {
        let file = |content: &[u8]| SeenFile { size: content.len() as u64, crc32c: crc32c::crc32c(content) };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    #[test]
    fn what_was_seen_must_be_what_the_manifest_says() {
        let files: &[(&str, &[u8])] = &[("backup_label", b"label"), ("base/1/1259", b"rows")];
        let manifest = Manifest::parse(&render(files)).unwrap();
        let mut found = seen(files);
        found.extend(seen(&[("pg_wal/000000010000000000000002", b"wal")]));
        manifest.compare(&found).unwrap();
        manifest.validate_wal(TimelineId(1), Lsn(0x200_0028), Lsn(0x200_0100)).unwrap();
        assert!(manifest.validate_wal(TimelineId(2), Lsn(0x200_0028), Lsn(0x200_0100)).is_err());

        found.extend(seen(&[("base/1/9999", b"")]));
        assert!(matches!(manifest.compare(&found), Err(ManifestError::Extra(path)) if path == "base/1/9999"));
        let changed = seen(&[("backup_label", b"label"), ("base/1/1259", b"r0ws")]);
        assert!(
            matches!(manifest.compare(&changed), Err(ManifestError::Differs { path, .. }) if path == "base/1/1259")
        );
        let short = seen(&[("backup_label", b"label")]);
        assert!(matches!(manifest.compare(&short), Err(ManifestError::Missing(_))));
    }

    #[test]
    fn a_summary_fits_the_same_files_in_the_same_order_alone() {
        let summary = |files: &[(&str, &[u8])]| Manifest::<FilesSummary>::read(&render(files)[..]).unwrap().files;
        let [label, rows, wal, done] = ["backup_label", "base/1/1259", "pg_wal/0", "pg_wal/archive_status/0.done"]
            .map(|path| (path, path.as_bytes()));
        let manifest = summary(&[label, rows, done]);
        assert!(manifest.fits(&summary(&[wal, label, done, rows])));
        for other in [&[rows, label, done][..], &[label, done], &[label, rows], &[label, (rows.0, b"r0ws"), done]] {
            assert!(!manifest.fits(&summary(other)), "{other:?}");
        }
    }

    #[test]
    fn an_unsafe_path_is_refused() {
        let text = render(&[("../outside", b"x")]);
        assert!(matches!(Manifest::parse(&text), Err(ManifestError::Entry { .. })));
    }

    proptest! {
        #[test]
        fn any_changed_byte_before_the_checksum_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..7) {
            let text = render(&[("backup_label", b"label"), ("base/1/1259", b"rows")]);
            let end = text.windows(10).position(|w| w == b"\n\"Manifest").unwrap();
            let mut changed = text.clone();
            changed[at.index(end)] ^= 1 << bit;
            prop_assert!(Manifest::parse(&changed).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}

//! `backup_manifest` as PostgreSQL writes it (`src/backend/backup/backup_manifest.c`), from what was read of the files. Pure.

use std::io::{self, Write};

use jiff::Timestamp;
use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use sha2::{Digest, Sha256};

use crate::{
    manifest::render_hex,
    spool::{Spool, SpoolWriter},
};

/// The first version of PostgreSQL whose manifest says the system identifier.
const WITH_SYSTEM_ID: u32 = 170_000;

/// A manifest that grows with each file. It is in memory, compressed: about 16 bytes a file.
pub(super) struct ManifestWriter {
    text: SpoolWriter,
    sum: Sha256,
    files: u64,
}

impl ManifestWriter {
    /// In the form of the server's version (`server_version_num`).
    pub(super) fn new(server_version: u32, system_id: &str) -> io::Result<Self> {
        let begin = if server_version >= WITH_SYSTEM_ID {
            format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_id},\n\"Files\": [")
        } else {
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned()
        };
        let mut writer = Self { text: Spool::writer()?, sum: Sha256::new(), files: 0 };
        writer.push(&begin)?;
        Ok(writer)
    }

    fn push(&mut self, text: &str) -> io::Result<()> {
        self.sum.update(text.as_bytes());
        self.text.write_all(text.as_bytes())
    }

    /// A file that is complete; `modified` in seconds since 1970.
    pub(super) fn add(&mut self, path: &str, size: u64, modified: i64, crc32c: u32) -> io::Result<()> {
        let separator = if self.files == 0 { "\n" } else { ",\n" };
        self.files += 1;
        let path = serde_json::Value::from(path);
        let modified =
            Timestamp::from_second(modified).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y-%m-%d %H:%M:%S GMT");
        // The bytes of the number as they lie in the memory of a little-endian machine.
        let sum = render_hex(&crc32c.to_le_bytes());
        self.push(&format!(
            "{separator}{{ \"Path\": {path}, \"Size\": {size}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}"
        ))
    }

    /// The whole, with the WAL that the backup needs and its own checksum.
    pub(super) fn finish(mut self, timeline: TimelineId, start: Lsn, stop: Lsn) -> io::Result<Spool> {
        self.push(&format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n],\n",
            timeline.0
        ))?;
        let sum = render_hex(&self.sum.finalize());
        self.text.write_all(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())?;
        self.text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn what_is_written_is_read_again_in_the_form_of_each_version() {
        for (version, system_id) in [(150_013, None), (160_004, None), (170_000, Some(7_360_000_000_000_000_001))] {
            let mut writer = ManifestWriter::new(version, "7360000000000000001").unwrap();
            writer.add("PG_VERSION", 3, 1_700_000_000, 0x0102_0304).unwrap();
            writer.add("strange \"name\"", 0, 0, 0).unwrap();
            let spool = writer.finish(TimelineId(2), Lsn(0x200_0028), Lsn(0x200_0100)).unwrap();
            let text = io::read_to_string(spool.decode().unwrap()).unwrap();
            let manifest = Manifest::parse(text.as_bytes()).unwrap();
            assert_eq!(manifest.system_id, system_id);
            let files: Vec<_> =
                manifest.files.iter().map(|file| (file.path.as_str(), file.size, file.crc32c)).collect();
            assert_eq!(files, [("PG_VERSION", 3, Some(0x0102_0304)), ("strange \"name\"", 0, Some(0))]);
            manifest.validate_wal(TimelineId(2), Lsn(0x200_0028), Lsn(0x200_0100)).unwrap();
            assert!(text.contains("\"Last-Modified\": \"2023-11-14 22:13:20 GMT\""), "{text}");
        }
    }
}

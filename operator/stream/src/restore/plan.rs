//! What to fetch and where to write it, decided from record, index and manifest before a byte is written.

use std::collections::{HashMap, HashSet};

use pgherd_core::backup::{ArchiveRecord, BackupRecord};

use super::RestoreError;
use crate::{
    backup::render_data_path,
    index::{ArchiveIndex, BackupIndex, IndexEntry},
    manifest::{Manifest, SeenFile},
    tar::{TarKind, validate_path},
};

/// Frames are fetched in runs of about this many stored bytes: one request each.
const RUN_BYTES: u64 = 4 << 20;

/// Neighbouring frames of one object, fetched by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameRun {
    /// The object's number within its archive.
    pub(super) object: usize,
    /// Where in the object.
    pub(super) offset: u64,
    /// How many stored bytes.
    pub(super) stored: u64,
    /// Stored and decoded bytes of each frame.
    pub(super) frames: Vec<(u32, u32)>,
    /// Where in the tar archive the first frame begins.
    pub(super) tar_offset: u64,
}

/// What to do for one archive.
#[derive(Debug)]
pub(super) struct ArchivePlan {
    /// `base` or the tablespace's OID.
    pub(super) name: String,
    /// Files by their place in the archive, with paths below the data directory.
    pub(super) files: Vec<IndexEntry>,
    pub(super) runs: Vec<FrameRun>,
}

/// What to do for a whole backup.
#[derive(Debug)]
pub(super) struct RestorePlan {
    /// Below the data directory.
    pub(super) directories: Vec<String>,
    pub(super) archives: Vec<ArchivePlan>,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// Checks that record, index and manifest agree, and plans the restore.
pub(super) fn build_plan(
    record: &BackupRecord,
    index: BackupIndex,
    manifest: &Manifest,
) -> Result<RestorePlan, RestoreError> {
    if index.archives.len() != record.archives.len() || record.archives.iter().filter(|a| a.name == "base").count() != 1
    {
        return Err(RestoreError::Inconsistent("record and index differ in their archives".to_owned()));
    }
    let mut plan = RestorePlan { directories: Vec::new(), archives: Vec::new(), bytes: 0 };
    let mut paths = HashSet::new();
    for (archive, stored) in index.archives.into_iter().zip(&record.archives) {
        plan_archive(&mut plan, &mut paths, archive, stored)?;
    }
    // The index must promise what the manifest demands; the content is checked against the index while it is written.
    let promised = |file: &IndexEntry| (file.path.clone(), SeenFile { size: file.size, crc32c: file.crc32c });
    let files = plan.archives.iter().flat_map(|archive| &archive.files);
    manifest.compare(&files.map(promised).collect::<HashMap<_, _>>())?;
    manifest.validate_wal(record.timeline, record.start_lsn, record.stop_lsn)?;
    Ok(plan)
}

fn plan_archive(
    plan: &mut RestorePlan,
    paths: &mut HashSet<String>,
    archive: ArchiveIndex,
    stored: &ArchiveRecord,
) -> Result<(), RestoreError> {
    if archive.name != stored.name || (archive.name != "base" && archive.name.parse::<u32>().is_err()) {
        return Err(RestoreError::Inconsistent("the index describes another archive".to_owned()));
    }
    let runs = plan_runs(&archive, stored)?;
    let mut files = Vec::new();
    let mut end = 0;
    for mut entry in archive.entries {
        validate_path(&entry.path)?;
        if entry.offset < end || entry.offset.checked_add(entry.size).is_none_or(|end| end > stored.tar_bytes) {
            return Err(RestoreError::Inconsistent(format!("{} lies outside of its archive", entry.path)));
        }
        end = entry.offset + entry.size;
        entry.path = render_data_path(&archive.name, &entry.path);
        if !paths.insert(entry.path.clone()) {
            return Err(RestoreError::Inconsistent(format!("{} is in the backup twice", entry.path)));
        }
        match entry.kind {
            TarKind::Directory => plan.directories.push(entry.path),
            TarKind::File => {
                plan.bytes = plan.bytes.saturating_add(entry.size);
                files.push(entry);
            }
            TarKind::Symlink(_) => return Err(RestoreError::Symlink(entry.path)),
        }
    }
    plan.archives.push(ArchivePlan { name: archive.name, files, runs });
    Ok(())
}

fn plan_runs(archive: &ArchiveIndex, stored: &ArchiveRecord) -> Result<Vec<FrameRun>, RestoreError> {
    let mut runs: Vec<FrameRun> = Vec::new();
    let mut tar_offset = 0;
    if archive.segments.len() != stored.segments.len() {
        return Err(RestoreError::Inconsistent("record and index differ in the number of objects".to_owned()));
    }
    for (object, (frames, size)) in archive.segments.iter().zip(&stored.segments).enumerate() {
        let mut offset = 0;
        for (stored_bytes, decoded) in frames {
            let length = u64::from(*stored_bytes);
            match runs.last_mut().filter(|run| run.object == object && run.stored + length <= RUN_BYTES) {
                Some(run) => {
                    run.stored += length;
                    run.frames.push((*stored_bytes, *decoded));
                }
                None => {
                    let frames = vec![(*stored_bytes, *decoded)];
                    runs.push(FrameRun { object, offset, stored: length, frames, tar_offset });
                }
            }
            offset += length;
            tar_offset += u64::from(*decoded);
        }
        if offset != *size {
            return Err(RestoreError::Inconsistent(format!("object {object} has {size} bytes, its frames {offset}")));
        }
    }
    if tar_offset == stored.tar_bytes {
        return Ok(runs);
    }
    Err(RestoreError::Inconsistent(format!("the archive has {} bytes, its frames {tar_offset}", stored.tar_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_frame_and_stay_within_an_object() {
        let frame = (3 << 20, 4 << 20);
        let small = (1 << 20, 4 << 20);
        let segments = vec![vec![frame, small, frame], vec![small, small]];
        let archive = ArchiveIndex { name: "base".into(), segments, entries: vec![] };
        let record = ArchiveRecord {
            name: "base".into(),
            tablespace_path: String::new(),
            segments: vec![7 << 20, 2 << 20],
            tar_bytes: 20 << 20,
        };
        let runs = plan_runs(&archive, &record).unwrap();
        let short: Vec<_> =
            runs.iter().map(|r| (r.object, r.offset >> 20, r.stored >> 20, r.tar_offset >> 20)).collect();
        assert_eq!(short, [(0, 0, 4, 0), (0, 4, 3, 8), (1, 0, 2, 12)]);
        let wrong = ArchiveRecord { segments: vec![7 << 20, 3 << 20], ..record.clone() };
        assert!(plan_runs(&archive, &wrong).is_err());
        let wrong = ArchiveRecord { tar_bytes: 1, ..record };
        assert!(plan_runs(&archive, &wrong).is_err());
    }
}

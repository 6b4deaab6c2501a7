//! What to fetch and where to write it, decided from record, index and manifest before a byte is written.

use std::collections::{HashMap, HashSet};

use pgherd_core::backup::{ArchiveRecord, BackupRecord};

use super::RestoreError;
use crate::{
    age::{MAX_HEADER_BYTES, sealed_bytes},
    backup::render_data_path,
    frames::MAX_FRAME_BYTES,
    index::{ArchiveIndex, BackupIndex, IndexEntry},
    manifest::{Manifest, SeenFile},
    tar::{TarKind, validate_path},
};

/// Frames are fetched in runs of about this many stored bytes: one request each.
const RUN_BYTES: u64 = 3 << 20;

/// Neighbouring frames of one object, fetched by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameRun {
    /// The object's number within its archive.
    pub(super) object: usize,
    /// Where in the object, before it is encrypted.
    pub(super) offset: u64,
    /// How many stored bytes, before they are encrypted.
    pub(super) stored: u64,
    /// Stored and decoded bytes of each frame.
    pub(super) frames: Vec<(u32, u32)>,
    /// Where in the tar archive the first frame begins.
    pub(super) tar_offset: u64,
}

/// An object of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectPlan {
    /// Bytes in the store.
    pub(super) stored: u64,
    /// Bytes of its frames: the same, unless it is encrypted.
    pub(super) plain: u64,
}

/// What to do for one archive.
#[derive(Debug)]
pub(super) struct ArchivePlan {
    /// `base` or the tablespace's OID.
    pub(super) name: String,
    /// Files by their place in the archive, with paths below the data directory.
    pub(super) files: Vec<IndexEntry>,
    pub(super) objects: Vec<ObjectPlan>,
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
        plan_archive(&mut plan, &mut paths, archive, stored, record.encryption.is_some())?;
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
    sealed: bool,
) -> Result<(), RestoreError> {
    if archive.name != stored.name || (archive.name != "base" && archive.name.parse::<u32>().is_err()) {
        return Err(RestoreError::Inconsistent("the index describes another archive".to_owned()));
    }
    let (objects, runs) = plan_runs(&archive, stored, sealed)?;
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
    plan.archives.push(ArchivePlan { name: archive.name, files, objects, runs });
    Ok(())
}

fn plan_runs(
    archive: &ArchiveIndex,
    stored: &ArchiveRecord,
    sealed: bool,
) -> Result<(Vec<ObjectPlan>, Vec<FrameRun>), RestoreError> {
    let (mut objects, mut runs): (Vec<ObjectPlan>, Vec<FrameRun>) = (Vec::new(), Vec::new());
    let mut tar_offset = 0;
    if archive.segments.len() != stored.segments.len() {
        return Err(RestoreError::Inconsistent("record and index differ in the number of objects".to_owned()));
    }
    for (object, (frames, size)) in archive.segments.iter().zip(&stored.segments).enumerate() {
        let mut offset = 0;
        for (stored_bytes, decoded) in frames {
            if (*stored_bytes).max(*decoded) > MAX_FRAME_BYTES {
                return Err(RestoreError::Inconsistent(format!("a frame of object {object} is too large")));
            }
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
        // What an age file has beside its chunks is its header.
        let beside = size.checked_sub(if sealed { sealed_bytes(offset) } else { offset });
        if beside.is_none_or(|beside| (beside > 0) != sealed || beside > MAX_HEADER_BYTES as u64) {
            return Err(RestoreError::Inconsistent(format!("object {object} has {size} bytes, its frames {offset}")));
        }
        objects.push(ObjectPlan { stored: *size, plain: offset });
    }
    if tar_offset == stored.tar_bytes {
        return Ok((objects, runs));
    }
    Err(RestoreError::Inconsistent(format!("the archive has {} bytes, its frames {tar_offset}", stored.tar_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let (objects, runs) = plan_runs(&archive, &record, false).unwrap();
        assert_eq!(objects, [7u64, 2].map(|size| ObjectPlan { stored: size << 20, plain: size << 20 }));
        let short: Vec<_> =
            runs.iter().map(|r| (r.object, r.offset >> 20, r.stored >> 20, r.tar_offset >> 20)).collect();
        assert_eq!(short, [(0, 0, 3, 0), (0, 3, 1, 4), (0, 4, 3, 8), (1, 0, 2, 12)]);
        let wrong = ArchiveRecord { segments: vec![7 << 20, 3 << 20], ..record.clone() };
        assert!(plan_runs(&archive, &wrong, false).is_err());
        let wrong = ArchiveRecord { tar_bytes: 1, ..record.clone() };
        assert!(plan_runs(&archive, &wrong, false).is_err());
        assert!(plan_runs(&archive, &record, true).is_err(), "no room for a header");
        for frame in [(MAX_FRAME_BYTES + 1, 1), (1, MAX_FRAME_BYTES + 1)] {
            let archive = ArchiveIndex { segments: vec![vec![frame]], ..archive.clone() };
            let (size, tar_bytes) = (u64::from(frame.0), u64::from(frame.1));
            let record = ArchiveRecord { segments: vec![size], tar_bytes, ..record.clone() };
            assert!(plan_runs(&archive, &record, false).is_err(), "{frame:?} would come into memory whole");
        }
        let sealed = |header: u64| [7u64 << 20, 2 << 20].map(|plain| sealed_bytes(plain) + header).to_vec();
        let encrypted = ArchiveRecord { segments: sealed(200), ..record.clone() };
        let (objects, again) = plan_runs(&archive, &encrypted, true).unwrap();
        assert_eq!(again, runs, "frames lie where they lie in the plain object");
        assert_eq!(objects.iter().map(|object| object.plain).collect::<Vec<_>>(), record.segments);
        assert!(plan_runs(&archive, &encrypted, false).is_err());
        let huge = ArchiveRecord { segments: sealed(1 << 20), ..record };
        assert!(plan_runs(&archive, &huge, true).is_err());
    }
    proptest! {
        /// Whatever an index says, what comes out of it lies within the data directory and within the archive, each path once.
        #[test]
        fn what_is_planned_stays_inside(
            entries in prop::collection::vec(("[./a-c]{0,6}", 0u8..3, any::<bool>(), 0u64..6, any::<prop::sample::Index>()), 0..8),
            frames in prop::collection::vec(prop_oneof![0u32..9, Just(u32::MAX)].prop_map(|bytes| (bytes, bytes)), 0..6),
            tablespace in any::<bool>(),
        ) {
            let sizes = [0, 1, 512, 1 << 40, u64::MAX - 1, u64::MAX];
            let entry = |(path, kind, huge, size, offset): (String, u8, bool, u64, prop::sample::Index)| IndexEntry {
                path,
                kind: [TarKind::File, TarKind::Directory, TarKind::Symlink("/etc".into())][usize::from(kind)].clone(),
                mode: 0,
                size: if huge { sizes[size as usize] } else { size },
                offset: offset.index(30) as u64,
                crc32c: 0,
            };
            let tar_bytes: u64 = frames.iter().map(|(_, decoded)| u64::from(*decoded)).sum();
            let name = if tablespace { "16385" } else { "base" };
            let archive = ArchiveIndex {
                name: name.into(), segments: vec![frames], entries: entries.into_iter().map(entry).collect(),
            };
            let record = ArchiveRecord {
                name: name.into(), tablespace_path: String::new(), segments: vec![tar_bytes], tar_bytes,
            };
            let mut plan = RestorePlan { directories: Vec::new(), archives: Vec::new(), bytes: 0 };
            let mut paths = HashSet::new();
            if plan_archive(&mut plan, &mut paths, archive, &record, false).is_ok() {
                let files = &plan.archives[0].files;
                prop_assert_eq!(paths.len(), files.len() + plan.directories.len());
                for path in &paths {
                    prop_assert!(validate_path(path).is_ok() && (!tablespace || path.starts_with("pg_tblspc/16385/")));
                }
                prop_assert!(files.iter().all(|file| file.offset + file.size <= tar_bytes));
                prop_assert!(plan.archives[0].runs.iter().all(|run| run.stored <= RUN_BYTES + u64::from(MAX_FRAME_BYTES)));
            }
        }
    }
}

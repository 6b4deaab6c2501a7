//! The WAL from a backup's start to its end, from the archive and not from the copy that the backup carries: what is
//! proven is that the archive has it.

use std::{fs, path::Path};

use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    timeline::TimelineHistory,
};
use pgherd_stream::{
    store::{ObjectStore, StoreError},
    wal::{FetchOutcome, WalError, fetch, missing_segments, segment_names},
};

use super::VerifyError;

/// Puts the archive's segments in the place of the backup's own.
pub(super) async fn fetch_wal(
    store: &ObjectStore,
    location: &ClusterLocation,
    record: &BackupRecord,
    data: &Path,
) -> Result<(), VerifyError> {
    let (from, to, bytes) = (record.start_lsn, record.stop_lsn, record.wal_segment_bytes);
    let history = TimelineHistory::root(record.timeline);
    let missing = missing_segments(store, location, &history, from, to, bytes).await;
    let missing = missing.map_err(|error| VerifyError::Archive(Box::new(error)))?;
    if !missing.is_empty() {
        return Err(VerifyError::MissingWal(missing));
    }
    let folder = data.join("pg_wal");
    remove_segments(&folder).map_err(VerifyError::file("emptying", &folder))?;
    for name in segment_names(record.timeline, from, to, bytes) {
        match fetch(store, location, &name, &folder.join(&name)).await {
            Ok(FetchOutcome::Fetched) => {}
            Ok(FetchOutcome::Absent) => return Err(VerifyError::MissingWal(vec![name])),
            // The object is there: what is wrong with it is the archive's fault, unless the store did not answer.
            Err(error @ WalError::Store(StoreError::Damaged { .. })) => return Err(VerifyError::wal(name, error)),
            Err(error @ (WalError::Store(_) | WalError::File { .. } | WalError::Task(_))) => {
                return Err(VerifyError::Archive(Box::new(error)));
            }
            Err(error) => return Err(VerifyError::wal(name, error)),
        }
    }
    Ok(())
}

impl VerifyError {
    fn wal(name: String, source: WalError) -> Self {
        Self::Wal { name, source: Box::new(source) }
    }
}

/// Histories stay.
fn remove_segments(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && !name.to_string_lossy().ends_with(".history") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

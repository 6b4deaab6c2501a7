//! Reads a whole backup, of an incremental one the whole chain, and checks every file against its manifest, without a disk. It says nothing about the WAL archive, nor
//! whether PostgreSQL starts on it.

use std::time::Instant;

use pgherd_core::backup::{BackupLocation, BackupRecord};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    ArchiveSource, RestoreError, RestoreProgress, Scene, locate, observe_scene, read_archives, read_locked,
    sum_tar_bytes,
};
use crate::store::ObjectStore;

/// A backup that was read and found whole.
#[derive(Clone, Debug)]
pub struct VerifyOutcome {
    /// What was read.
    pub record: BackupRecord,
    /// Files that were checked, of all members of a chain.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Verifies a resolved backup (see [`crate::catalogue::resolve`]).
///
/// # Errors
/// [`RestoreError`] names the first object or file that is damaged or missing.
pub async fn verify_backup(
    store: &ObjectStore,
    location: &BackupLocation,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<VerifyOutcome, RestoreError> {
    let work = |members| verify(store, location, members, &progress);
    read_locked(store, location, &cancel, work).await
}

async fn verify(
    store: &ObjectStore,
    location: &BackupLocation,
    members: Vec<BackupRecord>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<VerifyOutcome, RestoreError> {
    let began = Instant::now();
    progress.send_modify(|progress| progress.bytes_total = Some(sum_tar_bytes(&members)));
    let (mut files, mut bytes) = (0, 0);
    for member in &members {
        let Scene { plan, prefix, keys, .. } = observe_scene(store, &locate(location, &member.id)).await?;
        let source = ArchiveSource::new(store, &prefix, keys.as_ref());
        bytes += plan.bytes;
        files += read_archives(&source, plan.archives, None, progress).await?;
    }
    let record = members.into_iter().last().ok_or_else(|| RestoreError::Inconsistent("an empty chain".to_owned()))?;
    Ok(VerifyOutcome { record, files, bytes, seconds: began.elapsed().as_secs_f64() })
}

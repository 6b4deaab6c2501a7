//! Reads a whole backup and checks every file against the manifest, without a disk. It says nothing about the WAL archive, nor
//! whether PostgreSQL starts on it.

use std::time::Instant;

use pgherd_core::backup::{BackupLocation, BackupRecord};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RestoreError, RestoreProgress, Scene, explain_absence, lock::RestoreLock, observe_scene, read_archives};
use crate::store::ObjectStore;

/// A backup that was read and found whole.
#[derive(Clone, Debug)]
pub struct VerifyOutcome {
    /// What was read.
    pub record: BackupRecord,
    /// Files that were checked.
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
    let lock = RestoreLock::take(store, location).await?;
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RestoreError::Cancelled),
        outcome = verify(store, location, &progress) => outcome,
        never = lock.renew() => match never {},
    };
    lock.release().await;
    explain_absence(store, location, outcome).await
}

async fn verify(
    store: &ObjectStore,
    location: &BackupLocation,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<VerifyOutcome, RestoreError> {
    let began = Instant::now();
    let Scene { record, plan, prefix, .. } = observe_scene(store, location).await?;
    progress.send_modify(|progress| progress.bytes_total = Some(record.tar_bytes));
    let files = read_archives(store, &prefix, plan.archives, None, progress).await?;
    Ok(VerifyOutcome { record, files, bytes: plan.bytes, seconds: began.elapsed().as_secs_f64() })
}

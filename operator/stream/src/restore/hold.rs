//! A hold on a backup that outlives its restore: as long as the WAL behind it is replayed, retention must leave that too, and it leaves
//! what a backup in use needs.

use futures::future::join_all;
use pgherd_core::backup::BackupLocation;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{RestoreError, chain::lock_chain, lock::RestoreLock};
use crate::store::ObjectStore;

/// Keeps a backup, all that it needs, and the WAL behind it from being deleted, until it is released or dropped.
#[derive(Debug)]
pub struct BackupHold {
    ends: DropGuard,
    keeper: JoinHandle<()>,
}

impl BackupHold {
    /// Locks the backup and all that it needs. Where nothing can be written it holds nothing, and says so in the log.
    ///
    /// # Errors
    /// [`RestoreError`], as a restore has it before it reads data.
    pub async fn take(store: &ObjectStore, location: &BackupLocation) -> Result<Self, RestoreError> {
        let mut locks = Vec::new();
        if let Err(error) = lock_chain(store, location, &mut locks).await {
            join_all(locks.into_iter().map(RestoreLock::release)).await;
            return Err(error);
        }
        let ends = CancellationToken::new();
        let told = ends.clone();
        let keeper = tokio::spawn(async move {
            tokio::select! {
                () = told.cancelled() => {}
                _ = join_all(locks.iter().map(RestoreLock::renew)) => {}
            }
            join_all(locks.into_iter().map(RestoreLock::release)).await;
        });
        Ok(Self { ends: ends.drop_guard(), keeper })
    }

    /// Waits until the locks are gone. Dropping the hold lets them go in the background.
    pub async fn release(self) {
        drop(self.ends);
        if let Err(error) = self.keeper.await {
            tracing::warn!(error = %error, "releasing the backup");
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::fake::FakeStore;

    #[tokio::test]
    async fn a_backup_is_held_until_it_is_released_or_forgotten() {
        let fake = FakeStore::start();
        let (store, cluster) = (fake.connect().await, fake.location());
        let id = "20261122T020304Z-00000001-0-2000028".to_owned();
        let record = format!(
            r#"{{"format":1,"id":"{id}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"0/1",
            "stopLsn":"0/2","startedAt":"","stoppedAt":"","archives":[],"manifestSha256":"","tarBytes":0,"storedBytes":0,
            "walSegmentBytes":16777216}}"#
        );
        store.put(&format!("{}backup.json", cluster.backup_prefix(&id)), record.into()).await.unwrap();
        let location = BackupLocation { cluster, backup_id: id };
        let locks = || fake.keys().iter().filter(|key| key.contains("/locks/")).count();
        let hold = BackupHold::take(&store, &location).await.unwrap();
        assert_eq!(locks(), 1);
        hold.release().await;
        assert_eq!(locks(), 0);
        let hold = BackupHold::take(&store, &location).await.unwrap();
        assert_eq!(locks(), 1);
        drop(hold);
        for _ in 0..200 {
            if locks() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(locks(), 0, "it goes in the background");
        let gone = BackupLocation { backup_id: "20261122T020304Z-00000001-0-3000028".to_owned(), ..location };
        assert!(BackupHold::take(&store, &gone).await.is_err());
        assert_eq!(locks(), 0);
    }
}

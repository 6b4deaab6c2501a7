//! What the cluster's Backup objects come to.

use std::sync::Arc;

use jiff::Timestamp;
use pgherd_crds::{
    Backup,
    v1alpha1::{backup::BackupPhase, conditions::BACKUP_HEALTHY, postgres_cluster::LastBackup},
};

use super::conditions::Draft;

/// When it was made, by the API server's one clock, and its name.
fn age(backup: &Backup) -> (Option<Timestamp>, Option<&String>) {
    (backup.metadata.creation_timestamp.as_ref().map(|time| time.0), backup.metadata.name.as_ref())
}

/// The newest restorable backup.
pub(super) fn last_backup(backups: &[Arc<Backup>]) -> Option<LastBackup> {
    let restorable = backups.iter().filter_map(|backup| {
        let status = backup.status.as_ref()?;
        let good = status.phase == Some(BackupPhase::Completed) && status.restorable == Some(true);
        let completed_at = status.completed_at.clone().filter(|_| good)?;
        Some((age(backup), LastBackup { name: backup.metadata.name.clone()?, completed_at }))
    });
    restorable.max_by_key(|(age, _)| *age).map(|(_, last)| last)
}

/// Whether the newest backup that has ended is restorable.
pub(super) fn backup_healthy(backups: &[Arc<Backup>], has_store: bool) -> Draft {
    if !has_store {
        return Draft::new(
            BACKUP_HEALTHY,
            "Unknown",
            "NotConfigured",
            "no object store is configured: there are no backups",
        );
    }
    let ended = backups.iter().filter(|backup| {
        let phase = backup.status.as_ref().and_then(|status| status.phase);
        matches!(phase, Some(BackupPhase::Completed | BackupPhase::Failed))
    });
    let Some(newest) = ended.max_by_key(|backup| age(backup)) else {
        return Draft::new(BACKUP_HEALTHY, "Unknown", "NoBackup", "no backup has ended yet");
    };
    let name = newest.metadata.name.as_deref().unwrap_or_default();
    let status = newest.status.as_ref();
    if status.is_some_and(|status| status.restorable == Some(true)) {
        return Draft::new(BACKUP_HEALTHY, "True", "Restorable", format!("the newest backup, {name}, is restorable"));
    }
    let error = status.and_then(|status| status.error.as_deref()).unwrap_or("it is not restorable");
    Draft::new(BACKUP_HEALTHY, "False", "BackupFailed", format!("the newest backup, {name}, failed: {error}"))
}

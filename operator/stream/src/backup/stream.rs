//! Where a backup's archives come from: a walsender, or the files themselves. Both give the same events.

use pgherd_core::backup::LOCAL_METHOD;

use super::BackupError;
use crate::{
    base_backup::{BaseBackup, BaseBackupEvent},
    local::{LocalBackup, LocalError},
};

/// A base backup that has begun.
pub(super) enum Stream {
    /// `BASE_BACKUP` of the server.
    Wire(Box<BaseBackup>),
    /// Files that are read here.
    Local(LocalBackup),
}

impl Stream {
    /// What the record says of it.
    pub(super) fn method(&self) -> Option<&'static str> {
        match self {
            Self::Wire(_) => None,
            Self::Local(_) => Some(LOCAL_METHOD),
        }
    }

    /// The next event. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<BaseBackupEvent, BackupError> {
        match self {
            Self::Wire(backup) => Ok(backup.next().await?),
            Self::Local(backup) => backup.next().await.map_err(|error| match error {
                LocalError::TimelineChanged { start, stop } => BackupError::TimelineChanged { start, stop },
                error => error.into(),
            }),
        }
    }
}

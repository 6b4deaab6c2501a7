//! A backup from the files of a data directory, in a cluster: the Job asks the agent beside the data directory and passes on what it
//! hears ([`ask`]); the agent starts a process that does it ([`child`]). The words between the two are JSON lines.

pub mod ask;
pub mod child;

use pgherd_core::lsn::Lsn;
use pgherd_stream::backup::BackupProgress;
use serde::{Deserialize, Serialize};

use super::outcome::BackupOutcome;

/// What the process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// How far it is; said every other second, whether or not it went on.
    Progress(ProgressLine),
    /// How it ended; nothing follows.
    Outcome(BackupOutcome),
}

/// How far a backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressLine {
    /// Bytes of the data directory that were read.
    pub bytes_done: u64,
    /// The estimate of all bytes, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Compressed bytes in the store.
    pub stored_bytes: u64,
    /// The backup's id, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// WAL is needed from here, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<Lsn>,
}

impl ProgressLine {
    fn of(progress: &BackupProgress) -> Self {
        Self {
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            stored_bytes: progress.stored_bytes,
            backup_id: progress.backup_id.clone(),
            start_lsn: progress.start_lsn,
        }
    }

    fn apply(self, progress: &mut BackupProgress) {
        progress.bytes_done = self.bytes_done;
        progress.bytes_total = self.bytes_total;
        progress.stored_bytes = self.stored_bytes;
        progress.backup_id = self.backup_id;
        progress.start_lsn = self.start_lsn;
    }
}

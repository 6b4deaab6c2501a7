//! What an instance says of the WAL archive.

use serde::{Deserialize, Serialize};

use crate::{lsn::Lsn, timeline::TimelineId};

/// The archiver as the agent of the primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStatus {
    /// Name of the last segment that reached the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived: Option<String>,
    /// Where that segment ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived_lsn: Option<Lsn>,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived_at_ms: Option<i64>,
    /// Why the last attempt failed; none once one has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When an attempt last failed, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed_at_ms: Option<i64>,
    /// On any instance: segments that it wrote as primary, and that the archive has yet to get.
    #[serde(default)]
    pub left_over: u64,
    /// What can be restored from the store, as of the last look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<RestorableWindow>,
    /// Why there is no window, where the store could not be looked through for half an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_error: Option<String>,
}

/// What can be restored from the store: any time from `earliest` to `latest`, but not through a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorableWindow {
    /// Id of the oldest backup.
    pub earliest_backup: String,
    /// When it became consistent, RFC 3339.
    pub earliest_time: String,
    /// The same as a position.
    pub earliest_lsn: Lsn,
    /// The next ones after it, a few: the oldest may have been found not to come back, of which an agent knows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_backups: Vec<EarlyBackup>,
    /// How many backups there are.
    pub backups: u32,
    /// The archive has WAL up to here, gaps aside; none when it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_lsn: Option<Lsn>,
    /// Files that are missing in between; of many, the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
    /// How many there are.
    #[serde(default)]
    pub gap_count: u32,
}

/// A backup at the beginning of a [`RestorableWindow`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyBackup {
    /// Its id.
    pub id: String,
    /// When it became consistent, RFC 3339.
    pub time: String,
    /// The same as a position.
    pub lsn: Lsn,
}

/// What `POST /v1/archive-barrier` is asked for besides: the WAL of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WalSpan {
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where its replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
}

/// `POST /v1/archive-barrier` answers with this: the primary wrote a record, switched segments and waited (bounded)
/// until the archive had everything up to `lsn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveBarrier {
    /// The position that the archive must reach.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// The archive has it.
    pub archived: bool,
    /// What the archive lacks of the span that was asked for, if it could be looked at; an agent of before does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<String>>,
}

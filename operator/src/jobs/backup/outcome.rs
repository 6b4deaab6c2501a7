//! How a backup Job ended, as it says so in its pod's termination message: the controller completes the Backup's status
//! from it even when the Job's own last status patch was lost. Carries no secret.

use pgherd_core::{compression::LevelsUsed, lsn::Lsn, timeline::TimelineId};
use serde::{Deserialize, Serialize};

use crate::jobs::termination::{ERROR_CHARS, parse_message, render_message};

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum BackupOutcome {
    /// The backup is in the store, `backup.json` included.
    Completed(Box<BackupSummary>),
    /// Nothing of it is visible in the store.
    Failed(BackupFailure),
}

/// What a finished backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupSummary {
    /// The id in the store.
    pub id: String,
    /// `s3://bucket/key/` of its objects.
    pub destination: String,
    /// The database system identifier.
    pub system_id: String,
    /// `server_version_num`.
    pub server_version: u32,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// WAL is needed from here.
    pub start_lsn: Lsn,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
    /// RFC 3339: when the Job's process began.
    pub started_at: String,
    /// RFC 3339: when `backup.json` was in the store.
    pub completed_at: String,
    /// Bytes of the data directory that were read.
    pub bytes: u64,
    /// Compressed bytes in the store.
    pub stored_bytes: u64,
    /// How long it took, in milliseconds, with the connection and the checkpoint.
    pub took_ms: u64,
    /// From the first to the last byte of data, in milliseconds.
    pub stream_ms: u64,
    /// Id of the parent of an incremental backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Backups that a restore needs, with this one.
    #[serde(default = "alone")]
    pub chain_length: u32,
    /// Why it is a full one although an incremental one was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_reason: Option<String>,
    /// Levels of zstd that were used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<LevelsUsed>,
    /// The data directory was read from its files, not sent by the server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Peak resident memory of the process in bytes, where the kernel tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
}

/// What a Job of an earlier version made.
fn alone() -> u32 {
    1
}

/// Why a backup failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupFailure {
    /// One word for machines, such as `AccessDenied`.
    pub reason: String,
    /// The error and its causes, for people.
    pub error: String,
    /// Another attempt, perhaps with another source, may go well.
    pub retry: bool,
}

/// The termination message; always shorter than Kubernetes' limit.
#[must_use]
pub fn render_outcome(outcome: &BackupOutcome) -> String {
    let mut outcome = outcome.clone();
    let text = match &mut outcome {
        BackupOutcome::Failed(failure) => Some(&mut failure.error),
        BackupOutcome::Completed(summary) => summary.full_reason.as_mut(),
    };
    if let Some(text) = text {
        *text = text.chars().take(ERROR_CHARS).collect();
    }
    render_message(&outcome)
}

/// The outcome that a termination message tells; None when the text is something else, such as the end of the log.
#[must_use]
pub fn parse_outcome(message: &str) -> Option<BackupOutcome> {
    parse_message(message)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::jobs::termination::MESSAGE_LIMIT;

    pub(crate) fn summary() -> BackupSummary {
        BackupSummary {
            id: "20261122T020000Z-1-0-3000060".to_owned(),
            destination: "s3://backups/shop/shop/7300000000000000001/base/20261122T020000Z-1-0-3000060/".to_owned(),
            system_id: "7300000000000000001".to_owned(),
            server_version: 170_006,
            timeline: TimelineId(1),
            start_lsn: Lsn(0x300_0060),
            stop_lsn: Lsn(0x300_0120),
            started_at: "2026-11-22T02:00:00Z".to_owned(),
            completed_at: "2026-11-22T02:01:02Z".to_owned(),
            bytes: 3 << 30,
            stored_bytes: 1 << 30,
            took_ms: 62_000,
            stream_ms: 60_000,
            parent: None,
            chain_length: 1,
            full_reason: None,
            local: false,
            levels: Some(LevelsUsed { lowest: -1, highest: 3, mean_hundredths: 125 }),
            peak_rss_bytes: Some(90 << 20),
        }
    }

    #[test]
    fn an_outcome_survives_the_termination_message() {
        let outcome = BackupOutcome::Completed(Box::new(summary()));
        assert_eq!(parse_outcome(&render_outcome(&outcome)), Some(outcome));
    }

    #[test]
    fn a_long_error_is_cut_below_the_limit() {
        let failure = BackupFailure { reason: "X".to_owned(), error: "\"ü\n".repeat(4000), retry: true };
        let text = render_outcome(&BackupOutcome::Failed(failure));
        assert!(!text.is_empty() && text.len() <= MESSAGE_LIMIT, "{}", text.len());
        assert!(matches!(parse_outcome(&text), Some(BackupOutcome::Failed(f)) if f.retry));
        let completed = BackupSummary { full_reason: Some("\"ü\n".repeat(4000)), ..summary() };
        let text = render_outcome(&BackupOutcome::Completed(Box::new(completed)));
        assert!(matches!(parse_outcome(&text), Some(BackupOutcome::Completed(_))), "{}", text.len());
    }

    #[test]
    fn the_end_of_a_log_is_not_an_outcome() {
        assert_eq!(parse_outcome("thread main panicked"), None);
        assert_eq!(parse_outcome(""), None);
    }
}

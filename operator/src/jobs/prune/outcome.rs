//! How a run of retention ended, as its Job says so in its pod's termination message. Carries no secret.

use serde::{Deserialize, Serialize};

use crate::jobs::termination::{ERROR_CHARS, parse_message, render_message};

/// Lists are cut after so many ids of at most 43 characters: together they stay below the limit.
const DELETED: usize = 20;
const GONE: usize = 30;
const NEXT: usize = 8;
const HELD: usize = 4;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum PruneJobOutcome {
    /// What was beyond the policy is gone.
    Completed(PruneSummary),
    /// It broke off. What was begun is finished by the next run.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// One word for machines.
        reason: String,
        /// The error and its causes, for people.
        error: String,
    },
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneSummary {
    /// Backups in the store after the run.
    pub kept: u32,
    /// Backups that were deleted.
    pub deleted_count: u32,
    /// Their ids, oldest first; of many, the first ones.
    pub deleted: Vec<String>,
    /// WAL files that were deleted.
    pub deleted_wal: u64,
    /// Bytes of all that was deleted.
    pub bytes_freed: u64,
    /// Ids of backups that stay only because they are being read.
    pub held: Vec<String>,
    /// Known ids that the store does not have any more; of many, the first ones.
    pub gone: Vec<String>,
    /// There are more of them.
    #[serde(default)]
    pub more_gone: bool,
    /// Why the first backup that was to go by its id stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Ids that go next.
    pub next: Vec<String>,
    /// RFC 3339: when; none: with the next backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// RFC 3339: when something goes by its age alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// The termination message; always shorter than Kubernetes' limit.
#[must_use]
pub fn render_outcome(outcome: &PruneJobOutcome) -> String {
    let mut outcome = outcome.clone();
    match &mut outcome {
        PruneJobOutcome::Failed { error, .. } => *error = error.chars().take(ERROR_CHARS).collect(),
        PruneJobOutcome::Completed(summary) => {
            summary.more_gone |= summary.gone.len() > GONE;
            summary.deleted.truncate(DELETED);
            summary.gone.truncate(GONE);
            summary.next.truncate(NEXT);
            summary.held.truncate(HELD);
        }
    }
    render_message(&outcome)
}

/// The outcome that a termination message tells; None when the text is something else, such as the end of the log.
#[must_use]
pub fn parse_outcome(message: &str) -> Option<PruneJobOutcome> {
    parse_message(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_over_a_thousand_backups_fits_and_says_that_there_are_more() {
        let ids: Vec<String> =
            (0..1000).map(|n| format!("20261122T020000Z-0000001A-FFFFFFFF-{:08X}", u32::MAX - n)).collect();
        let summary = PruneSummary {
            kept: 1000,
            deleted_count: 1000,
            deleted: ids.clone(),
            deleted_wal: u64::MAX,
            bytes_freed: u64::MAX,
            held: ids.clone(),
            gone: ids.clone(),
            refused: Some("it is the newest restorable backup".to_owned()),
            next: ids,
            next_at: Some("2026-11-22T02:00:00Z".to_owned()),
            expires_at: Some("2026-11-22T02:00:00Z".to_owned()),
            more_gone: false,
        };
        let text = render_outcome(&PruneJobOutcome::Completed(summary));
        let Some(PruneJobOutcome::Completed(read)) = parse_outcome(&text) else { panic!("{} bytes", text.len()) };
        assert!(read.more_gone && read.gone.len() == GONE && read.deleted.len() == DELETED);
    }

    #[test]
    fn a_failure_survives_the_termination_message() {
        let failed =
            PruneJobOutcome::Failed { reason: "StoreUnreachable".to_owned(), error: "no \"route\"".to_owned() };
        assert_eq!(parse_outcome(&render_outcome(&failed)), Some(failed));
        assert_eq!(parse_outcome("thread main panicked"), None);
    }
}

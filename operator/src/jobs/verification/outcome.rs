//! How a verification ended, as its Job says so in its pod's termination message. Carries no secret.

use serde::{Deserialize, Serialize};

use crate::jobs::termination::{parse_message, render_message};

/// An error text is cut after this many characters, which leaves room for JSON's escapes.
const ERROR_CHARS: usize = 600;

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum VerifyJobOutcome {
    /// The backup is good.
    Completed(VerifySummary),
    /// It is not, or could not be verified.
    Failed(VerifyFailure),
}

/// A backup that was found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifySummary {
    /// Its id.
    pub id: String,
    /// Files that were checked.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// WAL was replayed up to here.
    pub replayed_lsn: String,
    /// What pg_amcheck said.
    pub amcheck: String,
    /// How many statements held.
    pub statements: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// Why a backup was not found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyFailure {
    /// One word for machines.
    pub reason: String,
    /// The error and its causes, for people: it names the first object, file, segment or statement that is not good.
    pub error: String,
    /// The backup or its WAL is to blame, not what it was verified with.
    pub blames_backup: bool,
    /// It does not come back as a database at all.
    pub unusable: bool,
}

/// The termination message; always shorter than Kubernetes' limit.
#[must_use]
pub fn render_outcome(outcome: &VerifyJobOutcome) -> String {
    let mut outcome = outcome.clone();
    if let VerifyJobOutcome::Failed(failure) = &mut outcome {
        failure.error = failure.error.chars().take(ERROR_CHARS).collect();
    }
    render_message(&outcome)
}

/// The outcome that a termination message tells; None when the text is something else, such as the end of the log.
#[must_use]
pub fn parse_outcome(message: &str) -> Option<VerifyJobOutcome> {
    parse_message(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::termination::MESSAGE_LIMIT;

    #[test]
    fn a_long_error_in_any_script_fits_and_is_read_back() {
        let failure = VerifyFailure {
            reason: "StatementFailed".to_owned(),
            error: "\"ü\u{1}\n".repeat(4000),
            blames_backup: true,
            unusable: false,
        };
        let text = render_outcome(&VerifyJobOutcome::Failed(failure));
        assert!(!text.is_empty() && text.len() <= MESSAGE_LIMIT, "{}", text.len());
        assert!(matches!(parse_outcome(&text), Some(VerifyJobOutcome::Failed(failure)) if failure.blames_backup));
    }
}

//! What retention and verification have in common: times, pauses after failures, and what a round publishes. Pure.

use jiff::{SignedDuration, Timestamp};
use pgherd_crds::v1alpha1::{backup_schedule::RetentionStatus, shared::Condition, verification::VerificationStatus};

/// How soon a run under way is looked at again.
pub const WATCH_RUN: SignedDuration = SignedDuration::from_secs(15);
/// The pause after the first failure; it doubles with each.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(2);
/// The longest pause.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);

/// A condition with its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its type.
    pub type_: &'static str,
    /// `True` or `False`.
    pub holds: bool,
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Verdict {
    /// It does not hold.
    #[must_use]
    pub fn refused(type_: &'static str, reason: &str, message: String) -> Self {
        Self { type_, holds: false, reason: reason.to_owned(), message }
    }

    /// The published condition of this type, as it is.
    #[must_use]
    pub fn published(type_: &'static str, conditions: &[Condition]) -> Option<Self> {
        let found = conditions.iter().find(|condition| condition.type_ == type_)?;
        let holds = found.status == "True";
        Some(Self { type_, holds, reason: found.reason.clone(), message: found.message.clone() })
    }
}

/// What a round has to say of retention and verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// For the status.
    pub retention: Option<RetentionStatus>,
    /// For the status.
    pub verification: Option<VerificationStatus>,
    /// Conditions beside those of the schedule itself.
    pub verdicts: Vec<Verdict>,
    /// Verdicts that are news and worth an Event.
    pub news: Vec<Verdict>,
    /// When to look again.
    pub again: Vec<Timestamp>,
}

/// How long to wait after so many failures in a row.
#[must_use]
pub fn pause_after(failures: u32) -> SignedDuration {
    let factor = 1_i32 << failures.saturating_sub(1).min(10);
    (FIRST_PAUSE * factor).min(LONGEST_PAUSE)
}

/// A time of the status; none when somebody wrote something else there.
#[must_use]
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// `time` and `span` later, or the end of the calendar.
#[must_use]
pub fn later(time: Timestamp, span: SignedDuration) -> Timestamp {
    time.checked_add(span).unwrap_or(Timestamp::MAX)
}

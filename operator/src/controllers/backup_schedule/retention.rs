//! When retention runs, and what is published of it. Pure: `now` is an argument. The deleting is the Job's.
//!
//! It runs when a backup of the schedule became restorable, when the setting changed, and when something passed the window
//! by its age alone; the last at most once an hour. A run that failed is repeated with growing pauses.

use jiff::{SignedDuration, Timestamp};
use pgherd_core::{
    quantity::{parse_duration, render_bytes},
    retention::RetentionPolicy,
};
use pgherd_crds::v1alpha1::{
    backup_schedule::{Retention, RetentionStatus},
    conditions::RETENTION_HEALTHY,
};

use super::care::{Verdict, later, parse_time, pause_after};
use crate::{
    controllers::{
        backup::conditions::render_seconds,
        store_jobs::observe::{Run, RunState},
    },
    jobs::prune::{
        config::PruneJobConfig,
        outcome::{PruneJobOutcome, PruneSummary, parse_outcome},
    },
};

/// Without a new backup or a new setting it runs no oftener.
const SELDOM: SignedDuration = SignedDuration::from_hours(1);
/// When not all Backup objects without data could be named in one run.
const SOON: SignedDuration = SignedDuration::from_mins(2);

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct RetentionFacts {
    /// The setting, or what is wrong with it; none: everything is kept.
    pub policy: Result<Option<RetentionPolicy>, String>,
    /// Nothing is deleted while no backups can be made.
    pub paused: bool,
    /// Id of the schedule's newest restorable backup.
    pub newest: Option<String>,
    /// The last run, unless its end is published already.
    pub run: Option<Run<PruneJobConfig>>,
    /// What is published.
    pub published: RetentionStatus,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionStep {
    /// There is no setting.
    Off,
    /// The setting cannot be used.
    Refuse(String),
    /// Nothing before this time, if there is one.
    Rest(Option<Timestamp>),
    /// A run is under way; with what keeps its pod from starting.
    Wait(Option<String>),
    /// Begin a run.
    Start {
        /// What it is for.
        ran_for: String,
        /// Differs from run to run.
        run: String,
    },
    /// A run has ended.
    Conclude(Box<Conclusion>),
}

/// What a run that has ended means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// What to publish.
    pub status: RetentionStatus,
    /// Ids of known backups that have no data any more.
    pub gone: Vec<String>,
    /// The condition.
    pub verdict: Verdict,
}

/// The policy that the user wrote.
///
/// # Errors
/// One sentence that names the field.
pub fn parse_policy(retention: Option<&Retention>) -> Result<Option<RetentionPolicy>, String> {
    let Some(Retention { keep_last, keep_for }) = retention else { return Ok(None) };
    let keep_for = keep_for.as_deref().map(parse_duration).transpose();
    let keep_for = keep_for.map_err(|error| format!("spec.retention.keepFor: {error}"))?;
    match (keep_last, keep_for) {
        (None, None) => Err("spec.retention needs keepLast or keepFor: to keep everything leave it out".to_owned()),
        (Some(0), _) => Err("spec.retention.keepLast must be at least 1".to_owned()),
        (_, Some(window)) if !window.is_positive() => Err("spec.retention.keepFor must be positive".to_owned()),
        _ => Ok(Some(RetentionPolicy { keep_last: *keep_last, keep_for })),
    }
}

/// Decides. See [`RetentionStep`].
#[must_use]
pub fn decide_retention(facts: &RetentionFacts, now: Timestamp) -> RetentionStep {
    let policy = match &facts.policy {
        Ok(Some(policy)) => policy,
        Ok(None) => return RetentionStep::Off,
        Err(problem) => return RetentionStep::Refuse(problem.clone()),
    };
    let published = &facts.published;
    match &facts.run {
        Some(Run { state: RunState::Active(trouble), .. }) => return RetentionStep::Wait(trouble.clone()),
        Some(run) => {
            if let Some(conclusion) = conclude(run, published) {
                return RetentionStep::Conclude(Box::new(conclusion));
            }
        }
        None => {}
    }
    let Some(newest) = facts.newest.as_ref().filter(|_| !facts.paused) else { return RetentionStep::Rest(None) };
    let ran_for = format!("{}; {newest}", render_policy(policy));
    let last = published.last_run_time.as_deref().and_then(parse_time);
    let failures = published.failures.unwrap_or(0);
    let due = match last {
        None => now,
        Some(last) if failures > 0 => later(last, pause_after(failures)),
        Some(_) if published.ran_for.as_ref() != Some(&ran_for) => now,
        Some(_) => match published.next_run_time.as_deref().and_then(parse_time) {
            None => return RetentionStep::Rest(None),
            Some(next) => next,
        },
    };
    if due > now {
        return RetentionStep::Rest(Some(due));
    }
    let run = format!("{ran_for}; {}; {failures}", published.last_run_time.as_deref().unwrap_or_default());
    RetentionStep::Start { ran_for, run }
}

fn render_policy(policy: &RetentionPolicy) -> String {
    let last = policy.keep_last.map(|count| format!("keepLast {count}"));
    let window = policy.keep_for.map(|window| format!("keepFor {} s", window.as_secs()));
    last.into_iter().chain(window).collect::<Vec<_>>().join(", ")
}

fn conclude(run: &Run<PruneJobConfig>, published: &RetentionStatus) -> Option<Conclusion> {
    let RunState::Ended { at, message, why } = &run.state else { return None };
    match message.as_deref().and_then(parse_outcome) {
        Some(PruneJobOutcome::Completed(summary)) => Some(conclude_success(run, &summary, *at)),
        Some(PruneJobOutcome::Failed { reason, error }) => Some(conclude_failure(run, published, *at, &reason, &error)),
        None => Some(conclude_failure(run, published, *at, "JobFailed", why)),
    }
}

fn conclude_success(run: &Run<PruneJobConfig>, summary: &PruneSummary, at: Timestamp) -> Conclusion {
    let expires = summary.expires_at.as_deref().and_then(parse_time).map(|expires| expires.max(later(at, SELDOM)));
    let held = (!summary.held.is_empty()).then(|| later(at, SELDOM));
    let more = summary.more_gone.then(|| later(at, SOON));
    let message = render_message(summary);
    let status = RetentionStatus {
        kept: Some(summary.kept),
        deleted: summary.deleted.clone(),
        deleted_wal: i64::try_from(summary.deleted_wal).ok(),
        bytes_freed: i64::try_from(summary.bytes_freed).ok(),
        last_run_time: Some(render_seconds(at)),
        next: summary.next.clone(),
        next_time: summary.next_at.clone(),
        next_run_time: [expires, held, more].into_iter().flatten().min().map(render_seconds),
        message: Some(message.clone()),
        job: Some(run.job.clone()),
        ran_for: Some(run.config.ran_for.clone()),
        failures: None,
    };
    let verdict = Verdict { type_: RETENTION_HEALTHY, holds: true, reason: "Pruned".to_owned(), message };
    Conclusion { status, gone: summary.gone.clone(), verdict }
}

fn render_message(summary: &PruneSummary) -> String {
    let mut message = match (summary.deleted_count, summary.deleted_wal) {
        (0, 0) => format!("nothing was to be deleted; backups in the store: {}", summary.kept),
        (backups, wal) => format!(
            "deleted {backups} backups and {wal} WAL files, {} in all; backups in the store: {}",
            render_bytes(summary.bytes_freed),
            summary.kept
        ),
    };
    if !summary.held.is_empty() {
        message.push_str(&format!("; {} would go but is being read", summary.held.join(", ")));
    }
    message
}

/// What the last good run said stays.
fn conclude_failure(
    run: &Run<PruneJobConfig>,
    published: &RetentionStatus,
    at: Timestamp,
    reason: &str,
    error: &str,
) -> Conclusion {
    let failures = published.failures.unwrap_or(0).saturating_add(1);
    let status = RetentionStatus {
        last_run_time: Some(render_seconds(at)),
        next_run_time: Some(render_seconds(later(at, pause_after(failures)))),
        message: Some(error.to_owned()),
        job: Some(run.job.clone()),
        failures: Some(failures),
        ..published.clone()
    };
    let verdict = Verdict {
        type_: RETENTION_HEALTHY,
        holds: false,
        reason: reason.to_owned(),
        message: format!("what is beyond the retention stays: {error}"),
    };
    Conclusion { status, gone: Vec::new(), verdict }
}

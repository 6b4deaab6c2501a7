//! When the newest backup is verified, and what the outcome means. Pure: `now` is an argument. The verifying is the Job's.

use jiff::{SignedDuration, Timestamp};
use pgherd_core::quantity::parse_duration;
use pgherd_crds::v1alpha1::{
    conditions::VERIFIED,
    verification::{VerificationStatus, Verify},
};

use super::care::{Verdict, later, parse_time, pause_after};
use crate::{
    controllers::{
        backup::conditions::render_seconds,
        store_jobs::observe::{Run, RunState},
    },
    jobs::verification::{
        config::VerifyJobConfig,
        outcome::{VerifyFailure, VerifyJobOutcome, VerifySummary, parse_outcome},
    },
};

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct VerificationFacts {
    /// How often, or what is wrong with the setting; none: never.
    pub every: Result<Option<SignedDuration>, String>,
    /// The schedule is suspended, or its cluster is not to be had.
    pub paused: bool,
    /// Name of the newest restorable Backup of the cluster of which it is known whether its WAL is archived.
    pub newest: Option<String>,
    /// Name of the newest one that was found not to come back.
    pub condemned: Option<String>,
    /// The newest restorable one is known to be newer than the one that was verified last.
    pub newer: bool,
    /// The last run, unless its end is published already.
    pub run: Option<Run<VerifyJobConfig>>,
    /// What is published.
    pub published: VerificationStatus,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerificationStep {
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
        /// The Backup.
        backup: String,
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
    pub status: VerificationStatus,
    /// The schedule's condition.
    pub verdict: Verdict,
    /// The Backup, by name and UID.
    pub backup: (String, String),
    /// What its status is to say; none when the run says nothing of it.
    pub finding: Option<Finding>,
}

/// What is known of a Backup now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is good.
    Good {
        /// In numbers.
        summary: VerifySummary,
        /// Since when that is known.
        at: Timestamp,
    },
    /// It is not.
    Bad(VerifyFailure),
}

/// How often the user wants it.
///
/// # Errors
/// One sentence that names the field.
pub fn parse_every(verify: Option<&Verify>) -> Result<Option<SignedDuration>, String> {
    let Some(verify) = verify else { return Ok(None) };
    match parse_duration(&verify.every) {
        Ok(every) if every.is_positive() => Ok(Some(every)),
        Ok(_) => Err("spec.verify.every must be positive".to_owned()),
        Err(error) => Err(format!("spec.verify.every: {error}")),
    }
}

/// Decides. See [`VerificationStep`].
#[must_use]
pub fn decide_verification(facts: &VerificationFacts, now: Timestamp) -> VerificationStep {
    let every = match &facts.every {
        Ok(Some(every)) => *every,
        Ok(None) => return VerificationStep::Off,
        Err(problem) => return VerificationStep::Refuse(problem.clone()),
    };
    let published = &facts.published;
    if let Some(run) = &facts.run {
        return match &run.state {
            RunState::Active(trouble) => VerificationStep::Wait(trouble.clone()),
            RunState::Ended { at, message, why } => {
                let outcome = message.as_deref().and_then(parse_outcome);
                VerificationStep::Conclude(Box::new(conclude(run, published, every, *at, outcome, why)))
            }
        };
    }
    let Some(backup) = choose_backup(facts).filter(|_| !facts.paused) else { return VerificationStep::Rest(None) };
    let last = published.last_run_time.as_deref().and_then(parse_time);
    let failures = published.failures.unwrap_or(0);
    // One that was found bad is followed by the next one that is made, not by another look at the same, nor by the older ones:
    // what is wrong with the verification itself would condemn them all, one after the other.
    let was_bad =
        failures == 0 && published.last_run_time.is_some() && published.last_success_time != published.last_run_time;
    let due = match last {
        None => now,
        Some(last) if failures > 0 => later(last, pause_after(failures)),
        Some(_) if was_bad && facts.newer => now,
        Some(last) => later(last, every),
    };
    if due > now {
        return VerificationStep::Rest(Some(due));
    }
    let run = format!("{backup}; {}; {failures}", published.last_run_time.as_deref().unwrap_or_default());
    VerificationStep::Start { backup, run }
}

/// The newest restorable one; once that is known to be good, a condemned one in its turn, as what condemned it may have been in the
/// machine that looked, or on the way.
fn choose_backup(facts: &VerificationFacts) -> Option<String> {
    let published = &facts.published;
    let is_good = facts.newest == published.backup
        && published.last_run_time.is_some()
        && published.last_success_time == published.last_run_time;
    let condemned = facts.condemned.as_ref().filter(|_| is_good || facts.newest.is_none());
    condemned.or(facts.newest.as_ref()).cloned()
}

fn conclude(
    run: &Run<VerifyJobConfig>,
    published: &VerificationStatus,
    every: SignedDuration,
    at: Timestamp,
    outcome: Option<VerifyJobOutcome>,
    why: &str,
) -> Conclusion {
    let name = &run.config.backup;
    let mut status = VerificationStatus {
        backup: Some(name.clone()),
        last_run_time: Some(render_seconds(at)),
        next_run_time: Some(render_seconds(later(at, every))),
        job: Some(run.job.clone()),
        failures: None,
        ..published.clone()
    };
    let (reason, message, finding) = match outcome {
        Some(VerifyJobOutcome::Completed(summary)) => {
            status.last_success_time = status.last_run_time.clone();
            let message = format!(
                "{name} was restored and is good: {} files, WAL up to {}, pg_amcheck {}, {} statements",
                summary.files, summary.replayed_lsn, summary.amcheck, summary.statements
            );
            ("Verified".to_owned(), message, Some(Finding::Good { summary, at }))
        }
        Some(VerifyJobOutcome::Failed(failure)) if failure.blames_backup => {
            (failure.reason.clone(), format!("{name} is not good: {}", failure.error), Some(Finding::Bad(failure)))
        }
        Some(VerifyJobOutcome::Failed(failure)) => {
            (failure.reason, format!("{name} could not be verified: {}", failure.error), None)
        }
        None => ("JobFailed".to_owned(), format!("{name} could not be verified: {why}"), None),
    };
    if finding.is_none() {
        let failures = published.failures.unwrap_or(0).saturating_add(1);
        status.failures = Some(failures);
        status.next_run_time = Some(render_seconds(later(at, pause_after(failures))));
    }
    status.message = Some(message.clone());
    let holds = matches!(finding, Some(Finding::Good { .. }));
    let verdict = Verdict { type_: VERIFIED, holds, reason, message };
    Conclusion { status, verdict, backup: (name.clone(), run.config.backup_uid.clone()), finding }
}

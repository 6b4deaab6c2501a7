//! Which run of a schedule is due, which is left out, and which old Backups go. Pure: `now` is an argument.
//!
//! A run is left out, not put off, if at its time another backup of the cluster was under way that did succeed: one backup
//! right after another is worth nothing. What was missed otherwise is made up for once.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use pgherd_core::schedule::{Schedule, ScheduleError};

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct ScheduleFacts {
    /// The schedule, or why it can't be used.
    pub schedule: Result<Schedule, ScheduleError>,
    /// `spec.suspend`.
    pub suspended: bool,
    /// `spec.startingDeadlineSeconds`.
    pub starting_deadline: Option<SignedDuration>,
    /// The time of the last run, or the schedule's creation before the first one.
    pub since: Timestamp,
    /// What stands in the way of backups of the cluster, as reason and message.
    pub blocked: Option<(&'static str, String)>,
    /// All Backups of the cluster.
    pub backups: Vec<KnownBackup>,
    /// Backups that a new cluster is being restored from.
    pub pinned: BTreeSet<String>,
    /// How many completed and how many failed Backups of the schedule are kept.
    pub limits: (usize, usize),
}

/// A Backup object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownBackup {
    /// Its name.
    pub name: String,
    /// Made by this schedule.
    pub ours: bool,
    /// When it was created.
    pub created: Timestamp,
    /// How it stands.
    pub state: KnownState,
}

/// How a Backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownState {
    /// Pending or running.
    Unfinished,
    /// In the store since then.
    Completed(Timestamp),
    /// Given up then.
    Failed(Timestamp),
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Make the Backup of the run that was scheduled for this time.
    pub create: Option<Timestamp>,
    /// Earlier runs that were missed and are not made up for.
    pub missed: u32,
    /// A due run is left out; the message names the Backup that was under way.
    pub left_out: Option<String>,
    /// These Backup objects go.
    pub delete: Vec<String>,
    /// The next run; none while suspended or stalled.
    pub next: Option<Timestamp>,
    /// What is wrong, as reason and message.
    pub stalled: Option<(&'static str, String)>,
}

/// Decides. See [`Plan`].
#[must_use]
pub fn decide(facts: &ScheduleFacts, now: Timestamp) -> Plan {
    let mut plan = Plan { delete: decide_deletions(facts), ..Plan::default() };
    let schedule = match &facts.schedule {
        Ok(schedule) => schedule,
        Err(error) => {
            plan.stalled = Some(("InvalidSchedule", render_schedule_error(error)));
            return plan;
        }
    };
    if facts.suspended {
        return plan;
    }
    if let Some(blocked) = &facts.blocked {
        plan.stalled = Some(blocked.clone());
        return plan;
    }
    plan.next = schedule.next_after(now);
    if let Some(due) = schedule.due(facts.since, now, facts.starting_deadline) {
        match find_overlap(&facts.backups, due.scheduled) {
            Some(other) => {
                plan.left_out = Some(format!(
                    "the run of {} is left out because the Backup {} was under way",
                    due.scheduled, other.name
                ));
            }
            None => {
                plan.create = Some(due.scheduled);
                plan.missed = due.skipped;
            }
        }
    }
    plan
}

/// The field is named first; the error itself says what to write instead.
fn render_schedule_error(error: &ScheduleError) -> String {
    let field = match error {
        ScheduleError::TimeZone { .. } => "spec.timeZone",
        _ => "spec.schedule",
    };
    format!("{field}: {error}")
}

/// A backup that is under way now, or that was at `time` and succeeded.
fn find_overlap(backups: &[KnownBackup], time: Timestamp) -> Option<&KnownBackup> {
    backups.iter().find(|backup| match backup.state {
        KnownState::Unfinished => true,
        KnownState::Completed(at) => backup.created < time && at > time,
        KnownState::Failed(_) => false,
    })
}

/// Finished Backups of this schedule beyond the limits, oldest first: by the API server's clock, which is one.
fn decide_deletions(facts: &ScheduleFacts) -> Vec<String> {
    let beyond = |limit: usize, has_ended: fn(KnownState) -> bool| {
        let finished = facts.backups.iter().filter(|backup| backup.ours && has_ended(backup.state));
        let mut finished: Vec<_> = finished.map(|backup| (backup.created, &backup.name)).collect();
        finished.sort();
        let surplus = finished.len().saturating_sub(limit);
        finished.into_iter().take(surplus).map(|(_, name)| name.clone()).collect::<Vec<_>>()
    };
    let completed = beyond(facts.limits.0, |state| matches!(state, KnownState::Completed(_)));
    let failed = beyond(facts.limits.1, |state| matches!(state, KnownState::Failed(_)));
    completed.into_iter().chain(failed).filter(|name| !facts.pinned.contains(name)).collect()
}

/// The newest completed Backup of this schedule.
#[must_use]
pub fn find_last_success(backups: &[KnownBackup]) -> Option<&KnownBackup> {
    let completed = |backup: &&KnownBackup| backup.ours && matches!(backup.state, KnownState::Completed(_));
    backups.iter().filter(completed).max_by_key(|backup| backup.created)
}

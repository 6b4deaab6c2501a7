//! What becomes of a Backup that is being deleted and whose data is to go with it. Pure: `now` is an argument.
//!
//! The object stays as long as its data does, and says why. Where nobody can delete the data any more (its cluster or its
//! namespace is going) the object goes alone, and an Event says where the data is.

use jiff::{SignedDuration, Timestamp};
use pgherd_crds::v1alpha1::backup::BackupPhase;

use super::decide::{AttemptState, Wait};
use crate::{
    controllers::store_jobs::observe::{Run, RunState},
    jobs::{
        backup::outcome::{BackupFailure, BackupSummary},
        prune::{
            config::PruneJobConfig,
            outcome::{PruneJobOutcome, parse_outcome},
        },
    },
};

/// The finalizer of a Backup with `deletionPolicy: Delete`.
pub const FINALIZER: &str = "pgherd.dev/backup-data";
/// How soon a Job under way is looked at again.
const WATCH_JOB: SignedDuration = SignedDuration::from_secs(5);
/// How soon data that may not go yet is tried again.
const TRY_AGAIN: SignedDuration = SignedDuration::from_mins(5);
/// How soon it is seen that another backup has become the newest.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(20);

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct DeletionFacts {
    /// `deletionPolicy` is `Delete`.
    pub wanted: bool,
    /// A Job is still making the backup.
    pub being_made: bool,
    /// The backup's id in the store; none if nothing of it is there.
    pub id: Option<String>,
    /// Why the data can't be deleted by anybody: its store is not known.
    pub out_of_reach: Option<String>,
    /// The last run of the Job that deletes.
    pub run: Option<Run<PruneJobConfig>>,
    /// When the cluster's newest restorable backup was complete: it may be what was waited for.
    pub newest_complete: Option<Timestamp>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeletionStep {
    /// The object may go; with the reason why its data stays, if it does.
    Release(Option<String>),
    /// Not yet.
    Wait(Wait),
    /// Begin a run; its number differs from run to run.
    Start(usize),
}

/// Decides. See [`DeletionStep`].
#[must_use]
pub fn decide_deletion(facts: &DeletionFacts, now: Timestamp) -> DeletionStep {
    if !facts.wanted {
        return DeletionStep::Release(None);
    }
    if facts.being_made {
        return wait(
            "BackupRunning",
            "it is deleted once the Job that makes the backup has ended".to_owned(),
            WATCH_JOB,
        );
    }
    if facts.id.is_none() {
        return DeletionStep::Release(None);
    }
    if let Some(why) = &facts.out_of_reach {
        return DeletionStep::Release(Some(why.clone()));
    }
    let Some(run) = &facts.run else { return DeletionStep::Start(0) };
    match &run.state {
        RunState::Active(None) => wait("DeletingData", "its data is being deleted".to_owned(), WATCH_JOB),
        RunState::Active(Some(trouble)) => wait("JobNotStarting", trouble.clone(), WATCH_JOB),
        RunState::Ended { at, message, why } => {
            let (reason, text) = match message.as_deref().and_then(parse_outcome) {
                Some(PruneJobOutcome::Completed(summary)) => match summary.refused {
                    None => return DeletionStep::Release(None),
                    Some(why) => ("DataKept", render_refusal(&why)),
                },
                Some(PruneJobOutcome::Failed { error, .. }) => ("DeletionFailed", error),
                None => ("DeletionFailed", why.clone()),
            };
            let left = TRY_AGAIN - now.duration_since(*at);
            let is_newest_no_more = facts.newest_complete.is_some_and(|complete| complete > *at && complete <= now);
            if left.is_positive() && !is_newest_no_more {
                wait(reason, text, left.min(LOOK_AGAIN))
            } else {
                DeletionStep::Start(run.count)
            }
        }
    }
}

/// How a Backup ended of which that was never written, as no Job makes it any more. It must not count as under way: as long as its data is
/// the newest, only a newer backup lets that go.
#[must_use]
pub fn decide_end(phase: BackupPhase, last: Option<&AttemptState>) -> Option<Result<BackupSummary, BackupFailure>> {
    if !matches!(phase, BackupPhase::Pending | BackupPhase::Running) {
        return None;
    }
    match last {
        Some(AttemptState::Active { .. }) => None,
        Some(AttemptState::Succeeded(summary)) => Some(Ok(summary.clone())),
        Some(AttemptState::Failed { failure, .. }) => Some(Err(failure.clone())),
        None => Some(Err(BackupFailure {
            reason: "Deleted".to_owned(),
            error: "it was deleted before it was known how its Job ended".to_owned(),
            retry: false,
        })),
    }
}

fn render_refusal(why: &str) -> String {
    format!(
        "its data stays for now because {why}; it is tried again every {} minutes, and with deletionPolicy: Retain the object goes without its data",
        TRY_AGAIN.as_mins()
    )
}

fn wait(reason: &'static str, message: String, again: SignedDuration) -> DeletionStep {
    DeletionStep::Wait(Wait { reason, message, stalled: false, again })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controllers::backup::tests::location,
        jobs::{
            backup::outcome::tests::summary,
            prune::outcome::{PruneSummary, render_outcome},
        },
    };

    fn now() -> Timestamp {
        "2026-11-22T02:00:00Z".parse().unwrap()
    }

    fn facts() -> DeletionFacts {
        DeletionFacts {
            wanted: true,
            being_made: false,
            id: Some("b".into()),
            out_of_reach: None,
            run: None,
            newest_complete: None,
        }
    }

    fn ended(outcome: &PruneJobOutcome, minutes_ago: i64) -> DeletionFacts {
        let config = PruneJobConfig {
            location: location(),
            policy: None,
            pinned: vec![],
            doomed: vec!["b".into()],
            damaged: vec![],
            known: vec![],
            ran_for: String::new(),
        };
        let at = now() - SignedDuration::from_mins(minutes_ago);
        let state = RunState::Ended { at, message: Some(render_outcome(outcome)), why: String::new() };
        DeletionFacts { run: Some(Run { job: "j".into(), config, state, count: 1 }), ..facts() }
    }

    #[test]
    fn the_object_goes_after_its_data() {
        assert_eq!(decide_deletion(&facts(), now()), DeletionStep::Start(0));
        let done = ended(&PruneJobOutcome::Completed(PruneSummary::default()), 0);
        assert_eq!(decide_deletion(&done, now()), DeletionStep::Release(None));
    }

    #[test]
    fn data_that_may_not_go_is_waited_for_with_the_reason() {
        let summary = PruneSummary { refused: Some("it is the newest restorable backup".into()), ..Default::default() };
        let refused = PruneJobOutcome::Completed(summary);
        let DeletionStep::Wait(wait) = decide_deletion(&ended(&refused, 1), now()) else { panic!("no wait") };
        assert!(wait.reason == "DataKept" && wait.message.contains("the newest restorable backup"), "{wait:?}");
        assert_eq!(wait.again, LOOK_AGAIN);
        let newer = DeletionFacts { newest_complete: Some(now()), ..ended(&refused, 1) };
        assert_eq!(decide_deletion(&newer, now()), DeletionStep::Start(1));
        let ahead = now() + SignedDuration::from_hours(8_760);
        let ahead = DeletionFacts { newest_complete: Some(ahead), ..ended(&refused, 1) };
        assert!(matches!(decide_deletion(&ahead, now()), DeletionStep::Wait(_)), "a clock that is wrong says nothing");
        assert_eq!(decide_deletion(&ended(&refused, 5), now()), DeletionStep::Start(1));
        let failed = PruneJobOutcome::Failed { reason: "StoreUnreachable".into(), error: "no route".into() };
        let DeletionStep::Wait(wait) = decide_deletion(&ended(&failed, 1), now()) else { panic!("no wait") };
        assert_eq!((wait.reason, wait.message.as_str()), ("DeletionFailed", "no route"));
    }

    #[test]
    fn nothing_is_waited_for_where_there_is_no_data_or_nobody_can_delete_it() {
        let release = |facts: DeletionFacts| decide_deletion(&facts, now());
        assert_eq!(release(DeletionFacts { id: None, ..facts() }), DeletionStep::Release(None));
        assert_eq!(release(DeletionFacts { wanted: false, ..facts() }), DeletionStep::Release(None));
        let gone = DeletionFacts { out_of_reach: Some("its cluster is gone".into()), ..facts() };
        assert_eq!(release(gone), DeletionStep::Release(Some("its cluster is gone".into())));
        let running = DeletionFacts { being_made: true, id: None, ..facts() };
        assert!(matches!(release(running), DeletionStep::Wait(_)));
    }

    #[test]
    fn what_is_deleted_counts_as_under_way_only_as_long_as_its_job_runs() {
        let running = |state| decide_end(BackupPhase::Running, Some(&state));
        assert_eq!(running(AttemptState::Active { trouble: None }), None);
        assert_eq!(running(AttemptState::Succeeded(summary())), Some(Ok(summary())), "its last patch was lost");
        assert!(matches!(decide_end(BackupPhase::Running, None), Some(Err(_))), "its Job is gone");
        assert!(matches!(decide_end(BackupPhase::Pending, None), Some(Err(_))));
        assert_eq!(decide_end(BackupPhase::Completed, None), None);
        assert_eq!(decide_end(BackupPhase::Failed, None), None);
    }
}

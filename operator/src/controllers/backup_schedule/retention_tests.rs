//! When retention runs, and what its end means.

use jiff::{SignedDuration, Timestamp};
use pgherd_core::retention::RetentionPolicy;
use pgherd_crds::v1alpha1::backup_schedule::{Retention, RetentionStatus};

use super::retention::{Conclusion, RetentionFacts, RetentionStep, decide_retention, parse_policy};
use crate::{
    controllers::{
        backup::tests::location,
        store_jobs::observe::{Run, RunState},
    },
    jobs::prune::{
        config::PruneJobConfig,
        outcome::{PruneJobOutcome, PruneSummary, render_outcome},
    },
};

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn facts() -> RetentionFacts {
    RetentionFacts {
        policy: Ok(Some(RetentionPolicy { keep_last: Some(2), keep_for: None })),
        paused: false,
        newest: Some("b2".to_owned()),
        run: None,
        published: RetentionStatus::default(),
    }
}

fn ended(outcome: &PruneJobOutcome, ran_for: &str) -> Run<PruneJobConfig> {
    let config = PruneJobConfig {
        location: location(),
        policy: None,
        pinned: vec![],
        doomed: vec![],
        damaged: vec![],
        known: vec![],
        ran_for: ran_for.to_owned(),
    };
    let state = RunState::Ended { at: now(), message: Some(render_outcome(outcome)), why: "the end".to_owned() };
    Run { job: "shop-nightly-r1".to_owned(), config, state, count: 1 }
}

fn conclude(facts: &RetentionFacts) -> Conclusion {
    match decide_retention(facts, now()) {
        RetentionStep::Conclude(conclusion) => *conclusion,
        other => panic!("{other:?}"),
    }
}

/// Starts, ends as `outcome` says, and gives the facts after that.
fn after(outcome: PruneJobOutcome) -> RetentionFacts {
    let RetentionStep::Start { ran_for, .. } = decide_retention(&facts(), now()) else { panic!("no start") };
    let conclusion = conclude(&RetentionFacts { run: Some(ended(&outcome, &ran_for)), ..facts() });
    RetentionFacts { published: conclusion.status, ..facts() }
}

#[test]
fn it_runs_once_for_each_backup_and_each_setting() {
    let done = after(PruneJobOutcome::Completed(PruneSummary::default()));
    let later = now() + SignedDuration::from_hours(1000);
    assert_eq!(decide_retention(&done, later), RetentionStep::Rest(None));
    let another = RetentionFacts { newest: Some("b3".to_owned()), ..done.clone() };
    assert!(matches!(decide_retention(&another, now()), RetentionStep::Start { .. }));
    let policy = Ok(Some(RetentionPolicy { keep_last: Some(1), keep_for: None }));
    assert!(matches!(decide_retention(&RetentionFacts { policy, ..done }, now()), RetentionStep::Start { .. }));
}

#[test]
fn what_falls_out_of_the_window_is_not_looked_for_more_than_once_an_hour() {
    let expires = |at: &str| PruneSummary { expires_at: Some(at.to_owned()), ..PruneSummary::default() };
    let soon = after(PruneJobOutcome::Completed(expires("2026-11-22T12:01:00Z")));
    let hour = now() + SignedDuration::from_hours(1);
    assert_eq!(decide_retention(&soon, now()), RetentionStep::Rest(Some(hour)));
    assert!(matches!(decide_retention(&soon, hour), RetentionStep::Start { .. }));
    let far = after(PruneJobOutcome::Completed(expires("2026-11-25T12:00:00Z")));
    assert_eq!(decide_retention(&far, hour), RetentionStep::Rest(Some("2026-11-25T12:00:00Z".parse().unwrap())));
}

#[test]
fn failures_are_repeated_with_growing_pauses_and_keep_what_was_known() {
    let mut facts = after(PruneJobOutcome::Completed(PruneSummary { kept: 2, ..PruneSummary::default() }));
    facts.newest = Some("b3".to_owned());
    let failed = PruneJobOutcome::Failed { reason: "StoreUnreachable".to_owned(), error: "no route".to_owned() };
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let conclusion = conclude(&RetentionFacts { run: Some(ended(&failed, "x")), ..facts.clone() });
        assert_eq!((conclusion.verdict.holds, conclusion.verdict.reason.as_str()), (false, "StoreUnreachable"));
        assert_eq!((conclusion.status.kept, conclusion.gone.len()), (Some(2), 0));
        facts.published = conclusion.status;
        let RetentionStep::Rest(Some(until)) = decide_retention(&facts, now()) else { panic!("no pause") };
        assert!(matches!(decide_retention(&facts, until), RetentionStep::Start { .. }));
        pauses.push(until.duration_since(now()).as_mins());
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn each_run_has_a_name_of_its_own() {
    let run_of = |facts: &RetentionFacts| match decide_retention(facts, now() + SignedDuration::from_hours(2)) {
        RetentionStep::Start { run, .. } => run,
        other => panic!("{other:?}"),
    };
    let failed = PruneJobOutcome::Failed { reason: "X".to_owned(), error: "x".to_owned() };
    assert_eq!(run_of(&facts()), run_of(&facts()));
    assert_ne!(run_of(&facts()), run_of(&after(failed)));
}

#[test]
fn a_lost_outcome_is_a_failure_and_a_run_under_way_is_waited_for() {
    let outcome = PruneJobOutcome::Completed(PruneSummary::default());
    let mut lost = ended(&outcome, "x");
    lost.state = RunState::Ended { at: now(), message: None, why: "it passed its memory limit".to_owned() };
    let conclusion = conclude(&RetentionFacts { run: Some(lost), ..facts() });
    assert!(conclusion.verdict.message.contains("memory limit"), "{}", conclusion.verdict.message);
    let active = Run { state: RunState::Active(None), ..ended(&outcome, "x") };
    let facts = RetentionFacts { run: Some(active), ..facts() };
    assert_eq!(decide_retention(&facts, now()), RetentionStep::Wait(None));
}

#[test]
fn nothing_runs_while_no_backups_are_made_or_without_one() {
    let rest = RetentionStep::Rest(None);
    assert_eq!(decide_retention(&RetentionFacts { paused: true, ..facts() }, now()), rest);
    assert_eq!(decide_retention(&RetentionFacts { newest: None, ..facts() }, now()), rest);
    assert_eq!(decide_retention(&RetentionFacts { policy: Ok(None), ..facts() }, now()), RetentionStep::Off);
}

#[test]
fn a_setting_is_read_as_written_or_refused_with_its_field() {
    let parse = |keep_last, keep_for: Option<&str>| {
        parse_policy(Some(&Retention { keep_last, keep_for: keep_for.map(str::to_owned) }))
    };
    let policy = parse(Some(7), Some("4w")).unwrap().unwrap();
    assert_eq!((policy.keep_last, policy.keep_for), (Some(7), Some(SignedDuration::from_hours(4 * 7 * 24))));
    assert_eq!(parse_policy(None), Ok(None));
    for (keep_last, keep_for, field) in [
        (None, None, "keepLast or keepFor"),
        (Some(0), None, "keepLast"),
        (None, Some("1 month"), "spec.retention.keepFor"),
    ] {
        let error = parse(keep_last, keep_for).unwrap_err();
        assert!(error.contains(field), "{error}");
    }
}

//! Due, left out, history limits, and what status says of it.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use pgherd_core::schedule::Schedule;
use pgherd_crds::{
    BackupSchedule, BackupScheduleSpec, BackupScheduleStatus,
    v1alpha1::{
        backup::{BackupMethod, Incremental},
        shared::LocalReference,
    },
};

use super::{
    build::{build_backup, render_backup_name},
    care::Care,
    decide::{KnownBackup, KnownState, Plan, ScheduleFacts, decide, find_last_success},
    reconcile::decide_wake,
    status::build_status,
};

fn at(text: &str) -> Timestamp {
    format!("2026-11-{text}Z").parse().unwrap()
}

fn facts() -> ScheduleFacts {
    ScheduleFacts {
        schedule: Schedule::parse("0 3 * * *", None),
        suspended: false,
        starting_deadline: None,
        since: at("20T12:00:00"),
        blocked: None,
        backups: Vec::new(),
        pinned: BTreeSet::new(),
        limits: (2, 1),
    }
}

fn backup(name: &str, created: &str, state: KnownState) -> KnownBackup {
    KnownBackup { name: name.to_owned(), ours: true, created: at(created), state }
}

#[test]
fn a_run_is_made_at_its_time_and_not_before() {
    assert_eq!(decide(&facts(), at("21T02:59:59")).create, None);
    let plan = decide(&facts(), at("21T03:00:00"));
    assert_eq!(plan.create, Some(at("21T03:00:00")));
    assert_eq!(plan.next, Some(at("22T03:00:00")));
}

#[test]
fn missed_runs_are_made_up_for_once() {
    let plan = decide(&facts(), at("24T09:00:00"));
    assert_eq!((plan.create, plan.missed), (Some(at("24T03:00:00")), 3));
    let done = ScheduleFacts { since: at("24T03:00:00"), ..facts() };
    assert_eq!(decide(&done, at("24T09:00:00")).create, None);
}

#[test]
fn a_run_past_its_starting_deadline_is_left_out() {
    let facts = ScheduleFacts { starting_deadline: Some(SignedDuration::from_secs(60)), ..facts() };
    assert_eq!(decide(&facts, at("21T03:00:59")).create, Some(at("21T03:00:00")));
    assert_eq!(decide(&facts, at("21T03:02:00")).create, None);
}

#[test]
fn no_run_starts_while_a_backup_of_the_cluster_is_under_way() {
    let other = KnownBackup { ours: false, ..backup("by-hand", "21T02:50:00", KnownState::Unfinished) };
    let plan = decide(&ScheduleFacts { backups: vec![other], ..facts() }, at("21T03:00:00"));
    assert_eq!(plan.create, None);
    assert!(plan.left_out.unwrap().contains("by-hand"));
    assert_eq!(plan.next, Some(at("22T03:00:00")));
}

#[test]
fn a_run_that_another_backup_covered_is_not_made_up_for_unless_that_failed() {
    let covered = |state| ScheduleFacts { backups: vec![backup("long", "21T02:50:00", state)], ..facts() };
    let completed = decide(&covered(KnownState::Completed(at("21T03:10:00"))), at("21T03:10:01"));
    assert_eq!(completed.create, None);
    assert!(completed.left_out.is_some());
    let failed = decide(&covered(KnownState::Failed(at("21T03:10:00"))), at("21T03:10:01"));
    assert_eq!(failed.create, Some(at("21T03:00:00")));
}

#[test]
fn a_suspended_or_blocked_schedule_makes_nothing() {
    let suspended = decide(&ScheduleFacts { suspended: true, ..facts() }, at("21T03:00:00"));
    assert_eq!((suspended.create, suspended.next, suspended.stalled), (None, None, None));
    let blocked = Some(("ClusterNotFound", "there is no PostgresCluster shop".to_owned()));
    let facts = ScheduleFacts { blocked: blocked.clone(), ..facts() };
    let plan = decide(&facts, at("21T03:00:00"));
    assert_eq!((plan.create, plan.stalled.clone()), (None, blocked));
    assert_eq!(decide_wake(&facts, &plan, &[], at("21T03:00:00")), Some(Duration::from_secs(30)));
}

#[test]
fn a_bad_expression_stalls_with_its_field_and_waits_for_the_next_version() {
    for (text, zone, field) in [
        ("61 * * * *", None, "spec.schedule"),
        ("0 0 30 2 *", None, "spec.schedule"),
        ("0 3 * * *", Some("Mars/Base"), "spec.timeZone"),
    ] {
        let facts = ScheduleFacts { schedule: Schedule::parse(text, zone), ..facts() };
        let plan = decide(&facts, at("21T03:00:00"));
        let (reason, message) = plan.stalled.clone().unwrap();
        assert_eq!(reason, "InvalidSchedule");
        assert!(message.starts_with(field), "{message}");
        assert_eq!(decide_wake(&facts, &plan, &[], at("21T03:00:00")), None);
    }
}

#[test]
fn the_oldest_objects_beyond_the_limits_go() {
    let completed = |name: &str, day: &str| backup(name, day, KnownState::Completed(at(day)));
    let failed = |name: &str, day: &str| backup(name, day, KnownState::Failed(at(day)));
    let backups = vec![
        completed("c3", "19T03:00:00"),
        completed("c1", "17T03:00:00"),
        completed("c2", "18T03:00:00"),
        failed("f2", "18T04:00:00"),
        failed("f1", "17T04:00:00"),
        KnownBackup { ours: false, ..completed("by-hand", "01T03:00:00") },
        backup("running", "02T03:00:00", KnownState::Unfinished),
    ];
    let mut facts = ScheduleFacts { backups, ..facts() };
    assert_eq!(decide(&facts, at("20T12:00:00")).delete, ["c1", "f1"]);
    facts.backups[1].state = KnownState::Completed("2027-11-17T03:00:00Z".parse().unwrap());
    assert_eq!(decide(&facts, at("20T12:00:00")).delete, ["c1", "f1"], "a node's clock says nothing of which is older");
    assert_eq!(find_last_success(&facts.backups).unwrap().name, "c3");
    let pinned = ScheduleFacts { pinned: BTreeSet::from(["c1".to_owned()]), ..facts };
    assert_eq!(decide(&pinned, at("20T12:00:00")).delete, ["f1"]);
}

#[test]
fn it_wakes_just_after_the_next_run_and_never_sleeps_for_long() {
    let wake = |now: &str| {
        let plan = Plan { next: Some(at("21T03:00:00")), ..Plan::default() };
        decide_wake(&facts(), &plan, &[], at(now))
    };
    assert_eq!(wake("21T02:59:50"), Some(Duration::from_millis(10_050)));
    assert_eq!(wake("20T03:00:00"), Some(Duration::from_secs(600)));
}

fn schedule() -> BackupSchedule {
    let spec = BackupScheduleSpec {
        cluster_ref: LocalReference { name: "shop".to_owned() },
        schedule: "0 3 * * *".to_owned(),
        time_zone: None,
        suspend: None,
        target: None,
        incremental: Some(Incremental { max_chain: Some(3) }),
        method: Some(BackupMethod::Local),
        starting_deadline_seconds: None,
        successful_backups_history_limit: None,
        failed_backups_history_limit: None,
        retention: None,
        verify: None,
    };
    BackupSchedule::new("shop-nightly", spec)
}

#[test]
fn a_run_is_named_after_its_time_and_has_no_owner() {
    assert_eq!(render_backup_name("shop-nightly", at("21T03:00:00")), "shop-nightly-29920500");
    let backup = build_backup(&schedule(), "prod", at("21T03:00:00"));
    assert_eq!(backup.metadata.owner_references, None);
    assert_eq!(backup.metadata.labels.unwrap()["pgherd.dev/schedule"], "shop-nightly");
    assert_eq!(backup.spec.incremental, schedule().spec.incremental);
    assert_eq!(backup.spec.method, Some(BackupMethod::Local));
}

#[test]
fn a_status_without_news_is_the_same_status() {
    let now = at("21T03:00:00");
    let plan = decide(&facts(), now);
    let first = build_status(&BackupScheduleStatus::default(), &facts(), &plan, &Care::default(), Some(1), now);
    assert_eq!(first.last_schedule_time.as_deref(), Some("2026-11-21T03:00:00Z"));
    assert_eq!(first.next_schedule_time.as_deref(), Some("2026-11-22T03:00:00Z"));
    let later = at("21T05:00:00");
    let done = ScheduleFacts { since: now, ..facts() };
    let second = build_status(&first, &done, &decide(&done, later), &Care::default(), Some(1), later);
    assert_eq!(second, first);
}

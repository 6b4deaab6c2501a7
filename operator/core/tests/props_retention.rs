//! Retention: every backup has one fate, the newest good one always stays, keeping is stable, more never shortens the
//! window.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use pgherd_core::{
    lsn::Lsn,
    retention::{
        BackupFact, RetentionPlan, RetentionPolicy, foresee_retention, plan_retention, wal_floor, wal_is_needed,
    },
    timeline::TimelineId,
};
use proptest::prelude::*;

const HOUR: i64 = 3600;

fn now() -> Timestamp {
    Timestamp::from_second(1_000 * HOUR).expect("a time")
}

/// With clocks that tell the time.
fn dated_backups() -> impl Strategy<Value = Vec<BackupFact>> {
    let holds = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let parent = prop::option::weighted(0.5, any::<prop::sample::Index>());
    prop::collection::vec((0_i64..1_000, any::<bool>(), prop::bool::weighted(0.8), holds, parent), 0..12).prop_map(
        |mut facts| {
            type Drawn = (i64, bool, bool, (bool, bool, bool), Option<prop::sample::Index>);
            // A parent is older than its child, and now and then it is not there any more.
            facts.sort_by_key(|fact| fact.0);
            let mut timeline = 1;
            let fact = |(index, (hour, switched, good, (pinned, in_use, doomed), parent)): (usize, Drawn)| {
                timeline += u32::from(switched);
                // A restore in place goes back in positions, and on to another timeline.
                let lsn = if timeline % 3 == 0 { index as u64 } else { hour.unsigned_abs() * 16 + index as u64 };
                BackupFact {
                    id: format!("b{index:02}"),
                    stopped_at: Timestamp::from_second(hour * HOUR).expect("a time"),
                    timeline: TimelineId(timeline),
                    start_lsn: Lsn(lsn),
                    stop_lsn: Lsn(lsn + 1),
                    parent: parent.map(|parent| match parent.index(index + 1) {
                        gone if gone == index => "gone".to_owned(),
                        older => format!("b{older:02}"),
                    }),
                    good,
                    pinned,
                    in_use,
                    doomed,
                }
            };
            facts.into_iter().enumerate().map(fact).collect()
        },
    )
}

/// With clocks of which some are wrong, by up to a year in either direction.
fn backups() -> impl Strategy<Value = Vec<BackupFact>> {
    let wrong = prop::collection::vec(prop::option::weighted(0.3, -8_760_i64..8_760), 12);
    (dated_backups(), wrong).prop_map(|(mut backups, wrong)| {
        for (backup, wrong) in backups.iter_mut().zip(wrong) {
            backup.stopped_at += SignedDuration::from_hours(wrong.unwrap_or(0));
        }
        backups
    })
}

fn order(backup: &BackupFact) -> (TimelineId, Lsn) {
    (backup.timeline, backup.stop_lsn)
}

/// The backup and what it is restored from, as far as it is there.
fn members<'a>(backups: &'a [BackupFact], backup: &'a BackupFact) -> Vec<&'a BackupFact> {
    let mut all = vec![backup];
    while let Some(parent) = all.last().and_then(|last| last.parent.as_ref()) {
        match backups.iter().find(|backup| backup.id == *parent) {
            Some(parent) => all.push(parent),
            None => break,
        }
    }
    all
}

/// It can be restored: it and all that it needs are there and good.
fn restorable(backups: &[BackupFact], backup: &BackupFact) -> bool {
    let members = members(backups, backup);
    members.iter().all(|member| member.good) && members.last().is_some_and(|last| last.parent.is_none())
}

/// Another one that is kept is restored from it.
fn needed(backups: &[BackupFact], plan: &RetentionPlan, id: &str) -> bool {
    let kept = kept(plan);
    let others = backups.iter().filter(|other| other.id != id && kept.contains(other.id.as_str()));
    others.into_iter().any(|other| members(backups, other).iter().any(|member| member.id == id))
}

fn policy() -> impl Strategy<Value = RetentionPolicy> {
    (prop::option::of(0_u32..5), prop::option::of(0_i64..1_200))
        .prop_map(|(keep_last, hours)| RetentionPolicy { keep_last, keep_for: hours.map(SignedDuration::from_hours) })
}

fn kept(plan: &RetentionPlan) -> BTreeSet<&str> {
    plan.keep.iter().map(|verdict| verdict.id.as_str()).collect()
}

fn newest_good(backups: &[BackupFact]) -> Option<&BackupFact> {
    backups.iter().filter(|b| restorable(backups, b)).max_by_key(|backup| order(backup))
}

/// Its deletion was asked for, and nothing stands in the way.
fn goes(backup: &BackupFact, backups: &[BackupFact]) -> bool {
    let newest = newest_good(backups);
    backup.doomed && !backup.in_use && newest.is_some_and(|newest| newest.id != backup.id)
}

proptest! {
    #[test]
    fn every_backup_has_one_fate_with_a_reason(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let all: Vec<&str> = plan.keep.iter().chain(&plan.delete).map(|verdict| verdict.id.as_str()).collect();
        prop_assert_eq!(all.len(), backups.len());
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), backups.len());
        prop_assert!(plan.keep.iter().chain(&plan.delete).all(|verdict| !verdict.why.is_empty()));
    }

    #[test]
    fn the_newest_good_one_and_pinned_ones_stay(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let newest = newest_good(&backups);
        prop_assert!(newest.is_none_or(|newest| kept(&plan).contains(newest.id.as_str())));
        prop_assert!(newest.is_some() || plan.delete.is_empty());
        let held = |backup: &&BackupFact| (backup.in_use || backup.pinned) && !goes(backup, &backups);
        prop_assert!(backups.iter().filter(held).all(|backup| kept(&plan).contains(backup.id.as_str())));
    }

    #[test]
    fn what_is_kept_is_kept_again_and_the_order_does_not_matter(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let mut remaining: Vec<BackupFact> = backups.iter().filter(|b| kept(&plan).contains(b.id.as_str())).cloned().collect();
        prop_assert!(plan_retention(&remaining, &policy, now()).delete.is_empty());
        remaining = backups.into_iter().rev().collect();
        prop_assert_eq!(plan_retention(&remaining, &policy, now()), plan);
    }

    #[test]
    fn every_time_of_the_window_that_could_be_restored_still_can(backups in dated_backups(), hours in 0_i64..1_200) {
        let policy = RetentionPolicy { keep_last: None, keep_for: Some(SignedDuration::from_hours(hours)) };
        let plan = plan_retention(&backups, &policy, now());
        for hour in (1_000 - hours).max(0)..=1_000 {
            let time = Timestamp::from_second(hour * HOUR).expect("a time");
            let base = backups.iter().filter(|b| restorable(&backups, b) && b.stopped_at <= time && !goes(b, &backups)).max_by_key(|b| order(b));
            prop_assert!(base.is_none_or(|base| kept(&plan).contains(base.id.as_str())));
        }
    }

    #[test]
    fn so_many_of_the_newest_stay_beside_those_that_are_pinned(backups in backups(), count in 1_u32..5) {
        let policy = RetentionPolicy { keep_last: Some(count), keep_for: None };
        let plan = plan_retention(&backups, &policy, now());
        let mut counted: Vec<&BackupFact> = backups.iter().filter(|b| restorable(&backups, b) && !b.pinned && !goes(b, &backups)).collect();
        counted.sort_by_key(|b| std::cmp::Reverse(order(b)));
        prop_assert!(counted.iter().take(count as usize).all(|b| kept(&plan).contains(b.id.as_str())));
    }

    #[test]
    fn a_count_knows_no_clock(backups in dated_backups(), wrong in backups(), count in 0_u32..5) {
        let policy = RetentionPolicy { keep_last: Some(count), keep_for: None };
        let mut others = backups.clone();
        others.iter_mut().zip(&wrong).for_each(|(backup, wrong)| backup.stopped_at = wrong.stopped_at);
        prop_assert_eq!(plan_retention(&others, &policy, now()), plan_retention(&backups, &policy, now()));
    }

    #[test]
    fn a_time_in_the_future_condemns_nothing_and_protects_no_other(
        backups in dated_backups(), ahead in prop::collection::vec(prop::option::weighted(0.3, 1_i64..9_000), 12),
        policy in policy(), hours in 0_i64..1_200,
    ) {
        let mut wrong = backups.clone();
        for (backup, ahead) in wrong.iter_mut().zip(&ahead) {
            backup.stopped_at = ahead.map_or(backup.stopped_at, |hours| now() + SignedDuration::from_hours(hours));
        }
        let (told, known) = (plan_retention(&wrong, &policy, now()), plan_retention(&backups, &policy, now()));
        prop_assert!(kept(&known).is_subset(&kept(&told)), "{:?} {:?}", known, told);
        // Were they not there, the window would hold as much of the others, chains aside.
        let window = RetentionPolicy { keep_last: None, keep_for: Some(SignedDuration::from_hours(hours)) };
        wrong.iter_mut().for_each(|backup| (backup.parent, backup.doomed) = (None, false));
        let others: Vec<BackupFact> = wrong.iter().zip(&ahead).filter(|(_, ahead)| ahead.is_none()).map(|(b, _)| b.clone()).collect();
        if others.iter().any(|backup| backup.good) {
            let (all, alone) = (plan_retention(&wrong, &window, now()), plan_retention(&others, &window, now()));
            prop_assert!(others.iter().all(|b| !kept(&all).contains(b.id.as_str()) || kept(&alone).contains(b.id.as_str())));
        }
    }

    #[test]
    fn a_verdict_deletes_nothing(backups in backups(), policy in policy(), bad in prop::collection::vec(any::<bool>(), 12)) {
        let before: Vec<BackupFact> = backups.into_iter().map(|b| BackupFact { doomed: false, ..b }).collect();
        let mut after = before.clone();
        after.iter_mut().zip(bad).for_each(|(backup, bad)| backup.good &= !bad);
        let may_go: BTreeSet<String> = plan_retention(&before, &policy, now()).delete.into_iter().map(|v| v.id).collect();
        prop_assert!(plan_retention(&after, &policy, now()).delete.iter().all(|verdict| may_go.contains(&verdict.id)));
    }

    #[test]
    fn what_was_asked_to_go_goes_unless_it_is_the_newest_or_in_use(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let newest = newest_good(&backups);
        for backup in backups.iter().filter(|b| b.doomed && restorable(&backups, b) && !b.in_use) {
            let is_newest = newest.is_some_and(|newest| newest.id == backup.id);
            let stays = is_newest || needed(&backups, &plan, &backup.id);
            prop_assert_eq!(kept(&plan).contains(backup.id.as_str()), stays);
        }
    }

    #[test]
    fn what_a_kept_backup_is_restored_from_is_kept(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let kept = kept(&plan);
        for backup in backups.iter().filter(|backup| kept.contains(backup.id.as_str())) {
            prop_assert!(members(&backups, backup).iter().all(|member| kept.contains(member.id.as_str())));
        }
    }

    #[test]
    fn what_is_left_can_be_restored_wherever_the_deletion_ends(backups in backups(), policy in policy(), stop in 0usize..12) {
        let plan = plan_retention(&backups, &policy, now());
        let gone: BTreeSet<&str> = plan.delete.iter().take(stop).map(|verdict| verdict.id.as_str()).collect();
        let left: Vec<BackupFact> = backups.iter().filter(|b| !gone.contains(b.id.as_str())).cloned().collect();
        for backup in left.iter().filter(|backup| restorable(&backups, backup)) {
            prop_assert!(restorable(&left, backup), "{} of {:?}", backup.id, plan);
        }
    }

    #[test]
    fn nothing_goes_before_the_time_that_was_foreseen(backups in backups(), policy in policy()) {
        let remaining: Vec<BackupFact> = {
            let plan = plan_retention(&backups, &policy, now());
            backups.iter().filter(|b| kept(&plan).contains(b.id.as_str())).cloned().collect()
        };
        let foreseen = foresee_retention(&remaining, &policy, now());
        for hours in 0..2_300 {
            let time = now() + SignedDuration::from_hours(hours);
            let goes = !plan_retention(&remaining, &policy, time).delete.is_empty();
            if foreseen.expires_at.is_none_or(|at| time < at) {
                prop_assert!(!goes, "{} hours from now", hours);
            } else {
                prop_assert!(goes, "{} hours from now", hours);
                break;
            }
        }
    }

    #[test]
    fn wal_after_the_start_of_a_kept_backup_is_needed(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let floor = wal_floor(&backups, &plan);
        for backup in backups.iter().filter(|backup| kept(&plan).contains(backup.id.as_str())) {
            prop_assert!(wal_is_needed(&floor, backup.timeline, Lsn(backup.start_lsn.0 + 1)));
            prop_assert!(wal_is_needed(&floor, TimelineId(backup.timeline.0 + 1), Lsn(backup.start_lsn.0 + 1)));
        }
    }
}

#[test]
fn wal_before_every_kept_backup_is_not_needed() {
    let fact = BackupFact {
        id: "b".into(),
        stopped_at: now(),
        timeline: TimelineId(2),
        start_lsn: Lsn(100),
        stop_lsn: Lsn(110),
        parent: None,
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let floor = wal_floor(
        std::slice::from_ref(&fact),
        &plan_retention(std::slice::from_ref(&fact), &RetentionPolicy::default(), now()),
    );
    assert!(!wal_is_needed(&floor, TimelineId(2), Lsn(100)));
    assert!(!wal_is_needed(&floor, TimelineId(1), Lsn(900)));
    assert!(wal_is_needed(&floor, TimelineId(3), Lsn(101)));
}

#[test]
fn a_damaged_backup_does_not_count_and_goes_as_a_good_one_of_its_age_would() {
    let fact = |id: &str, hours_ago: i64, good: bool| BackupFact {
        id: id.into(),
        stopped_at: now() - SignedDuration::from_hours(hours_ago),
        timeline: TimelineId(1),
        start_lsn: Lsn(100),
        stop_lsn: Lsn(1_000 - hours_ago.unsigned_abs()),
        parent: None,
        good,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let backups =
        [fact("a", 50, true), fact("b", 40, false), fact("c", 30, true), fact("d", 20, false), fact("e", 10, true)];
    let deleted = |keep_last, hours: Option<i64>| {
        let policy = RetentionPolicy { keep_last, keep_for: hours.map(SignedDuration::from_hours) };
        let plan = plan_retention(&backups, &policy, now());
        plan.delete.into_iter().map(|verdict| verdict.id).collect::<Vec<_>>()
    };
    assert_eq!(deleted(Some(1), None), ["a", "b", "c", "d"]);
    assert_eq!(deleted(Some(2), None), ["a", "b"], "e and c are the last two, and d is between them");
    assert_eq!(deleted(None, Some(45)), [""; 0]);
    assert_eq!(deleted(None, Some(35)), [""; 0], "b would be the start of the window if it were good, and a is");
    assert_eq!(deleted(None, Some(25)), ["a", "b"]);
    assert_eq!(deleted(None, None), [""; 0]);
}

#[test]
fn a_backup_dated_a_year_ahead_is_neither_the_newest_nor_kept_for_a_year() {
    let fact = |id: &str, number: u64, hours_ago: i64| BackupFact {
        id: id.into(),
        stopped_at: now() - SignedDuration::from_hours(hours_ago),
        timeline: TimelineId(1),
        start_lsn: Lsn(number * 100),
        stop_lsn: Lsn(number * 100 + 10),
        parent: None,
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let backups = [fact("a", 1, 60), fact("b", 2, -8_760), fact("c", 3, 40), fact("d", 4, 10)];
    let deleted = |keep_last, hours: Option<i64>| {
        let policy = RetentionPolicy { keep_last, keep_for: hours.map(SignedDuration::from_hours) };
        let plan = plan_retention(&backups, &policy, now());
        plan.delete.into_iter().map(|verdict| verdict.id).collect::<Vec<_>>()
    };
    assert_eq!(deleted(Some(1), None), ["a", "b", "c"]);
    assert_eq!(deleted(Some(3), None), ["a"]);
    assert_eq!(deleted(None, Some(30)), ["a", "b"], "it is as old as c");
    assert_eq!(deleted(None, Some(50)), [""; 0], "it may have been made after the window began");
}

#[test]
fn what_goes_next_is_foreseen_by_count_and_by_time() {
    let fact = |id: &str, hours_ago: i64| BackupFact {
        id: id.into(),
        stopped_at: now() - SignedDuration::from_hours(hours_ago),
        timeline: TimelineId(1),
        start_lsn: Lsn(100),
        stop_lsn: Lsn(1_000 - hours_ago.unsigned_abs()),
        parent: None,
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let backups = [fact("a", 50), fact("b", 20), fact("c", 10)];
    let count = RetentionPolicy { keep_last: Some(3), keep_for: None };
    let foreseen = foresee_retention(&backups, &count, now());
    assert_eq!((foreseen.ids, foreseen.at, foreseen.expires_at), (vec!["a".to_owned()], None, None));
    let window = RetentionPolicy { keep_last: None, keep_for: Some(SignedDuration::from_hours(24)) };
    let foreseen = foresee_retention(&backups, &window, now());
    let at = Some(now() + SignedDuration::from_hours(4));
    assert_eq!((foreseen.ids, foreseen.at, foreseen.expires_at), (vec!["a".to_owned()], at, at));
}

#[test]
fn a_chain_stays_as_long_as_its_last_backup() {
    let fact = |id: &str, hours_ago: i64, parent: Option<&str>| BackupFact {
        id: id.into(),
        stopped_at: now() - SignedDuration::from_hours(hours_ago),
        timeline: TimelineId(1),
        start_lsn: Lsn(100),
        stop_lsn: Lsn(1_000 - hours_ago.unsigned_abs()),
        parent: parent.map(str::to_owned),
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let old = [fact("a", 50, None), fact("b", 40, Some("a")), fact("c", 30, Some("b"))];
    let policy = RetentionPolicy { keep_last: Some(2), keep_for: None };
    let with = |more: &[BackupFact]| [&old[..], more].concat();
    let deleted = |backups: &[BackupFact]| {
        let plan = plan_retention(backups, &policy, now());
        plan.delete.into_iter().map(|verdict| verdict.id).collect::<Vec<_>>()
    };
    assert_eq!(deleted(&with(&[fact("d", 20, None)])), [""; 0], "c is one of the last two and needs a and b");
    assert_eq!(deleted(&with(&[fact("d", 20, None), fact("e", 10, Some("d"))])), ["c", "b", "a"]);
    let mut doomed = old.clone();
    doomed[0].doomed = true;
    let plan = plan_retention(&doomed, &policy, now());
    let why = plan.keep.iter().find(|verdict| verdict.id == "a").map(|verdict| verdict.why.as_str());
    assert!(why.is_some_and(|why| why.contains("the incremental backup c, which stays")), "{plan:?}");
}

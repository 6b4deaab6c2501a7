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

fn backups() -> impl Strategy<Value = Vec<BackupFact>> {
    let holds = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    prop::collection::vec((0_i64..1_000, 1_u32..3, any::<bool>(), holds), 0..12).prop_map(|facts| {
        type Drawn = (i64, u32, bool, (bool, bool, bool));
        let fact = |(index, (hour, timeline, good, (pinned, in_use, doomed))): (usize, Drawn)| BackupFact {
            id: format!("b{index:02}"),
            stopped_at: Timestamp::from_second(hour * HOUR).expect("a time"),
            timeline: TimelineId(timeline),
            start_lsn: Lsn(hour.unsigned_abs() * 16),
            good,
            pinned,
            in_use,
            doomed,
        };
        facts.into_iter().enumerate().map(fact).collect()
    })
}

fn policy() -> impl Strategy<Value = RetentionPolicy> {
    (prop::option::of(0_u32..5), prop::option::of(0_i64..1_200))
        .prop_map(|(keep_last, hours)| RetentionPolicy { keep_last, keep_for: hours.map(SignedDuration::from_hours) })
}

fn kept(plan: &RetentionPlan) -> BTreeSet<&str> {
    plan.keep.iter().map(|verdict| verdict.id.as_str()).collect()
}

/// Its deletion was asked for, and nothing stands in the way.
fn goes(backup: &BackupFact, backups: &[BackupFact]) -> bool {
    let newest = backups.iter().filter(|backup| backup.good).max_by_key(|backup| (backup.stopped_at, &backup.id));
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
        let newest = backups.iter().filter(|backup| backup.good).max_by_key(|backup| (backup.stopped_at, &backup.id));
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
    fn every_time_of_the_window_that_could_be_restored_still_can(backups in backups(), hours in 0_i64..1_200) {
        let policy = RetentionPolicy { keep_last: None, keep_for: Some(SignedDuration::from_hours(hours)) };
        let plan = plan_retention(&backups, &policy, now());
        for hour in (1_000 - hours).max(0)..=1_000 {
            let time = Timestamp::from_second(hour * HOUR).expect("a time");
            let base = backups.iter().filter(|b| b.good && b.stopped_at <= time && !goes(b, &backups)).max_by_key(|b| (b.stopped_at, &b.id));
            prop_assert!(base.is_none_or(|base| kept(&plan).contains(base.id.as_str())));
        }
    }

    #[test]
    fn so_many_of_the_newest_stay_beside_those_that_are_pinned(backups in backups(), count in 1_u32..5) {
        let policy = RetentionPolicy { keep_last: Some(count), keep_for: None };
        let plan = plan_retention(&backups, &policy, now());
        let mut counted: Vec<&BackupFact> = backups.iter().filter(|b| b.good && !b.pinned && !goes(b, &backups)).collect();
        counted.sort_by_key(|b| std::cmp::Reverse((b.stopped_at, &b.id)));
        prop_assert!(counted.iter().take(count as usize).all(|b| kept(&plan).contains(b.id.as_str())));
    }

    #[test]
    fn what_was_asked_to_go_goes_unless_it_is_the_newest_or_in_use(backups in backups(), policy in policy()) {
        let plan = plan_retention(&backups, &policy, now());
        let newest = backups.iter().filter(|backup| backup.good).max_by_key(|backup| (backup.stopped_at, &backup.id));
        for backup in backups.iter().filter(|backup| backup.doomed && backup.good && !backup.in_use) {
            let is_newest = newest.is_some_and(|newest| newest.id == backup.id);
            prop_assert_eq!(kept(&plan).contains(backup.id.as_str()), is_newest);
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
fn what_goes_next_is_foreseen_by_count_and_by_time() {
    let fact = |id: &str, hours_ago: i64| BackupFact {
        id: id.into(),
        stopped_at: now() - SignedDuration::from_hours(hours_ago),
        timeline: TimelineId(1),
        start_lsn: Lsn(100),
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

//! Schedules never fire twice for one slot, never run late unasked, and go forward through every change of the clock.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use pgherd_core::schedule::Schedule;
use proptest::prelude::*;

fn schedule() -> impl Strategy<Value = Schedule> {
    let minute =
        prop_oneof![Just("*".to_owned()), Just("*/15".to_owned()), (0_u32..60).prop_map(|minute| minute.to_string())];
    let hour = prop_oneof![Just("*".to_owned()), (0_u32..24).prop_map(|hour| hour.to_string()), Just("1-3".to_owned())];
    let zone = prop::sample::select(vec![
        "Etc/UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
    ]);
    (minute, hour, zone).prop_map(|(minute, hour, zone)| {
        Schedule::parse(&format!("{minute} {hour} * * *"), Some(zone)).expect("a schedule")
    })
}

/// Around the changes of the clock of 2026, and anywhere.
fn moment() -> impl Strategy<Value = Timestamp> {
    let near = prop::sample::select(vec![
        "2026-03-29T01:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-11-01T06:00:00Z",
        "2026-04-04T15:00:00Z",
    ]);
    let near = (near, -300_i64..300).prop_map(|(change, minutes)| {
        change.parse::<Timestamp>().expect("a time") + SignedDuration::from_mins(minutes)
    });
    prop_oneof![near, (1_700_000_000_i64..1_900_000_000).prop_map(|s| Timestamp::from_second(s).expect("a time"))]
}

proptest! {
    #[test]
    fn the_next_time_lies_ahead_and_nothing_lies_between(schedule in schedule(), now in moment()) {
        let next = schedule.next_after(now).expect("a next time");
        prop_assert!(next > now && next <= now + SignedDuration::from_hours(50));
        let before = next - SignedDuration::from_secs(1);
        prop_assert_eq!(schedule.next_after(before.max(now)), Some(next));
    }

    #[test]
    fn a_run_is_due_exactly_when_a_time_has_passed(schedule in schedule(), since in moment(), minutes in 0_i64..600) {
        let now = since + SignedDuration::from_mins(minutes);
        let mut passed = Vec::new();
        let mut time = schedule.next_after(since);
        while let Some(at) = time.filter(|at| *at <= now) {
            passed.push(at);
            time = schedule.next_after(at);
        }
        let due = schedule.due(since, now, None);
        prop_assert_eq!(due.map(|due| due.scheduled), passed.last().copied());
        prop_assert_eq!(due.map(|due| due.skipped as usize), passed.len().checked_sub(1).map(|skipped| skipped.min(100)));
    }

    #[test]
    fn no_slot_fires_twice_whenever_the_controller_looks(
        schedule in schedule(), start in moment(), pauses in prop::collection::vec(1_i64..90, 1..30),
    ) {
        let (mut since, mut now) = (start, start);
        let mut fired = BTreeSet::new();
        for pause in pauses {
            now += SignedDuration::from_mins(pause);
            if let Some(due) = schedule.due(since, now, None) {
                prop_assert!(due.scheduled > since && due.scheduled <= now);
                prop_assert!(fired.insert(due.scheduled));
                since = due.scheduled;
            }
            prop_assert_eq!(schedule.due(since, now, None), None);
        }
    }
}

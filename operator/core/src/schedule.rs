//! Cron schedules with five fields in a time zone, with the semantics of a Kubernetes CronJob: missed runs are made up
//! for once at most. `now` is an argument.
//!
//! A slot is a wall-clock minute. Where the clock goes back, a slot that comes twice fires the first time only; where it
//! goes forward, the slots that do not exist fire together at the moment of the change. So no slot fires twice and a
//! nightly run is never left out.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp,
    civil::{DateTime, date},
    tz::{AmbiguousOffset, TimeZone},
};

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// Why a schedule can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields, or a field is out of its range.
    #[error(
        "schedule \"{text}\" is not valid: {why}; expected 5 fields: minute hour day month weekday, e.g. \"0 3 * * *\""
    )]
    Fields {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The date does not exist (30 February).
    #[error("schedule \"{text}\" never fires: its day does not occur in its months")]
    NeverFires {
        /// The text.
        text: String,
    },
    /// Not an IANA time zone.
    #[error("timeZone \"{zone}\" is not known; expected an IANA name like Europe/Berlin or Etc/UTC")]
    TimeZone {
        /// The name.
        zone: String,
    },
}

/// A run that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueRun {
    /// The time that it was scheduled for: the latest missed one. It names the run.
    pub scheduled: Timestamp,
    /// Earlier times that were missed as well and are not made up for; counted up to 100.
    pub skipped: u32,
}

impl Schedule {
    /// Parses five cron fields; `time_zone` is an IANA name, UTC when None.
    ///
    /// # Errors
    /// [`ScheduleError`]; a schedule that can never fire is one as well.
    pub fn parse(text: &str, time_zone: Option<&str>) -> Result<Self, ScheduleError> {
        let shown: String = text.chars().take(100).collect();
        let fields = |why: String| ScheduleError::Fields { text: shown.clone(), why };
        if text.contains('@') {
            return Err(fields("names like @daily are not supported".to_owned()));
        }
        if text.contains("TZ=") {
            return Err(fields("the time zone goes into the field timeZone".to_owned()));
        }
        let count = text.split_whitespace().count();
        if count != 5 {
            return Err(fields(format!("it has {count} field(s)")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| fields(error.to_string().trim_end_matches('.').to_owned()))?;
        let zone = match time_zone {
            None => TimeZone::UTC,
            Some(name) => {
                TimeZone::get(name).map_err(|_| ScheduleError::TimeZone { zone: name.chars().take(100).collect() })?
            }
        };
        let never = |_| ScheduleError::NeverFires { text: shown.clone() };
        cron.find_next_occurrence(&date(2000, 1, 1).at(0, 0, 0, 0), true).map_err(never)?;
        Ok(Self { cron, zone })
    }

    /// The first time strictly after `now`; None beyond the calendar's end.
    #[must_use]
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let mut slot = self.zone.to_datetime(now);
        loop {
            slot = self.cron.find_next_occurrence(&slot, false).ok()?;
            let time = self.time_of(slot)?;
            // In the second pass of a repeated hour its slots have fired in the first one.
            if time > now {
                return Some(time);
            }
        }
    }

    /// The run that is due at `now`: the latest scheduled time in (`since`, `now`], if it is no older than
    /// `starting_deadline`. `since` is the last scheduled time, or the schedule's creation before the first run.
    #[must_use]
    pub fn due(&self, since: Timestamp, now: Timestamp, starting_deadline: Option<SignedDuration>) -> Option<DueRun> {
        let scheduled = self.latest_at(now).filter(|latest| *latest > since)?;
        if starting_deadline.is_some_and(|deadline| now.duration_since(scheduled) > deadline) {
            return None;
        }
        let mut skipped = 0;
        let mut earlier = self.next_after(since);
        while skipped < 100 && earlier.is_some_and(|time| time < scheduled) {
            skipped += 1;
            earlier = earlier.and_then(|time| self.next_after(time));
        }
        Some(DueRun { scheduled, skipped })
    }

    /// The latest scheduled time at or before `now`.
    fn latest_at(&self, now: Timestamp) -> Option<Timestamp> {
        let mut slot = self.zone.to_datetime(now);
        // In the second pass of a repeated hour, slots later on the clock have fired already.
        if let AmbiguousOffset::Fold { before, .. } = self.zone.to_ambiguous_timestamp(slot).offset() {
            slot = before.to_datetime(now);
        }
        let mut inclusive = true;
        loop {
            slot = self.cron.find_previous_occurrence(&slot, inclusive).ok()?;
            inclusive = false;
            let time = self.time_of(slot)?;
            if time <= now {
                return Some(time);
            }
        }
    }

    /// The one moment at which a slot fires. Never decreases with the slot.
    fn time_of(&self, slot: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(slot);
        match ambiguous.offset() {
            AmbiguousOffset::Gap { before, .. } => {
                let after_change = before.to_timestamp(slot).ok()?.checked_add(SignedDuration::from_secs(1)).ok()?;
                self.zone.preceding(after_change).next().map(|change| change.timestamp())
            }
            _ => ambiguous.earlier().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn berlin(text: &str) -> Schedule {
        Schedule::parse(text, Some("Europe/Berlin")).expect("a schedule")
    }

    #[test]
    fn a_nightly_run_follows_the_clock_on_the_wall() {
        let nightly = berlin("0 3 * * *");
        assert_eq!(nightly.next_after(at("2026-01-10T12:00:00Z")), Some(at("2026-01-11T02:00:00Z")));
        assert_eq!(nightly.next_after(at("2026-07-10T12:00:00Z")), Some(at("2026-07-11T01:00:00Z")));
        assert_eq!(nightly.next_after(at("2026-07-11T01:00:00Z")), Some(at("2026-07-12T01:00:00Z")));
    }

    #[test]
    fn a_slot_that_the_clock_jumps_over_fires_at_the_jump() {
        let nightly = berlin("30 2 * * *");
        let jump = at("2026-03-29T01:00:00Z");
        assert_eq!(nightly.next_after(at("2026-03-28T12:00:00Z")), Some(jump));
        assert_eq!(nightly.next_after(jump), Some(at("2026-03-30T00:30:00Z")));
        assert_eq!(nightly.due(at("2026-03-28T12:00:00Z"), jump, None).map(|due| due.scheduled), Some(jump));
    }

    #[test]
    fn a_slot_that_comes_twice_fires_once() {
        let nightly = berlin("30 2 * * *");
        let first = at("2026-10-25T00:30:00Z");
        assert_eq!(nightly.next_after(at("2026-10-24T12:00:00Z")), Some(first));
        assert_eq!(nightly.next_after(first), Some(at("2026-10-26T01:30:00Z")));
        assert_eq!(nightly.due(first, at("2026-10-25T01:45:00Z"), None), None);
        let late = nightly.due(at("2026-10-24T12:00:00Z"), at("2026-10-25T01:10:00Z"), None);
        assert_eq!(late.map(|due| due.scheduled), Some(first));
    }

    #[test]
    fn of_many_missed_runs_only_the_latest_is_made_up_for() {
        let hourly = Schedule::parse("0 * * * *", None).expect("a schedule");
        let due = hourly.due(at("2026-01-01T00:00:00Z"), at("2026-01-01T05:30:00Z"), None);
        assert_eq!(due, Some(DueRun { scheduled: at("2026-01-01T05:00:00Z"), skipped: 4 }));
        assert_eq!(hourly.due(at("2026-01-01T05:00:00Z"), at("2026-01-01T05:30:00Z"), None), None);
        let years = hourly.due(at("2020-01-01T00:00:00Z"), at("2026-01-01T05:30:00Z"), None);
        assert_eq!(years.map(|due| due.skipped), Some(100));
    }

    #[test]
    fn a_run_past_its_starting_deadline_is_left_out() {
        let hourly = Schedule::parse("0 * * * *", None).expect("a schedule");
        let (since, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T05:30:00Z"));
        assert_eq!(hourly.due(since, now, Some(SignedDuration::from_mins(29))), None);
        assert!(hourly.due(since, now, Some(SignedDuration::from_mins(30))).is_some());
    }

    #[test]
    fn what_is_not_five_fields_is_refused_in_words() {
        for text in
            ["", "@daily", "* * * *", "0 0 3 * * *", "61 * * * *", "a b c d e", "CRON_TZ=UTC 0 3 * * *", "0 25 * * *"]
        {
            let error = Schedule::parse(text, None).expect_err(text).to_string();
            assert!(error.contains("5 fields: minute hour day month weekday"), "{error}");
        }
    }

    #[test]
    fn the_30th_of_february_never_fires_and_the_29th_does() {
        let error = Schedule::parse("0 3 30 2 *", None).expect_err("never");
        assert_eq!(error, ScheduleError::NeverFires { text: "0 3 30 2 *".to_owned() });
        let leap = Schedule::parse("0 3 29 2 *", None).expect("a schedule");
        assert_eq!(leap.next_after(at("2026-01-01T00:00:00Z")), Some(at("2028-02-29T03:00:00Z")));
    }

    #[test]
    fn an_unknown_time_zone_is_named() {
        let error = Schedule::parse("0 3 * * *", Some("Europe/Berln")).expect_err("unknown").to_string();
        assert!(error.contains("\"Europe/Berln\"") && error.contains("IANA"), "{error}");
    }
}

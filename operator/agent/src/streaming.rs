//! Since when a standby gets no WAL, and what was done about it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgherd_core::lsn::Lsn;

use crate::clock::Boottime;

/// A receiver that has streamed for this long is not one that fails over and over.
const STEADY_AFTER: Duration = Duration::from_secs(1);

/// Keeps count of a standby's streaming, for all who look at it.
#[derive(Debug, Default)]
pub struct StreamingWatch(Mutex<Streaming>);

#[derive(Clone, Copy, Debug, Default)]
struct Streaming {
    silent_since: Option<Boottime>,
    checked_at: Option<Boottime>,
    /// How far it is, and when it was first seen there.
    position: Option<(Lsn, Boottime)>,
    receiver: Option<(i32, Boottime)>,
    /// How often its server ended in its recovery since it last streamed.
    deaths: u32,
}

impl StreamingWatch {
    fn lock(&self) -> MutexGuard<'_, Streaming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The standby streams, or is about to start anew.
    pub fn note_streaming(&self) {
        let mut streaming = self.lock();
        *streaming = Streaming { receiver: streaming.receiver, ..Streaming::default() };
    }

    /// A receiver streams: true once this very process has done so for a second. One that is refused over and over shows
    /// itself as streaming for a moment each time.
    #[must_use]
    pub fn note_receiver(&self, pid: i32) -> bool {
        self.lock().is_steady(pid, Boottime::now())
    }

    /// The standby does not stream.
    pub fn note_not_streaming(&self) {
        self.lock().silent_since.get_or_insert_with(Boottime::now);
    }

    /// For how long the standby has not streamed.
    #[must_use]
    pub fn not_streaming_for(&self) -> Duration {
        self.lock().silent_since.map_or(Duration::ZERO, |since| Boottime::now().since(since))
    }

    /// True once per `every`: it is time to look again why the standby does not stream.
    #[must_use]
    pub fn take_check_turn(&self, every: Duration) -> bool {
        let now = Boottime::now();
        let mut streaming = self.lock();
        let due = streaming.checked_at.is_none_or(|at| now.since(at) >= every);
        if due {
            streaming.checked_at = Some(now);
        }
        due
    }

    /// Remembers how far the standby is; for how long it has not got any farther.
    #[must_use]
    pub fn note_position(&self, position: Lsn) -> Duration {
        self.lock().stands_for(position, Boottime::now())
    }

    /// The standby's server ended in its recovery; how often it has done so since it last streamed.
    #[must_use]
    pub fn note_death(&self) -> u32 {
        let mut streaming = self.lock();
        streaming.silent_since.get_or_insert_with(Boottime::now);
        streaming.deaths = streaming.deaths.saturating_add(1);
        streaming.deaths
    }
}

impl Streaming {
    /// Whether this receiver has streamed for a while.
    fn is_steady(&mut self, pid: i32, now: Boottime) -> bool {
        match self.receiver {
            Some((known, since)) if known == pid => now.since(since) >= STEADY_AFTER,
            _ => {
                self.receiver = Some((pid, now));
                false
            }
        }
    }

    /// For how long the standby has not got farther than `position`.
    fn stands_for(&mut self, position: Lsn, now: Boottime) -> Duration {
        match self.position {
            Some((known, since)) if position <= known => now.since(since),
            _ => {
                self.position = Some((position, now));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boottime {
        Boottime(seconds * 1_000_000_000)
    }

    #[test]
    fn a_standby_stands_still_only_from_where_it_last_got_farther() {
        let mut streaming = Streaming::default();
        let mut stands = |lsn, seconds| streaming.stands_for(Lsn(lsn), at(seconds)).as_secs();
        assert_eq!(stands(100, 10), 0, "the first look says nothing");
        assert_eq!((stands(100, 20), stands(100, 50)), (10, 40));
        assert_eq!((stands(101, 60), stands(101, 70)), (0, 10));
        assert_eq!(stands(90, 80), 20, "back is not farther");
    }

    #[test]
    fn a_receiver_that_comes_and_goes_is_never_steady() {
        let mut streaming = Streaming::default();
        let mut steady = |pid, seconds| streaming.is_steady(pid, at(seconds));
        assert!(!steady(1, 10) && steady(1, 11));
        assert!(!steady(2, 11) && !steady(3, 12) && !steady(2, 13));
        assert!(steady(2, 14));
    }
}

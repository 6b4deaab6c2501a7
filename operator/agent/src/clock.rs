//! The clock of leases and fencing: CLOCK_BOOTTIME, which goes on while the machine sleeps and is never set.
//! `std::time::Instant` is CLOCK_MONOTONIC and stands still during a suspend, so it must not be used for a deadline
//! that keeps two primaries apart.

use std::{sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Stands for CLOCK_BOOTTIME where time is simulated; see [`install_source`].
static SOURCE: OnceLock<fn() -> Boottime> = OnceLock::new();

/// Replaces the clock of the whole process, once and before its first reading: for the simulation alone. No program of
/// pgherd calls it.
pub fn install_source(source: fn() -> Boottime) {
    // A second one is ignored: what has read the clock must not see it jump.
    let _ = SOURCE.set(source);
}

/// Whether [`install_source`] was called.
#[must_use]
pub fn is_simulated() -> bool {
    SOURCE.get().is_some()
}

/// Nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boottime(pub u64);

impl Boottime {
    /// Now. If the clock can't be read (it always can on Linux), the largest value: every deadline has passed then.
    #[must_use]
    pub fn now() -> Self {
        if let Some(source) = SOURCE.get() {
            return source();
        }
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Self(u64::MAX), |time| Self::from_duration(Duration::from(time)))
    }

    /// A point in time by its distance from boot.
    #[must_use]
    pub fn from_duration(since_boot: Duration) -> Self {
        Self(u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
    }

    /// This point in time, `millis` milliseconds later.
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_and_distances_are_never_negative() {
        let first = Boottime::now();
        let later = first.plus_millis(5);
        assert_eq!(later.since(first), Duration::from_millis(5));
        assert_eq!(first.since(later), Duration::ZERO);
        assert!(Boottime::now() >= first);
    }
}

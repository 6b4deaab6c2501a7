//! How fast a primary writes WAL, so that it can say beforehand how far it may come without being heard. An estimate from what
//! was seen: it promises nothing, and decides nothing.

use crate::{lsn::Lsn, register::Position};

/// What was seen fades: after this many milliseconds a burst counts half.
const HALF_LIFE_MS: u64 = 30_000;
/// The next seconds may be this many times as busy as the busiest of the recent ones.
const HEADROOM: u64 = 2;
/// Two looks closer together than this (milliseconds) say little about a rate.
const SHORTEST_MS: u64 = 200;

/// The highest rate seen lately that lasted from one look to the next but one: what is over in an instant, such as the copy of a
/// template for a new database or the start of a base backup, says nothing of the next seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalRate {
    seen: Option<(u64, Lsn)>,
    /// Of the last look alone.
    latest: u128,
    bytes_per_second: u64,
}

impl WalRate {
    /// The primary had flushed `lsn` at `now_ms` of a clock that never goes back; its WAL segments have `segment_bytes`.
    pub fn note(&mut self, now_ms: u64, lsn: Lsn, segment_bytes: u64) {
        let Some((then_ms, from)) = self.seen else {
            self.seen = Some((now_ms, lsn));
            return;
        };
        let took_ms = now_ms.saturating_sub(then_ms);
        if took_ms < SHORTEST_MS {
            return;
        }
        self.seen = Some((now_ms, lsn));
        // Halved for each half-life that has passed whole, and in proportion for the rest.
        let halvings = u32::try_from(took_ms / HALF_LIFE_MS).unwrap_or(u32::MAX);
        let faded = self.bytes_per_second.checked_shr(halvings).unwrap_or(0);
        let rest = u128::from(took_ms % HALF_LIFE_MS);
        let faded = u128::from(faded) * (2 * u128::from(HALF_LIFE_MS) - rest) / (2 * u128::from(HALF_LIFE_MS));
        let now = u128::from(written(from, lsn, segment_bytes)) * 1000 / u128::from(took_ms);
        let lasted = now.min(self.latest);
        self.latest = now;
        self.bytes_per_second = u64::try_from(faded.max(lasted)).unwrap_or(u64::MAX);
    }

    /// Where the primary is, and how far it may come within `window_ms` from when `flushed` was looked at.
    #[must_use]
    pub fn position(&self, flushed: Lsn, window_ms: u64) -> Position {
        let ahead = self.bytes_per_second.saturating_mul(HEADROOM).saturating_mul(window_ms) / 1000;
        Position { flushed, limit: Lsn(flushed.0.saturating_add(ahead)) }
    }
}

/// Bytes that were written on the way. Where one segment ended, the rest of it may have been passed over: `pg_switch_wal`, which
/// also an archive's timeout and a promotion cause, writes next to nothing and moves the position by up to a whole segment.
fn written(from: Lsn, to: Lsn, segment_bytes: u64) -> u64 {
    let way = to.bytes_since(from);
    let segment = |lsn: Lsn| lsn.0.checked_div(segment_bytes).unwrap_or(0);
    match to.0.checked_rem(segment_bytes) {
        Some(offset) if segment(to) == segment(from) + 1 => way.min(offset),
        _ => way,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn a_steady_writer_may_come_twice_as_far_as_it_would() {
        let mut rate = WalRate::default();
        for second in 0..10 {
            rate.note(second * 1000, Lsn(second * 5000), SEGMENT);
        }
        assert_eq!(rate.position(Lsn(45_000), 10_000).limit, Lsn(45_000 + 2 * 50_000));
    }

    #[test]
    fn a_burst_fades() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(0), SEGMENT);
        rate.note(1000, Lsn(8000), SEGMENT);
        rate.note(2000, Lsn(16_000), SEGMENT);
        assert_eq!(rate.position(Lsn(16_000), 1000).limit, Lsn(16_000 + 16_000));
        rate.note(32_000, Lsn(16_000), SEGMENT);
        assert_eq!(rate.position(Lsn(16_000), 1000).limit, Lsn(16_000 + 8000));
        rate.note(47_000, Lsn(16_000), SEGMENT);
        assert_eq!(rate.position(Lsn(16_000), 1000).limit, Lsn(16_000 + 6000));
        rate.note(10_000_000, Lsn(16_000), SEGMENT);
        assert_eq!(rate.position(Lsn(16_000), 1000).limit, Lsn(16_000));
    }

    #[test]
    fn looks_that_follow_each_other_at_once_make_no_rate_and_lose_nothing() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(0), SEGMENT);
        rate.note(1, Lsn(1_000_000), SEGMENT);
        rate.note(1000, Lsn(1_000_000), SEGMENT);
        rate.note(2000, Lsn(2_000_000), SEGMENT);
        assert_eq!(rate.position(Lsn(0), 1000).limit, Lsn(2_000_000));
    }

    #[test]
    fn a_server_that_lost_wal_counts_from_there() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(9000), SEGMENT);
        rate.note(1000, Lsn(1000), SEGMENT);
        assert_eq!(rate.position(Lsn(1000), 1000).limit, Lsn(1000));
    }

    #[test]
    fn what_is_over_with_one_look_is_no_pace() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(0), SEGMENT);
        rate.note(1000, Lsn(8_000_000), SEGMENT);
        rate.note(2000, Lsn(8_000_100), SEGMENT);
        rate.note(3000, Lsn(8_000_300), SEGMENT);
        assert_eq!(rate.position(Lsn(0), 1000).limit, Lsn(200));
    }

    #[test]
    fn segments_that_are_ended_early_are_no_pace() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(SEGMENT + 100), SEGMENT);
        rate.note(1000, Lsn(2 * SEGMENT + 300), SEGMENT);
        rate.note(2000, Lsn(3 * SEGMENT + 200), SEGMENT);
        assert_eq!(rate.position(Lsn(0), 1000).limit, Lsn(400));
    }

    #[test]
    fn a_load_over_several_segments_counts_whole() {
        let mut rate = WalRate::default();
        rate.note(0, Lsn(0), SEGMENT);
        rate.note(1000, Lsn(5 * SEGMENT), SEGMENT);
        rate.note(2000, Lsn(10 * SEGMENT), SEGMENT);
        assert_eq!(rate.position(Lsn(0), 1000).limit, Lsn(10 * SEGMENT));
    }
}

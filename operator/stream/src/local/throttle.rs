//! The limit of a backup's rate.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lowest and highest rate in kilobytes per second that `MAX_RATE` of `BASE_BACKUP` takes.
const RATES: std::ops::RangeInclusive<u32> = 32..=1 << 20;
/// Chunks a second at a low rate, as a walsender does it.
const STEPS_PER_SECOND: u64 = 8;

/// A bucket that holds one chunk: what was not used in time is not made up for.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: Option<u64>,
    free_at: Instant,
}

impl Throttle {
    /// `max_rate` in kilobytes (1024 bytes) per second.
    pub(super) fn new(max_rate: Option<u32>) -> Self {
        let bytes = max_rate.map(|rate| u64::from(rate.clamp(*RATES.start(), *RATES.end())) * 1024);
        Self { bytes_per_second: bytes, free_at: Instant::now() }
    }

    /// How much may pass at once, at most `most`.
    pub(super) fn chunk_bytes(&self, most: usize) -> usize {
        let step = self.bytes_per_second.map(|rate| rate / STEPS_PER_SECOND);
        step.and_then(|step| usize::try_from(step).ok()).map_or(most, |step| step.min(most))
    }

    /// Waits until bytes may pass.
    pub(super) async fn pass(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        sleep_until(self.free_at).await;
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        self.free_at = self.free_at.max(Instant::now()) + takes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_passes_than_the_rate_allows_even_after_a_pause() {
        let mut throttle = Throttle::new(Some(1024));
        assert_eq!((throttle.chunk_bytes(1 << 20), throttle.chunk_bytes(1000)), (128 << 10, 1000));
        assert_eq!(Throttle::new(None).chunk_bytes(1 << 20), 1 << 20);
        throttle.free_at = Instant::now() - Duration::from_secs(10);
        let began = Instant::now();
        for _ in 0..5 {
            throttle.pass(128 << 10).await;
        }
        // The first passes at once, each other an eighth of a second after the one before.
        assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    }
}

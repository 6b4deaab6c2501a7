//! Requests that are a part of hours of work: where they fail for a reason that passes by itself, they are repeated for minutes and not
//! for seconds, since all of that work would begin anew. What is asked for again soon anyway, or stands in a failover's way, has no such
//! patience.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{ObjectStore, StoreError};

/// Each request of a long job is repeated for so long. Who outlasts an outage by it has renewed its marker and its locks before these are
/// 15 minutes old, from when on they are taken for those of a dead process.
pub const LONG_PATIENCE: Duration = Duration::from_secs(12 * 60);
/// The first pause, and the longest; up to as much again is added by chance, lest all come back at once.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a request is repeated, and what ends that early.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    budget: Duration,
    cancel: CancellationToken,
}

impl ObjectStore {
    /// The same store, which repeats a read or a write that fails for a reason that may pass, for `budget`. When `cancel` is cancelled it
    /// repeats nothing any more.
    #[must_use]
    pub fn with_long_patience(&self, budget: Duration, cancel: &CancellationToken) -> Self {
        Self { patience: Some(Patience { budget, cancel: cancel.clone() }), ..self.clone() }
    }

    /// Asks, and again as long as this store is patient.
    pub(super) async fn persevere<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let Some(Patience { budget, cancel }) = &self.patience else { return ask().await };
        let began = Instant::now();
        let pauses = ExponentialBuilder::default().with_jitter().without_max_times();
        let mut pauses = pauses.with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE).build();
        loop {
            let error = match ask().await {
                Err(error) if error.may_pass() => error,
                done => return done,
            };
            let Some(pause) = pauses.next().filter(|pause| began.elapsed() + *pause <= *budget) else {
                return Err(error);
            };
            tracing::warn!(error = %error, pause_ms = pause.as_millis(), "waiting for the object store");
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(error),
                () = sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::fake::FakeStore;

    fn failure(passing: bool) -> StoreError {
        StoreError::Other { what: String::new(), code: "X".to_owned(), message: String::new(), passing }
    }

    /// How often a request was made that fails this often, and whether it was done at last.
    async fn ask(store: &ObjectStore, failures: u32, passing: bool) -> (u32, bool) {
        let asked = Cell::new(0);
        let answer = store.persevere(|| {
            asked.set(asked.get() + 1);
            let fails = asked.get() <= failures;
            async move { if fails { Err(failure(passing)) } else { Ok(()) } }
        });
        let done = answer.await.is_ok();
        (asked.get(), done)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_is_repeated_within_the_budget_and_not_when_it_was_cancelled() {
        let fake = FakeStore::start();
        let (store, cancel) = (fake.connect().await, CancellationToken::new());
        assert_eq!(ask(&store, 1, true).await, (1, false), "without patience");
        let patient = store.with_long_patience(LONG_PATIENCE, &cancel);
        assert_eq!(ask(&patient, 20, true).await, (21, true));
        assert_eq!(ask(&patient, 20, false).await, (1, false), "a definite answer");
        let began = Instant::now();
        let (asked, done) = ask(&patient, u32::MAX, true).await;
        assert!(asked > 20 && !done, "{asked}");
        assert!(began.elapsed() <= LONG_PATIENCE && began.elapsed() > LONG_PATIENCE / 2, "{:?}", began.elapsed());
        cancel.cancel();
        assert_eq!(ask(&patient, 20, true).await, (1, false), "cancelled");
    }
}

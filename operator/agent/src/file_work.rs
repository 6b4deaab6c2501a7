//! Work on files, away from the threads that everything else runs on: a disk may take its time.

use tokio::task::{JoinError, spawn_blocking};

use crate::clock;

/// Runs it on a thread of its own. Where time is simulated it is done at once: threads end in an order of their own, and
/// a run would not repeat itself.
///
/// # Errors
/// [`JoinError`] when the work panicked or the runtime ends.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if clock::is_simulated() {
        return Ok(work());
    }
    spawn_blocking(work).await
}

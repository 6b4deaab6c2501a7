//! Waiting for a condition, with a deadline and the last thing seen in the error.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use crate::Result;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(250);

/// What a look at a condition found.
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; the text is what was seen.
    NotYet(String),
}

/// Looks until the condition holds.
///
/// # Errors
/// After `limit`: what was waited for and what was seen last. An error of `look` counts as "not yet", since a cluster
/// in trouble answers with errors for a while.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Look<T>>>,
{
    let begun = Instant::now();
    loop {
        let seen = match look().await {
            Ok(Look::Done(value)) => return Ok(value),
            Ok(Look::NotYet(seen)) => seen,
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > limit {
            return Err(format!("waited {} s for {what}; last seen: {seen}", limit.as_secs()).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

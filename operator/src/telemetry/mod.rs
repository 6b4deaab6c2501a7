//! Logs and metrics. No secret goes into either: errors are logged as their chain of messages only.

pub mod clusters;
pub mod logs;
pub mod metrics;

use std::error::Error;

/// An error and all of its sources, joined by colons. A source that only repeats what was said is left out.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn the_chain_holds_every_cause() {
        assert_eq!(error_chain(&Outer(Inner)), "outer: inner");
    }
}

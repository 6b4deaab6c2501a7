//! The termination message of a Job's pod: how a process tells its outcome to a controller that it may not reach otherwise.
//! What is in it is the caller's; no secret goes in.

use serde::{Serialize, de::DeserializeOwned};

use crate::telemetry::error_chain;

/// Kubernetes reads the message here.
pub const LOG: &str = "/dev/termination-log";
/// Kubernetes keeps this many bytes of it.
pub const MESSAGE_LIMIT: usize = 4096;
/// An error text that is cut after this many characters leaves room for JSON's escapes.
pub const ERROR_CHARS: usize = 1000;

/// The message; always shorter than Kubernetes' limit, and empty where the outcome is not.
#[must_use]
pub fn render_message(outcome: &impl Serialize) -> String {
    let text = serde_json::to_string(outcome).unwrap_or_default();
    if text.len() <= MESSAGE_LIMIT { text } else { String::new() }
}

/// The outcome that a message tells; None when the text is something else, such as the end of the log.
#[must_use]
pub fn parse_message<T: DeserializeOwned>(message: &str) -> Option<T> {
    serde_json::from_str(message.trim()).ok()
}

/// Leaves the message. Outside of a pod there is no such file, and the log has it all as well.
pub fn write_message(message: &str) {
    if let Err(error) = std::fs::write(LOG, message) {
        tracing::warn!(error = error_chain(&error), "cannot write {LOG}");
    }
}

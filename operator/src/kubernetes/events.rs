//! Publishes Events. What is worth one is decided by each controller.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use crate::{context::Context, telemetry::error_chain};

/// The API server refuses longer notes.
const MAX_NOTE_BYTES: usize = 1024;

/// One Event about `about`. `reason` is one word in CamelCase; `action` says what the operator was doing. A failure to
/// publish is logged and nothing more: no decision waits for an Event.
pub async fn publish(
    context: &Context,
    about: &ObjectReference,
    type_: EventType,
    reason: &str,
    action: &str,
    note: &str,
) {
    let mut note = note.to_owned();
    if note.len() > MAX_NOTE_BYTES {
        let end = (0..=MAX_NOTE_BYTES - 3).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    let event =
        Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None };
    context.metrics.api_writes.inc();
    if let Err(error) = context.recorder.publish(&event, about).await {
        tracing::warn!(reason, error = error_chain(&error), "failed to publish an event");
    }
}

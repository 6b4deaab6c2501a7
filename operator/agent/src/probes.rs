//! Plain HTTP for the kubelet: `/livez`, `/readyz`, `/startupz`. Answers yes or no and one word, no details: anybody can ask.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use pgherd_core::instance::Phase;

use crate::{agent::Agent, server::bind_any};

/// The machine gives a sign of life far more often.
const MAX_SILENCE: Duration = Duration::from_secs(120);

/// Serves the probes; never ends.
pub async fn serve(agent: Arc<Agent>) {
    loop {
        match bind_any(agent.layout.probe_port).await {
            Ok(listener) => {
                if let Err(error) = axum::serve(listener, build_router(Arc::clone(&agent))).await {
                    tracing::warn!(error = %error, "the probe server ended");
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, port = agent.layout.probe_port, "the probe port can't be opened")
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The probes' paths.
pub fn build_router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/startupz", get(|| async { "ok" }))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(agent)
}

async fn live(State(agent): State<Arc<Agent>>) -> (StatusCode, &'static str) {
    answer(agent.inactivity() < MAX_SILENCE)
}

async fn ready(State(agent): State<Arc<Agent>>) -> (StatusCode, &'static str) {
    let status = agent.board.status();
    let serves = match status.phase {
        Phase::Primary => status.postgres_up && status.is_primary && agent.led_term().is_some(),
        Phase::Replica => status.postgres_up && status.receiver.is_some_and(|receiver| receiver.streaming),
        _ => false,
    };
    answer(serves)
}

fn answer(yes: bool) -> (StatusCode, &'static str) {
    if yes { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "no") }
}

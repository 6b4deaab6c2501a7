//! Probes of the agent. The kubelet asks the agent, never PostgreSQL: a full connection table must not kill a server.

use k8s_openapi::{
    api::core::v1::{HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// Name of the probes' port.
pub const PROBE_PORT_NAME: &str = "probes";

/// The agent is alive. Slow to conclude, because a restart of the container is a failover.
#[must_use]
pub fn build_liveness() -> Probe {
    Probe { period_seconds: Some(10), timeout_seconds: Some(5), failure_threshold: Some(6), ..get("/livez") }
}

/// PostgreSQL serves. Fast, because Services follow it.
#[must_use]
pub fn build_readiness() -> Probe {
    Probe { period_seconds: Some(1), timeout_seconds: Some(2), failure_threshold: Some(2), ..get("/readyz") }
}

/// The agent has started: ten minutes at most. A restore may take longer; the agent answers while it runs.
#[must_use]
pub fn build_startup() -> Probe {
    Probe { period_seconds: Some(1), timeout_seconds: Some(2), failure_threshold: Some(600), ..get("/startupz") }
}

fn get(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(PROBE_PORT_NAME.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

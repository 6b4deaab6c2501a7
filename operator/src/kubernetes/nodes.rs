//! Which nodes are being drained. Nodes belong to no namespace: an operator that may only work in some namespaces can't read
//! them, and then nothing is known. It decides nothing.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{Store, store},
        watcher,
    },
};

use crate::telemetry::error_chain;

/// Taints by which a node is marked before its pods are evicted: by `kubectl cordon`, the cluster autoscaler and Karpenter.
const DRAIN_TAINTS: [&str; 4] = [
    "node.kubernetes.io/unschedulable",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// What the watch on nodes has seen.
#[derive(Clone)]
pub struct Nodes {
    store: Store<Node>,
    denied: Arc<AtomicBool>,
}

impl Nodes {
    /// The store, and the watch that fills it for as long as it is polled.
    pub fn start(client: &Client) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (reader, writer) = store::<Node>();
        let denied = Arc::new(AtomicBool::new(false));
        let events = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
            .default_backoff()
            // Only the name and the spec are read; the status is large and changes all the time.
            .modify(|node| {
                node.managed_fields_mut().clear();
                node.status = None;
            })
            .reflect(writer);
        let seen = Arc::clone(&denied);
        let watch = events.for_each(move |event| {
            note(&seen, event.err());
            std::future::ready(())
        });
        (Self { store: reader, denied }, watch)
    }

    /// The nodes that are cordoned or being drained; None while that can't be known.
    #[must_use]
    pub fn draining(&self) -> Option<BTreeSet<String>> {
        let filled = matches!(self.store.wait_until_ready().now_or_never(), Some(Ok(())));
        if !filled || self.denied.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.store.state().iter().filter(|node| is_draining(node)).map(|node| node.name_any()).collect())
    }
}

/// Says once that the right is missing, and once that it is there again.
fn note(denied: &AtomicBool, error: Option<watcher::Error>) {
    let now_denied = match &error {
        None => false,
        Some(error) if is_forbidden(error) => true,
        Some(error) => {
            tracing::warn!(kind = "Node", error = error_chain(error), "a watch failed and begins again");
            return;
        }
    };
    let before = denied.swap(now_denied, Ordering::Relaxed);
    if now_denied && !before {
        tracing::warn!(
            "nodes can't be read: the primary's role does not move before its node is drained, and its pod is not kept from being evicted"
        );
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.is_forbidden(),
        watcher::Error::WatchError(status) => status.is_forbidden(),
        _ => false,
    }
}

fn is_draining(node: &Node) -> bool {
    let Some(spec) = &node.spec else { return false };
    let tainted = spec.taints.iter().flatten().any(|taint| DRAIN_TAINTS.contains(&taint.key.as_str()));
    spec.unschedulable == Some(true) || tainted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(spec: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "kn1"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_cordoned_or_condemned_node_is_being_drained() {
        assert!(!is_draining(&node(json!({}))));
        assert!(!is_draining(&node(json!({"taints": [{"key": "disk", "effect": "NoSchedule"}]}))));
        assert!(is_draining(&node(json!({"unschedulable": true}))));
        for key in DRAIN_TAINTS {
            assert!(is_draining(&node(json!({"taints": [{"key": key, "effect": "NoSchedule"}]}))), "{key}");
        }
    }

    #[test]
    fn a_refusal_is_told_apart_from_a_failure() {
        let denied = AtomicBool::new(false);
        let refused = || {
            let status =
                serde_json::from_value(json!({"code": 403, "reason": "Forbidden", "status": "Failure"})).unwrap();
            watcher::Error::WatchError(status)
        };
        note(&denied, Some(refused()));
        assert!(denied.load(Ordering::Relaxed));
        note(&denied, Some(watcher::Error::NoResourceVersion));
        assert!(denied.load(Ordering::Relaxed));
        note(&denied, None);
        assert!(!denied.load(Ordering::Relaxed));
    }
}

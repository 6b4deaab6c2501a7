//! The controller of `PostgresCluster`: validate -> observe -> decide -> execute -> build -> apply -> status.

pub mod apply;
pub mod build;
pub mod decide;
pub mod events;
pub mod execute;
pub mod memory;
pub mod observe;
pub mod reconcile;
pub mod references;
pub mod secrets;
pub mod status;
#[cfg(test)]
pub(crate) mod test_support;
pub mod tls;
pub mod validate;

use std::{sync::Arc, time::Instant};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    ResourceExt,
    runtime::{Controller, controller, controller::Action, reflector::ObjectRef, watcher},
};
use pgherd_crds::{
    PostgresCluster,
    names::{MANAGER, keys},
};
use tracing::Instrument;

use self::reconcile::{ReconcileError, reconcile, retry_delay};
use crate::{context::Context, kubernetes::register::parse_lease, telemetry::error_chain};

/// Clusters that are worked on at once. A round that seals waits for seconds, therefore more than there are processors.
const CONCURRENCY: u16 = 64;
const NAME: &str = "postgres-cluster";

/// Runs until `shutdown` resolves and the rounds under way have ended.
pub async fn run(context: Arc<Context>, shutdown: BoxFuture<'static, ()>) {
    let (signal, stop) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        shutdown.await;
        drop(signal);
    });
    let leases = watcher::Config::default().labels(&format!("{}={MANAGER}", keys::MANAGED_BY));
    Controller::new(context.api::<PostgresCluster>(), watcher::Config::default())
        .watches(context.api::<Lease>(), leases, released_cluster)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(async move {
            // Dropping the sender is the signal.
            let _ = stop.await;
        })
        .run(reconcile_measured, retry, Arc::clone(&context))
        .for_each(|result| {
            // Failed rounds are logged where they fail.
            if let Err(error @ (controller::Error::QueueError(_) | controller::Error::RunnerError(_))) = result {
                tracing::warn!(controller = NAME, error = error_chain(&error), "the controller's watch failed");
            }
            forget_deleted(&context);
            std::future::ready(())
        })
        .await;
}

/// The cluster whose holder has released its Lease: its round must not wait for the next second. It decides on a register
/// that it reads itself; this is only the hint. A plain renewal is none.
fn released_cluster(lease: Lease) -> Option<ObjectRef<PostgresCluster>> {
    let (name, namespace) = (lease.name_any(), lease.namespace()?);
    let register = parse_lease(lease).ok()?.view.register;
    (register.released && !register.is_sealing()).then(|| ObjectRef::new(&name).within(&namespace))
}

async fn reconcile_measured(cluster: Arc<PostgresCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let span = tracing::info_span!(
        "reconcile",
        namespace = cluster.namespace().unwrap_or_default(),
        cluster = cluster.name_any(),
        generation = cluster.metadata.generation,
    );
    let started = Instant::now();
    let result = reconcile(cluster, Arc::clone(&context)).instrument(span).await;
    context.metrics.reconciled(NAME, started.elapsed(), result.as_ref().err().map(ReconcileError::stage));
    result
}

fn retry(cluster: Arc<PostgresCluster>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let memory = context.memories.of(&cluster.uid().unwrap_or_default());
    let failures = memory.try_lock().map_or(1, |memory| memory.failures);
    // The nanoseconds of the clock are random enough to spread retries.
    let random = f64::from(context.clock.now().wall.subsec_nanosecond().unsigned_abs() % 1_000) / 1_000.0;
    let delay = retry_delay(failures, random);
    tracing::warn!(
        namespace = cluster.namespace().unwrap_or_default(),
        cluster = cluster.name_any(),
        stage = error.stage(),
        failures,
        error = error_chain(error),
        "a round failed"
    );
    Action::requeue(delay)
}

/// Memories of clusters that are gone. Cheap: a handful of UIDs.
fn forget_deleted(context: &Context) {
    let uids: Vec<String> = context.stores.clusters.state().iter().filter_map(|cluster| cluster.uid()).collect();
    context.memories.retain(&uids);
    context.agents.retain(&uids);
    context.metrics.clusters.retain(context.scope.namespace(), &uids);
}

#[cfg(test)]
mod tests {
    use pgherd_core::register::{REGISTER_ANNOTATION, Register, Term};
    use serde_json::json;

    use super::*;

    fn lease(register: &Register) -> Lease {
        let text = serde_json::to_string(register).unwrap();
        serde_json::from_value(json!({"metadata": {"name": "shop", "namespace": "web", "resourceVersion": "7",
            "annotations": {REGISTER_ANNOTATION: text}}}))
        .unwrap()
    }

    #[test]
    fn a_released_lease_is_looked_at_at_once_and_a_renewed_one_is_not() {
        let released = Register { released: true, ..Register::default() };
        assert_eq!(released_cluster(lease(&Register::default())), None);
        assert_eq!(released_cluster(lease(&released)), Some(ObjectRef::new("shop").within("web")));
        assert_eq!(released_cluster(lease(&Register { seal_term: Term(1), ..released })), None);
        assert_eq!(released_cluster(Lease::default()), None);
    }
}

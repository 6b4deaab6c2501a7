//! The controller of `BackupSchedule`, with the semantics of a CronJob that forbids concurrency: observe -> decide ->
//! build -> apply -> status. It makes Backups and deletes old Backup objects, and has Jobs care for what lies in the store;
//! it never touches an object store itself.

mod apply;
pub mod build;
pub mod care;
pub mod decide;
pub mod error;
mod ground;
#[cfg(test)]
mod ground_tests;
pub mod observe;
pub mod reconcile;
pub mod retention;
mod retention_run;
#[cfg(test)]
mod retention_tests;
pub mod status;
#[cfg(test)]
mod tests;
pub mod verification;
mod verification_run;
#[cfg(test)]
mod verification_tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
    },
};
use pgherd_crds::{
    Backup, BackupSchedule, PostgresCluster,
    names::{self, keys},
};
use tracing::Instrument;

use self::error::ScheduleControllerError;
use crate::{
    context::Context,
    controllers::store_jobs::{RETENTION_APP, VERIFICATION_APP},
    kubernetes::client::watch_config,
    telemetry::error_chain,
};

const NAME: &str = "backup_schedule";
const CONCURRENCY: u16 = 8;
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Runs until `shutdown` resolves. What is under way then is dropped: every step can be repeated.
pub async fn run(context: Arc<Context>, shutdown: BoxFuture<'static, ()>) {
    tokio::select! {
        () = shutdown => {}
        () = run_controller(context) => {}
    }
}

async fn run_controller(context: Arc<Context>) {
    let controller = Controller::new(context.api::<BackupSchedule>(), watch_config());
    let (for_backups, for_clusters) = (controller.store(), controller.store());
    let jobs =
        format!("{}={},{} in ({RETENTION_APP},{VERIFICATION_APP})", keys::MANAGED_BY, names::MANAGER, keys::NAME);
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns(context.api::<Job>(), watch_config().labels(&jobs))
        .watches(context.api::<Backup>(), watch_config(), move |backup| {
            list_schedules(&for_backups, backup.namespace().as_deref(), &backup.spec.cluster_ref.name)
        })
        .watches(context.api::<PostgresCluster>(), watch_config(), move |cluster| {
            list_schedules(&for_clusters, cluster.namespace().as_deref(), &cluster.name_any())
        })
        .run(reconcile_measured, retry, context)
        // Failed rounds are logged where they fail.
        .for_each(|_| std::future::ready(()))
        .await;
}

/// The schedules of a cluster.
fn list_schedules(
    store: &Store<BackupSchedule>,
    namespace: Option<&str>,
    cluster: &str,
) -> Vec<ObjectRef<BackupSchedule>> {
    store
        .state_filter(|schedule| {
            schedule.spec.cluster_ref.name == cluster && schedule.metadata.namespace.as_deref() == namespace
        })
        .iter()
        .map(|schedule| ObjectRef::from_obj(&**schedule))
        .collect()
}

async fn reconcile_measured(
    schedule: Arc<BackupSchedule>,
    context: Arc<Context>,
) -> Result<Action, ScheduleControllerError> {
    let (namespace, name) = (schedule.namespace().unwrap_or_default(), schedule.name_any());
    let span = tracing::info_span!("reconcile", namespace, schedule = name);
    let started = Instant::now();
    let result = reconcile::reconcile(schedule, Arc::clone(&context)).instrument(span).await;
    context.metrics.reconciled(NAME, started.elapsed(), result.as_ref().err().map(ScheduleControllerError::stage));
    result
}

fn retry(schedule: Arc<BackupSchedule>, error: &ScheduleControllerError, _: Arc<Context>) -> Action {
    let (namespace, name) = (schedule.namespace().unwrap_or_default(), schedule.name_any());
    tracing::warn!(namespace, schedule = name, error = error_chain(error), "failed to reconcile a BackupSchedule");
    Action::requeue(RETRY_AFTER)
}

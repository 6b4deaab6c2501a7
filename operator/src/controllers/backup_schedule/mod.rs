//! The controller of `BackupSchedule`, with the semantics of a CronJob that forbids concurrency: observe -> decide ->
//! build -> apply -> status. It makes Backups and deletes old Backup objects; it never touches an object store.

pub mod build;
pub mod decide;
pub mod error;
pub mod observe;
pub mod reconcile;
pub mod status;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use kube::{
    Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use pgherd_crds::{Backup, BackupSchedule, PostgresCluster};

use self::error::ScheduleControllerError;
use super::backup::{list_namespaces, open_api};
use crate::{context::Context, telemetry::error_chain};

const CONCURRENCY: u16 = 8;
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Runs until `shutdown` resolves. What is under way then is dropped: every step can be repeated.
pub async fn run(context: Arc<Context>, shutdown: BoxFuture<'static, ()>) {
    let namespaces = list_namespaces(&context.settings.namespaces);
    let controllers = namespaces.iter().map(|namespace| run_in(Arc::clone(&context), namespace.as_deref()));
    tokio::select! {
        () = shutdown => {}
        _ = futures::future::join_all(controllers) => {}
    }
}

async fn run_in(context: Arc<Context>, namespace: Option<&str>) {
    let client = &context.client;
    let controller = Controller::new(open_api::<BackupSchedule>(client, namespace), watcher::Config::default());
    let (for_backups, for_clusters) = (controller.store(), controller.store());
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches(open_api::<Backup>(client, namespace), watcher::Config::default(), move |backup| {
            let namespace = backup.namespace();
            list_schedules(&for_backups, namespace.as_deref(), &backup.spec.cluster_ref.name)
        })
        .watches(open_api::<PostgresCluster>(client, namespace), watcher::Config::default(), move |cluster| {
            list_schedules(&for_clusters, cluster.meta().namespace.as_deref(), &cluster.name_any())
        })
        .run(reconcile::reconcile, on_error, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// The schedules of a cluster.
fn list_schedules(store: &Store<BackupSchedule>, namespace: Option<&str>, cluster: &str) -> Vec<ObjectRef<BackupSchedule>> {
    store
        .state_filter(|schedule| {
            schedule.spec.cluster_ref.name == cluster && schedule.metadata.namespace.as_deref() == namespace
        })
        .iter()
        .map(|schedule| ObjectRef::from_obj(&**schedule))
        .collect()
}

fn on_error(schedule: Arc<BackupSchedule>, error: &ScheduleControllerError, _: Arc<Context>) -> Action {
    let (namespace, name) = (schedule.namespace().unwrap_or_default(), schedule.name_any());
    tracing::warn!(namespace, name, error = error_chain(error), "failed to reconcile a BackupSchedule");
    Action::requeue(RETRY_AFTER)
}

//! The controller of `Backup`: observe -> decide -> build -> apply -> status. One Job an attempt; a failed attempt is
//! followed by another one from another source, so that a failover in the middle of a backup heals.

pub mod apply;
pub mod archive;
pub mod build;
pub mod conditions;
pub mod decide;
pub mod error;
pub mod observe;
pub mod reconcile;
pub mod status;
pub mod store;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::ObjectRef,
        watcher,
    },
};
use pgherd_crds::{
    Backup, PostgresCluster,
    names::{self, keys},
};

use self::error::BackupError;
use crate::{context::Context, telemetry::error_chain};

const CONCURRENCY: u16 = 16;
const RETRY_AFTER: Duration = Duration::from_secs(5);
const RETRY_CONFLICT_AFTER: Duration = Duration::from_secs(1);

/// Runs until `shutdown` resolves. What is under way then is dropped: every step can be repeated.
pub async fn run(context: Arc<Context>, shutdown: BoxFuture<'static, ()>) {
    let namespaces = list_namespaces(&context.settings.namespaces);
    let controllers = namespaces.iter().map(|namespace| run_in(Arc::clone(&context), namespace.as_deref()));
    tokio::select! {
        () = shutdown => {}
        _ = futures::future::join_all(controllers) => {}
    }
}

/// The namespaces to watch, or None for all of them.
#[must_use]
pub fn list_namespaces(namespaces: &[String]) -> Vec<Option<String>> {
    if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() }
}

/// An API in one namespace, or in all.
#[must_use]
pub fn open_api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

async fn run_in(context: Arc<Context>, namespace: Option<&str>) {
    let client = &context.client;
    let jobs = format!("{}={},{}={}", keys::MANAGED_BY, names::MANAGER, keys::NAME, build::BACKUP_APP);
    let controller = Controller::new(open_api::<Backup>(client, namespace), watcher::Config::default());
    let backups = controller.store();
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns(open_api::<Job>(client, namespace), watcher::Config::default().labels(&jobs))
        .watches(open_api::<PostgresCluster>(client, namespace), watcher::Config::default(), move |cluster| {
            let of_cluster = backups.state_filter(|backup| {
                backup.spec.cluster_ref.name == cluster.name_any()
                    && backup.namespace() == cluster.namespace()
                    && observe::is_unfinished(backup)
            });
            of_cluster.into_iter().map(|backup| ObjectRef::from_obj(&*backup)).collect::<Vec<_>>()
        })
        .run(reconcile::reconcile, on_error, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

fn on_error(backup: Arc<Backup>, error: &BackupError, _: Arc<Context>) -> Action {
    if let BackupError::PatchStatus(kube::Error::Api(status)) = error
        && status.is_conflict()
    {
        return Action::requeue(RETRY_CONFLICT_AFTER);
    }
    let (namespace, name) = (backup.namespace().unwrap_or_default(), backup.name_any());
    tracing::warn!(namespace, name, error = error_chain(error), "failed to reconcile a Backup");
    Action::requeue(RETRY_AFTER)
}

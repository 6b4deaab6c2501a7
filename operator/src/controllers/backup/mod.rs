//! The controller of `Backup`: observe -> decide -> build -> apply -> status. One Job an attempt; a failed attempt is
//! followed by another one from another source, so that a failover in the middle of a backup heals.

pub mod apply;
pub mod archive;
pub mod build;
pub mod conditions;
pub mod decide;
pub mod deletion;
pub mod error;
mod finalize;
pub mod observe;
pub mod reconcile;
pub mod status;
#[cfg(test)]
pub(crate) mod tests;

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
        reflector::ObjectRef,
    },
};
use pgherd_crds::{
    Backup, PostgresCluster,
    names::{self, keys},
};
use tracing::Instrument;

use self::error::BackupError;
use crate::{
    context::Context,
    kubernetes::{client::watch_config, store::list_backups},
    telemetry::error_chain,
};

const NAME: &str = "backup";
const CONCURRENCY: u16 = 16;
const RETRY_AFTER: Duration = Duration::from_secs(5);
const RETRY_CONFLICT_AFTER: Duration = Duration::from_secs(1);

/// Runs until `shutdown` resolves. What is under way then is dropped: every step can be repeated.
pub async fn run(context: Arc<Context>, shutdown: BoxFuture<'static, ()>) {
    tokio::select! {
        () = shutdown => {}
        () = run_controller(context) => {}
    }
}

async fn run_controller(context: Arc<Context>) {
    let jobs = format!("{}={},{}={}", keys::MANAGED_BY, names::MANAGER, keys::NAME, build::BACKUP_APP);
    let controller = Controller::new(context.api::<Backup>(), watch_config());
    let backups = controller.store();
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns(context.api::<Job>(), watch_config().labels(&jobs))
        .watches(context.api::<PostgresCluster>(), watch_config(), move |cluster| {
            let of_cluster =
                list_backups(&backups, cluster.namespace().as_deref().unwrap_or_default(), &cluster.name_any());
            let unfinished = of_cluster.into_iter().filter(|backup| observe::is_unfinished(backup));
            unfinished.map(|backup| ObjectRef::from_obj(&*backup)).collect::<Vec<_>>()
        })
        .run(reconcile_measured, retry, context)
        // Failed rounds are logged where they fail.
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile_measured(backup: Arc<Backup>, context: Arc<Context>) -> Result<Action, BackupError> {
    let (namespace, name) = (backup.namespace().unwrap_or_default(), backup.name_any());
    let span = tracing::info_span!("reconcile", namespace, backup = name);
    let started = Instant::now();
    let result = reconcile::reconcile(backup, Arc::clone(&context)).instrument(span).await;
    context.metrics.reconciled(NAME, started.elapsed(), result.as_ref().err().map(BackupError::stage));
    result
}

fn retry(backup: Arc<Backup>, error: &BackupError, _: Arc<Context>) -> Action {
    if let BackupError::PatchStatus(kube::Error::Api(status)) = error
        && status.is_conflict()
    {
        return Action::requeue(RETRY_CONFLICT_AFTER);
    }
    let (namespace, name) = (backup.namespace().unwrap_or_default(), backup.name_any());
    tracing::warn!(namespace, backup = name, error = error_chain(error), "failed to reconcile a Backup");
    Action::requeue(RETRY_AFTER)
}

//! `pgherd prune --config FILE`: deletes from a store what retention gives up, or the backups that are named, in a Job's pod.
//! It ends with its outcome in the termination message, and talks to the store alone: it needs no right in Kubernetes.

pub mod config;
pub mod outcome;

use std::{collections::BTreeSet, error::Error, path::Path, process::ExitCode};

use jiff::Timestamp;
use pgherd_stream::{
    catalogue::CatalogueError,
    process::build_runtime,
    prune::{PruneError, PruneOptions, PruneOutcome, PrunePlan, apply_prune, plan_prune},
    store::{ObjectStore, StoreError},
};
use tokio_util::sync::CancellationToken;

use self::{
    config::PruneJobConfig,
    outcome::{PruneJobOutcome, PruneSummary, render_outcome},
};
use super::{
    backup::{cancel_on_signal, config::read_config, failure::describe_store_failure, render_time},
    termination::write_message,
};
use crate::telemetry::{error_chain, logs};

/// Why nothing more was deleted.
#[derive(Debug, thiserror::Error)]
pub enum PruneJobError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine stopped.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// Kubernetes and the store contradict each other.
    #[error(
        "the store does not have {0}, which it must have by its Backup: nothing was deleted; is spec.backup.objectStore another one than before?"
    )]
    NewestIsMissing(String),
    /// The pod was told to end.
    #[error("it was cancelled")]
    Cancelled,
}

/// Runs to the end; the exit code says whether everything was done.
///
/// # Errors
/// If the configuration can't be read or no runtime can be made.
pub fn run(config_file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    logs::start();
    let config: PruneJobConfig = match read_config(config_file) {
        Ok(config) => config,
        Err(error) => {
            let failed = PruneJobOutcome::Failed { reason: "BadConfig".to_owned(), error: error_chain(&error) };
            write_message(&render_outcome(&failed));
            return Err(error.into());
        }
    };
    let outcome = build_runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        cancel_on_signal(&cancel);
        tokio::select! {
            () = cancel.cancelled() => Err(PruneJobError::Cancelled),
            done = prune(&config, Timestamp::now()) => done,
        }
    });
    let (outcome, code) = match outcome {
        Ok(summary) => {
            tracing::info!(
                kept = summary.kept,
                deleted = ?summary.deleted,
                deleted_wal = summary.deleted_wal,
                bytes_freed = summary.bytes_freed,
                "pruned"
            );
            (PruneJobOutcome::Completed(summary), ExitCode::SUCCESS)
        }
        Err(error) => {
            let (reason, text) = describe_failure(&error);
            tracing::error!(reason, error = text, "pruning failed");
            (PruneJobOutcome::Failed { reason, error: text }, ExitCode::FAILURE)
        }
    };
    write_message(&render_outcome(&outcome));
    Ok(code)
}

/// Plans, deletes, and looks again.
///
/// # Errors
/// [`PruneJobError`]; what was deleted until then is gone as a whole or is finished by the next run.
pub async fn prune(config: &PruneJobConfig, now: Timestamp) -> Result<PruneSummary, PruneJobError> {
    let store = ObjectStore::connect(&config.location.store).await?;
    store.probe().await?;
    let options = PruneOptions {
        policy: config.policy.map(Into::into).unwrap_or_default(),
        pinned: config.pinned.iter().cloned().collect(),
        doomed: config.doomed.iter().cloned().collect(),
        damaged: config.damaged.iter().cloned().collect(),
        now,
    };
    let plan = plan_prune(&store, &config.location, &options).await?;
    validate_known(config, &plan)?;
    for verdict in &plan.backups.delete {
        tracing::info!(id = verdict.id, why = verdict.why, "to be deleted");
    }
    let done = apply_prune(&store, &config.location, &options, &plan).await?;
    let after = plan_prune(&store, &config.location, &options).await?;
    Ok(summarize(config, &options, &after, done))
}

/// A store that lacks the newest backup that Kubernetes knows is another store, or somebody else deletes from it. Either
/// way this is no time to delete.
fn validate_known(config: &PruneJobConfig, plan: &PrunePlan) -> Result<(), PruneJobError> {
    let newest = config.known.last().filter(|_| config.policy.is_some());
    let found = present(plan);
    match newest.filter(|id| !found.contains(id.as_str())) {
        Some(missing) => Err(PruneJobError::NewestIsMissing(missing.clone())),
        None => Ok(()),
    }
}

fn present(plan: &PrunePlan) -> BTreeSet<&str> {
    plan.backups.keep.iter().chain(&plan.backups.delete).map(|verdict| verdict.id.as_str()).collect()
}

fn summarize(config: &PruneJobConfig, options: &PruneOptions, after: &PrunePlan, done: PruneOutcome) -> PruneSummary {
    let present = present(after);
    let stays = |id: &String| after.backups.keep.iter().find(|verdict| verdict.id == *id);
    let foresight = after.foresee(&options.policy, options.now);
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    PruneSummary {
        kept: count(present.len()),
        deleted_count: count(done.backups.len()),
        deleted: done.backups,
        deleted_wal: done.wal as u64,
        bytes_freed: done.bytes,
        held: after.held.clone(),
        gone: config.known.iter().filter(|id| !present.contains(id.as_str())).cloned().collect(),
        more_gone: false,
        refused: config.doomed.iter().find_map(stays).map(|verdict| verdict.why.clone()),
        next: foresight.ids,
        next_at: foresight.at.map(render_time),
        expires_at: foresight.expires_at.map(render_time),
    }
}

fn describe_failure(error: &PruneJobError) -> (String, String) {
    let store = match error {
        PruneJobError::Store(error)
        | PruneJobError::Prune(PruneError::Store(error) | PruneError::Catalogue(CatalogueError::Store(error))) => error,
        PruneJobError::NewestIsMissing(_) => return ("BackupMissing".to_owned(), error_chain(error)),
        PruneJobError::Cancelled => return ("Cancelled".to_owned(), error_chain(error)),
        PruneJobError::Prune(_) => return ("PruneFailed".to_owned(), error_chain(error)),
    };
    let failure = describe_store_failure(store);
    (failure.reason, failure.error)
}

//! `pgherd backup --config FILE`: one base backup, streamed to the object store, in a Job's pod. It ends with its outcome
//! in the termination message, and reports its progress to the Backup's status as well as it can.
//!
//! It never tries again by itself: the source may be gone, and only the controller knows another one.

pub mod config;
pub mod failure;
pub mod local;
pub mod outcome;
pub mod progress;
pub mod report;

use std::{
    error::Error,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgherd_core::{backup::LOCAL_METHOD, chain::ParentChoice, compression::LevelBounds};
use pgherd_stream::{
    backup::{BackupError, BackupKind, BackupOptions, BackupOwner, BackupProgress, IncrementalOptions, run_backup},
    process::build_runtime,
    replication::ConnectOptions,
    store::ObjectStore,
    tls::PostgresTls,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    config::{BackupJobConfig, SourceConfig, read_config},
    failure::describe_failure,
    outcome::{BackupFailure, BackupOutcome, BackupSummary, render_outcome},
    report::Reporter,
};
use super::termination::write_message;
use crate::telemetry::{error_chain, logs};

/// Bound of the connection to the instance.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A progress patch under way may take this long after the backup's end.
const REPORT_GRACE: Duration = Duration::from_secs(6);

/// Runs the backup to its end; the exit code says whether it is in the store.
///
/// # Errors
/// If the configuration can't be read or no runtime can be made.
pub fn run(config_file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    logs::start();
    let config: BackupJobConfig = match read_config(config_file) {
        Ok(config) => config,
        Err(error) => {
            write_message(&render_outcome(&BackupOutcome::Failed(bad_config(&error))));
            return Err(error.into());
        }
    };
    let runtime = build_runtime()?;
    let outcome = runtime.block_on(perform(&config));
    write_message(&render_outcome(&outcome));
    // Threads that still compress or wait for a name must not delay the end.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match outcome {
        BackupOutcome::Completed(summary) => {
            tracing::info!(
                id = summary.id,
                bytes = summary.bytes,
                stored_bytes = summary.stored_bytes,
                "backup completed"
            );
            Ok(ExitCode::SUCCESS)
        }
        BackupOutcome::Failed(failure) => {
            tracing::error!(reason = failure.reason, error = failure.error, "backup failed");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn bad_config(error: &(dyn Error + 'static)) -> BackupFailure {
    BackupFailure { reason: "BadConfig".to_owned(), error: error_chain(error), retry: false }
}

async fn perform(config: &BackupJobConfig) -> BackupOutcome {
    let (started, started_at) = (Instant::now(), render_time(Timestamp::now()));
    let levels = match config.levels() {
        Ok(levels) => levels,
        Err(error) => return BackupOutcome::Failed(bad_config(&error)),
    };
    let cancel = CancellationToken::new();
    cancel_on_signal(&cancel);
    // First of all the store: wrong credentials or a missing bucket must not cost the server a checkpoint.
    let probed = tokio::select! {
        () = cancel.cancelled() => Err(BackupError::Cancelled),
        probed = probe(config) => probed,
    };
    if let Err(error) = probed {
        return BackupOutcome::Failed(describe_failure(&error));
    }
    let reporter = match kube::Client::try_default().await {
        Ok(client) => Some(Arc::new(Reporter::new(client, config, started_at.clone(), started))),
        Err(error) => {
            tracing::warn!(
                error = error_chain(&error),
                "no API server: the backup goes on without progress in its status"
            );
            None
        }
    };
    let (sender, receiver) = watch::channel(BackupProgress::default());
    let telling = reporter.clone().map(|reporter| {
        let cancel = cancel.clone();
        tokio::spawn(async move { reporter.report_progress(receiver, cancel).await })
    });
    let outcome = match config.local {
        Some(local) => local::ask::back_up_by_agent(config, local, sender, &cancel).await,
        None => {
            let done = run_backup(build_options(config, levels), sender, cancel.clone()).await;
            conclude(done, started_at, started)
        }
    };
    // The sender is gone, so the task ends by itself; the last status must come after its last patch.
    cancel.cancel();
    if let Some(task) = telling {
        let abort = task.abort_handle();
        if timeout(REPORT_GRACE, task).await.is_err() {
            abort.abort();
        }
    }
    if let (Some(reporter), BackupOutcome::Completed(summary)) = (reporter, &outcome) {
        reporter.report_completed(summary).await;
    }
    outcome
}

fn build_options(config: &BackupJobConfig, levels: LevelBounds) -> BackupOptions {
    let mut options = BackupOptions::new(build_connect_options(&config.source), config.location.clone());
    (options.levels, options.max_rate) = (levels, config.max_rate);
    options.owner = Some(BackupOwner { id: config.backup_uid.clone(), attempt: config.attempt });
    options.incremental = config.incremental.as_ref().map(|wanted| IncrementalOptions {
        parent: ParentChoice::Newest,
        max_chain: wanted.max_chain,
        damaged: wanted.damaged.clone(),
    });
    options
}

/// What came of a backup that began at these times.
fn conclude(
    done: Result<pgherd_stream::backup::BackupOutcome, BackupError>,
    started_at: String,
    started: Instant,
) -> BackupOutcome {
    match done {
        Ok(outcome) => BackupOutcome::Completed(Box::new(build_summary(&outcome, started_at, started.elapsed()))),
        Err(error) => BackupOutcome::Failed(describe_failure(&error)),
    }
}

async fn probe(config: &BackupJobConfig) -> Result<(), BackupError> {
    ObjectStore::connect(&config.location.store).await?.probe().await?;
    Ok(())
}

/// SIGTERM and SIGINT end the backup: its uploads are aborted, nothing stays visible.
pub(crate) fn cancel_on_signal(cancel: &CancellationToken) {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        match signal(kind) {
            Ok(mut signals) => {
                let cancel = cancel.clone();
                tokio::spawn(async move {
                    if signals.recv().await.is_some() {
                        tracing::warn!("told to end: the backup is cancelled");
                        cancel.cancel();
                    }
                });
            }
            Err(error) => tracing::warn!(error = error_chain(&error), "cannot listen for signals"),
        }
    }
}

/// The certificate that replicas show as well.
fn build_tls(source: &SourceConfig) -> PostgresTls {
    let folder = Path::new(&source.tls_dir);
    PostgresTls {
        ca_file: folder.join("ca.crt"),
        cert_file: Some(folder.join("replication.crt")),
        key_file: Some(folder.join("replication.key")),
    }
}

fn build_connect_options(source: &SourceConfig) -> ConnectOptions {
    ConnectOptions {
        host: source.host.clone(),
        port: source.port,
        server_name: source.host.clone(),
        user: source.user.clone(),
        database: None,
        tls: Some(build_tls(source)),
        password_file: None,
        application_name: "pgherd-backup".to_owned(),
        connect_timeout: CONNECT_TIMEOUT,
    }
}

fn build_summary(outcome: &pgherd_stream::backup::BackupOutcome, started_at: String, took: Duration) -> BackupSummary {
    let record = &outcome.record;
    let location = &outcome.location;
    let (chain_length, full_reason) = match &outcome.kind {
        BackupKind::Full(reason) => (1, reason.clone()),
        BackupKind::Incremental { chain_length, .. } => (*chain_length, None),
    };
    BackupSummary {
        id: record.id.clone(),
        destination: location.destination(&record.id),
        system_id: record.system_id.clone(),
        server_version: record.server_version,
        timeline: record.timeline,
        start_lsn: record.start_lsn,
        stop_lsn: record.stop_lsn,
        started_at,
        completed_at: render_time(Timestamp::now()),
        bytes: record.tar_bytes,
        stored_bytes: record.stored_bytes,
        took_ms: millis(took),
        stream_ms: millis(Duration::try_from_secs_f64(outcome.seconds).unwrap_or(took)),
        parent: record.parent.as_ref().map(|parent| parent.id.clone()),
        chain_length,
        full_reason,
        local: record.method.as_deref() == Some(LOCAL_METHOD),
        levels: outcome.levels,
        peak_rss_bytes: outcome.peak_rss_bytes,
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn render_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

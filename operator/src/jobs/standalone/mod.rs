//! Backup, restore and verification by hand, without Kubernetes: from flags, or from a JSON file with the same names. Secrets are
//! read from files only, never from arguments or the environment.

mod args;
mod list;
mod recovery;
mod trial;

use std::{collections::BTreeSet, error::Error, process::ExitCode};

use jiff::{SignedDuration, Timestamp};
use pgherd_core::{backup::BackupLocation, retention::RetentionPolicy, timeline::TimelineId};
use pgherd_stream::{
    backup::{BackupKind, BackupOptions, BackupProgress, observe_peak_rss, run_backup},
    catalogue::resolve,
    process::build_runtime,
    proof::{plan_recovery, read_history},
    prune::{PruneOptions, apply_prune, measure_wal, plan_prune},
    restore::{RestoreProgress, RestoreSettings, restore_backup_with, verify_backup},
    store::{LONG_PATIENCE, ObjectStore},
    wal::{FetchOutcome, fetch, fetch_along},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use args::{BackupArgs, FetchWalArgs, LocationArgs, PruneArgs, RestoreArgs, VerifyArgs};
pub use list::{Listed, list, list_into};

/// What a command by hand ends with.
type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The store surely has no such file: recovery may end here.
const ABSENT: u8 = 1;
/// Not known: recovery must not go on. PostgreSQL takes 126 and more as fatal.
const UNKNOWN: u8 = 255;

/// `pgherd backup` with flags.
///
/// # Errors
/// What failed, for standard error.
pub fn backup(args: &BackupArgs) -> Outcome {
    crate::telemetry::logs::start_on_stderr();
    let mut options = BackupOptions::new(args.connect_options()?, args.location.read()?.cluster);
    (options.levels, options.workers, options.concurrency) = (args.levels()?, args.workers, args.concurrency);
    options.part_bytes = args.part_mebibytes << 20;
    options.object_parts = args.object_parts;
    (options.max_rate, options.fast_checkpoint) = (args.max_rate, !args.spread_checkpoint);
    (options.incremental, options.local) = (args.incremental(), args.local_options());
    let outcome = build_runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        super::backup::cancel_on_signal(&cancel);
        let (sender, _receiver) = watch::channel(BackupProgress::default());
        run_backup(options, sender, cancel).await
    })?;
    let record = &outcome.record;
    let full_reason = match &outcome.kind {
        BackupKind::Full(reason) => reason.as_ref(),
        BackupKind::Incremental { .. } => None,
    };
    print(&json!({
        "id": record.id,
        "parent": record.parent.as_ref().map(|parent| &parent.id),
        "fullReason": full_reason,
        "method": record.method.as_deref().unwrap_or("stream"),
        "systemId": record.system_id,
        "destination": outcome.location.destination(&record.id),
        "startLsn": record.start_lsn,
        "stopLsn": record.stop_lsn,
        "tarBytes": record.tar_bytes,
        "storedBytes": record.stored_bytes,
        "levels": outcome.levels.map(|used| json!({
            "lowest": used.lowest,
            "highest": used.highest,
            "mean": f64::from(used.mean_hundredths) / 100.0,
        })),
        "seconds": outcome.seconds,
        "peakRssBytes": outcome.peak_rss_bytes,
    }))
}

/// `pgherd restore`.
///
/// # Errors
/// What failed, for standard error.
pub fn restore(args: &RestoreArgs) -> Outcome {
    crate::telemetry::logs::start_on_stderr();
    let location = args.location.read()?;
    let places = args.places()?;
    let target = args.recovery_target()?;
    let (outcome, location, history) = build_runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        super::backup::cancel_on_signal(&cancel);
        let store = ObjectStore::connect(&location.cluster.store).await?;
        let (location, record, history) = match &target {
            Some(target) => plan_recovery(&store, &location, target, true, Timestamp::now()).await?,
            None => resolve(&store, &location).await.map(|(location, record)| (location, record, None))?,
        };
        let settings = RestoreSettings { places, combine: args.find_combine(record.server_version / 10_000) };
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        let store = store.with_long_patience(LONG_PATIENCE, &cancel);
        let outcome = restore_backup_with(&store, &location, &args.target, &settings, sender, cancel).await?;
        Ok::<_, Box<dyn Error>>((outcome, location, history))
    })?;
    let timeline = history.map(|history| history.timeline);
    recovery::write_recovery(&args.target, &location, target.as_ref(), timeline)?;
    print(&json!({
        "id": outcome.record.id,
        "files": outcome.files,
        "bytes": outcome.bytes,
        "seconds": outcome.seconds,
        "peakRssBytes": observe_peak_rss(),
    }))
}

/// `pgherd verify`.
///
/// # Errors
/// What failed, for standard error: the first object or file that is damaged or missing.
pub fn verify(args: &VerifyArgs) -> Outcome {
    crate::telemetry::logs::start_on_stderr();
    let location = args.location.read()?;
    if let Some(data) = &args.start {
        return trial::verify_by_start(args, &location, data);
    }
    let outcome = build_runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        super::backup::cancel_on_signal(&cancel);
        let store = ObjectStore::connect(&location.cluster.store).await?;
        let (location, _) = resolve(&store, &location).await?;
        let store = store.with_long_patience(LONG_PATIENCE, &cancel);
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        Ok::<_, Box<dyn Error>>(verify_backup(&store, &location, sender, cancel).await?)
    })?;
    print(&json!({
        "id": outcome.record.id,
        "files": outcome.files,
        "bytes": outcome.bytes,
        "seconds": outcome.seconds,
        "peakRssBytes": observe_peak_rss(),
    }))
}

/// `pgherd prune`.
///
/// # Errors
/// What failed, for standard error.
pub fn prune(args: &PruneArgs) -> Outcome {
    crate::telemetry::logs::start_on_stderr();
    let location = args.location.read()?;
    let keep_for = args.keep_for_hours.map(|hours| SignedDuration::from_hours(i64::from(hours)));
    let options = PruneOptions {
        policy: RetentionPolicy { keep_last: args.keep_last, keep_for },
        pinned: args.pin.iter().cloned().collect(),
        doomed: BTreeSet::new(),
        damaged: BTreeSet::new(),
        now: Timestamp::now(),
    };
    build_runtime()?.block_on(async {
        let store = ObjectStore::connect(&location.cluster.store).await?;
        let newest = BackupLocation { backup_id: String::new(), ..location };
        let (location, _) = resolve(&store, &newest).await?;
        let plan = plan_prune(&store, &location.cluster, &options).await?;
        for verdict in &plan.backups.keep {
            print(&json!({"keep": verdict.id, "why": verdict.why}))?;
        }
        for verdict in &plan.backups.delete {
            print(&json!({"delete": verdict.id, "why": verdict.why}))?;
        }
        let wal = measure_wal(&store, &location.cluster, &plan).await?;
        print(&json!({"deleteWal": wal.files, "bytes": wal.bytes}))?;
        if args.apply {
            let done = apply_prune(&store, &location.cluster, &options, &plan).await?;
            print(&json!({"deleted": done.backups, "spared": done.spared, "deletedWal": done.wal}))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `pgherd fetch-wal`: PostgreSQL's restore_command without an agent. Ends with 1 only when the store surely has no such file.
#[must_use]
pub fn fetch_wal(args: &FetchWalArgs) -> ExitCode {
    let work = || -> Result<FetchOutcome, Box<dyn Error>> {
        let location = args.location.read()?;
        build_runtime()?.block_on(async {
            let store = ObjectStore::connect(&location.cluster.store).await?;
            let Some(timeline) = args.timeline.map(TimelineId) else {
                return Ok(fetch(&store, &location.cluster, &args.name, &args.path).await?);
            };
            let history = read_history(&store, &location.cluster, timeline).await?;
            Ok(fetch_along(&store, &location.cluster, &history, &args.name, &args.path).await?)
        })
    };
    match work() {
        Ok(FetchOutcome::Fetched) => ExitCode::SUCCESS,
        Ok(FetchOutcome::Absent) => ExitCode::from(ABSENT),
        Err(error) => {
            eprintln!("pgherd: {}", crate::telemetry::error_chain(&*error));
            ExitCode::from(UNKNOWN)
        }
    }
}

pub(crate) fn print(value: &serde_json::Value) -> Outcome {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{value}")?;
    Ok(ExitCode::SUCCESS)
}

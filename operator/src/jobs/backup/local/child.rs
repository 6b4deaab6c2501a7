//! `pgherd local-backup`: the process that the agent starts. It reads its order from standard input, writes lines to standard output,
//! and ends early when it is told to or when nobody reads them.

use std::{
    error::Error,
    io::{self, Read, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgherd_core::{compression::LevelBounds, local_backup::LocalBackupOrder};
use pgherd_stream::{
    backup::{BackupOptions, BackupOwner, BackupProgress, run_backup},
    local::{DEFAULT_READERS, LocalOptions},
    process::build_runtime,
    replication::ConnectOptions,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Line, ProgressLine};
use crate::{
    jobs::backup::{CONNECT_TIMEOUT, bad_config, cancel_on_signal, conclude, outcome::BackupOutcome, render_time},
    telemetry::logs,
};

/// An order is one short JSON text.
const MAX_ORDER: u64 = 1 << 20;
/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// In pg_hba.conf `all` does not mean physical replication, but it does mean this database.
const DATABASE: &str = "postgres";

/// Carries the order out; the exit code says whether the backup is in the store.
///
/// # Errors
/// When no order can be read, no runtime can be made, or the end cannot be said.
pub fn run() -> Result<ExitCode, Box<dyn Error>> {
    logs::start_on_stderr();
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_ORDER).read_to_end(&mut text)?;
    let order: LocalBackupOrder = serde_json::from_slice(&text)?;
    let runtime = build_runtime()?;
    let outcome = runtime.block_on(perform(order));
    say(&Line::Outcome(outcome.clone()))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(if matches!(outcome, BackupOutcome::Completed(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn perform(order: LocalBackupOrder) -> BackupOutcome {
    let (started, started_at) = (Instant::now(), render_time(Timestamp::now()));
    let options = match build_options(order) {
        Ok(options) => options,
        Err(error) => return BackupOutcome::Failed(bad_config(&error)),
    };
    let cancel = CancellationToken::new();
    cancel_on_signal(&cancel);
    let (sender, receiver) = watch::channel(BackupProgress::default());
    let backup = run_backup(options, sender, cancel.clone());
    let done = tokio::select! {
        done = backup => done,
        never = keep_saying(receiver, &cancel) => match never {},
    };
    conclude(done, started_at, started)
}

fn build_options(order: LocalBackupOrder) -> Result<BackupOptions, pgherd_core::compression::LevelError> {
    let LocalBackupOrder { request, data, socket_dir, port, user } = order;
    let connect = ConnectOptions {
        server_name: socket_dir.clone(),
        host: socket_dir,
        port,
        user,
        database: Some(DATABASE.to_owned()),
        tls: None,
        password_file: None,
        application_name: "pgherd-backup".to_owned(),
        connect_timeout: CONNECT_TIMEOUT,
    };
    let mut options = BackupOptions::new(connect, request.location);
    options.levels = LevelBounds::of(request.min_level, request.max_level)?;
    options.max_rate = request.max_rate;
    options.owner = Some(BackupOwner { id: request.backup_uid, attempt: request.attempt });
    options.local = Some(LocalOptions { data: data.into(), readers: DEFAULT_READERS });
    Ok(options)
}

/// Says how far it is as long as somebody reads it; then the backup is ended.
async fn keep_saying(
    progress: watch::Receiver<BackupProgress>,
    cancel: &CancellationToken,
) -> std::convert::Infallible {
    let mut ticks = interval(SAY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let line = Line::Progress(ProgressLine::of(&progress.borrow()));
        let said = tokio::task::spawn_blocking(move || say(&line)).await;
        if !matches!(said, Ok(Ok(()))) {
            tracing::warn!("nobody reads how far the backup is: it is cancelled");
            cancel.cancel();
            return std::future::pending().await;
        }
    }
}

fn say(line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}

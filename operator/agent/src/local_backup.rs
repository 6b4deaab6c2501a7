//! A backup of this instance from its own files, for a backup Job that asks for it: a process of its own, of the same program, so
//! that neither its memory nor its end touches the agent. It is told to end when nobody listens any more.
//!
//! Decides nothing about what a backup is: the process does it and says how it goes, and its words are passed on as they are.

use std::{io, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgherd_core::{
    instance::Phase,
    local_backup::{LocalBackupOrder, LocalBackupRequest, validate_place},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdout, Command},
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use crate::{agent::Agent, archive::own_location, postgres::sql::SUPERUSER};

/// Name of the subcommand that does it.
const SUBCOMMAND: &str = "local-backup";
/// What was told to end aborts its uploads first.
const CLEANUP: Duration = Duration::from_secs(60);
/// The order is short, and the process reads it at once.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
const PIECE: usize = 16 << 10;
/// What the process may take of the processors beside PostgreSQL, as `nice` has it. The disk's scheduler goes by it too.
const NICENESS: &str = "10";

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum LocalBackupError {
    /// The instance is not in a state to be backed up, or not the one that is meant.
    #[error("not now: {0}")]
    Refused(&'static str),
    /// One is under way.
    #[error("another backup of this instance is under way")]
    Busy,
    /// The process could not be started or told what to do.
    #[error("failed to start the process of the backup")]
    Start(#[source] io::Error),
}

/// Starts a backup. What is received are the words of its process, in pieces; dropping the receiver ends the backup.
///
/// # Errors
/// [`LocalBackupError`].
pub async fn begin(agent: &Arc<Agent>, request: LocalBackupRequest) -> Result<mpsc::Receiver<Bytes>, LocalBackupError> {
    let order = build_order(agent, request)?;
    let permit = Arc::clone(&agent.local_backups).try_acquire_owned().map_err(|_| LocalBackupError::Busy)?;
    let mut child = spawn(agent).map_err(LocalBackupError::Start)?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or_else(|| LocalBackupError::Start(io::ErrorKind::BrokenPipe.into()))?;
    let told = timeout(ORDER_TIMEOUT, async {
        let mut stdin = stdin.ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&order).await?;
        stdin.shutdown().await
    });
    told.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(LocalBackupError::Start)?;
    let (sender, lines) = mpsc::channel(1);
    drop(tokio::spawn(attend(Arc::clone(agent), child, stdout, sender, permit)));
    Ok(lines)
}

/// Only a running server is read, and only into the place of its own archive.
fn build_order(agent: &Agent, request: LocalBackupRequest) -> Result<Vec<u8>, LocalBackupError> {
    let layout = &agent.layout;
    if agent.shutdown.is_cancelled() {
        return Err(LocalBackupError::Refused("the instance is being shut down"));
    }
    let serves = matches!(agent.board.status().phase, Phase::Primary | Phase::Replica);
    if layout.building_marker().exists() || !serves || agent.role().is_none() {
        return Err(LocalBackupError::Refused("the instance is not up as a primary or a replica"));
    }
    let own = own_location(agent).ok_or(LocalBackupError::Refused("the instance has no object store"))?;
    validate_place(&own, &request.location).map_err(LocalBackupError::Refused)?;
    let order = LocalBackupOrder {
        request: LocalBackupRequest { location: own, ..request },
        data: layout.pgdata.display().to_string(),
        socket_dir: layout.socket_dir.display().to_string(),
        port: layout.postgres_port,
        user: SUPERUSER.to_owned(),
    };
    serde_json::to_vec(&order).map_err(|error| LocalBackupError::Start(error.into()))
}

/// By `nice`, where the image has it.
fn spawn(agent: &Agent) -> io::Result<Child> {
    let program = &agent.layout.executable;
    let mut nice = Command::new("nice");
    nice.args(["-n", NICENESS]).arg(program);
    match pipe(&mut nice).spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => pipe(&mut Command::new(program)).spawn(),
        other => other,
    }
}

fn pipe(command: &mut Command) -> &mut Command {
    command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true)
}

/// Passes on what the process says until it ends or nobody listens, and sees to its end.
async fn attend(
    agent: Arc<Agent>,
    mut child: Child,
    stdout: ChildStdout,
    sender: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
) {
    tokio::select! {
        () = pass_on(stdout, &sender) => {}
        () = sender.closed() => tracing::warn!("nobody waits for the backup any more: it is ended"),
        () = agent.shutdown.cancelled() => tracing::info!("the instance is being shut down: the backup is ended"),
    }
    // One that has said everything ends by itself; for it this comes too late and changes nothing.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match timeout(CLEANUP, child.wait()).await {
        Ok(Ok(status)) => tracing::info!(status = %status, "the process of the backup has ended"),
        Ok(Err(error)) => tracing::warn!(error = %error, "waiting for the process of the backup"),
        Err(_) => {
            tracing::warn!("the process of the backup does not end by itself");
            if let Err(error) = child.kill().await {
                tracing::warn!(error = %error, "killing the process of the backup");
            }
        }
    }
}

async fn pass_on(mut stdout: ChildStdout, sender: &mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE];
    loop {
        match stdout.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => {
                let piece = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, "reading what the process of the backup says");
                return;
            }
        }
    }
}

//! The server process: start, signal, stop. It never stops PostgreSQL in smart mode: sessions that are open would go on
//! committing. Whether it may run is decided elsewhere.

use std::{
    fs, io,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::{
    binaries::Binaries,
    log::{self, LogWatch},
    stray,
};
use crate::layout::Layout;

/// Variables of the environment (of the official image, or of libpq) which the server must not be led by.
const UNWANTED: [&str; 12] = [
    "PGDATA",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGPASSWORD",
    "PGOPTIONS",
    "PGSERVICE",
    "PGSSLMODE",
    "POSTGRES_PASSWORD",
    "POSTGRES_USER",
    "POSTGRES_DB",
];

/// A server that lived for less than this was not able to start.
const QUICK_DEATH: Duration = Duration::from_secs(10);
/// From so many on a server is taken for one that can't start.
const TOO_MANY_DEATHS: u32 = 3;
/// A stop looks this often whether it waits for the archiver alone.
const STOP_POLL: Duration = Duration::from_millis(10);
/// What is left to do once nobody waits for the archiver: old WAL is removed, and the statistics are written.
const LAST_WORK: Duration = Duration::from_secs(1);
/// The longest pause between two starts.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT: sessions are cut, a checkpoint is written, and everything is sent to the standbys that follow.
    Fast,
    /// SIGQUIT, then SIGKILL after a second: as if the machine had lost power.
    Immediate,
}

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Not started, or stopped by [`Server::stop`].
    Stopped,
    /// Alive, whether or not it answers.
    Running,
    /// It ended without being told to.
    Died(ExitStatus),
}

/// Why the server could not be started or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be spawned.
    #[error("failed to start postgres")]
    Spawn(#[source] io::Error),
    /// A stale lock file could not be removed.
    #[error("failed to remove a stale lock file")]
    StaleLock(#[source] io::Error),
    /// It runs already.
    #[error("postgres runs already")]
    AlreadyRunning,
}

struct Inner {
    child: Option<Child>,
    died: Option<ExitStatus>,
    started_at: Option<Instant>,
    /// Since when a server that keeps dying right after its start is not to be started, and how often it did.
    quick_deaths: (u32, Option<Instant>),
}

impl Inner {
    fn died(&mut self, status: ExitStatus) {
        let quick = self.started_at.is_some_and(|at| at.elapsed() < QUICK_DEATH);
        let count = if quick { self.quick_deaths.0.saturating_add(1) } else { 0 };
        (self.child, self.died, self.quick_deaths) = (None, Some(status), (count, Some(Instant::now())));
    }
}

/// The server of one data directory.
pub struct Server {
    layout: Layout,
    inner: Mutex<Inner>,
    generation: AtomicU64,
    log: Arc<LogWatch>,
}

impl Server {
    /// No process yet.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            inner: Mutex::new(Inner { child: None, died: None, started_at: None, quick_deaths: (0, None) }),
            generation: AtomicU64::new(0),
            log: Arc::new(LogWatch::default()),
        }
    }

    /// Counts starts and stops: what was observed under another number is about another process.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Counts a start or a stop of a server that is no child of this process: for the simulation alone.
    pub fn count_foreign_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// What was seen in the log of the server that was started last.
    #[must_use]
    pub fn log(&self) -> &LogWatch {
        &self.log
    }

    /// Starts the server; returns as soon as the process exists.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub async fn start(&self, binaries: &Binaries, options: &[String]) -> Result<(), ProcessError> {
        let mut inner = self.inner.lock().await;
        if inner.child.is_some() {
            return Err(ProcessError::AlreadyRunning);
        }
        self.kill_strays().await;
        // The number in a left-over lock file is from another container and may be anybody's by now. No PostgreSQL works
        // on this directory: the volume's lock keeps other pods away, and the strays are gone.
        // The same goes for the socket's lock: its folder outlives the container.
        let socket_lock = self.layout.socket_dir.join(format!(".s.PGSQL.{}.lock", self.layout.postgres_port));
        for stale in [self.layout.pgdata.join("postmaster.pid"), socket_lock] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ProcessError::StaleLock(error)),
                _ => {}
            }
        }
        let mut command = Command::new(binaries.program("postgres"));
        command.arg("-D").arg(&self.layout.pgdata).args(["-p", &self.layout.postgres_port.to_string()]);
        command.args(options.iter().flat_map(|option| ["-c", option.as_str()]));
        for name in UNWANTED {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        self.log.reset();
        let mut child = command.spawn().map_err(ProcessError::Spawn)?;
        if let Some(stderr) = child.stderr.take() {
            log::follow(stderr, Arc::clone(&self.log));
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
        (inner.child, inner.died, inner.started_at) = (Some(child), None, Some(Instant::now()));
        Ok(())
    }

    /// What the process is doing.
    pub async fn state(&self) -> ProcessState {
        let mut inner = self.inner.lock().await;
        let ended = inner.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            tracing::warn!(status = %status, "PostgreSQL ended by itself");
            self.generation.fetch_add(1, Ordering::SeqCst);
            inner.died(status);
            self.kill_strays().await;
        }
        match (&inner.child, inner.died) {
            (Some(_), _) => ProcessState::Running,
            (None, Some(status)) => ProcessState::Died(status),
            (None, None) => ProcessState::Stopped,
        }
    }

    /// How long a start should still wait, because the server ended right after the last ones: twice as long each time, up
    /// to 15 s. None when it may be started.
    pub async fn restart_pause(&self) -> Option<Duration> {
        let (count, since) = self.inner.lock().await.quick_deaths;
        let pause = Duration::from_millis(500).saturating_mul(2_u32.saturating_pow(count.min(6))).min(MAX_PAUSE);
        let left = pause.checked_sub(since?.elapsed())?;
        (count > 0 && !left.is_zero()).then_some(left)
    }

    /// The server ended right after each of its last starts.
    pub async fn keeps_dying(&self) -> bool {
        self.inner.lock().await.quick_deaths.0 >= TOO_MANY_DEATHS
    }

    /// Forgets that the server died, once that was dealt with.
    pub async fn acknowledge_death(&self) {
        self.inner.lock().await.died = None;
    }

    /// SIGHUP: reads the configuration again.
    pub async fn reload(&self) {
        let inner = self.inner.lock().await;
        send(inner.child.as_ref(), Signal::SIGHUP);
    }

    /// Stops the server; when this returns, no process of it is left. A fast stop that takes longer than `patience`
    /// becomes an immediate one. The archiver is not waited for: everything is on disk and sent by then, and
    /// [`crate::leftovers`] brings to the archive what is not there yet.
    pub async fn stop(&self, mode: StopMode, patience: Duration) {
        let mut inner = self.inner.lock().await;
        let Some(child) = inner.child.as_mut() else {
            self.kill_strays().await;
            return;
        };
        let mut gone = false;
        if mode == StopMode::Fast {
            send(Some(child), Signal::SIGINT);
            gone = tokio::select! {
                _ = child.wait() => true,
                () = sleep(patience) => false,
                () = end_archiver(&self.layout) => {
                    let _ = child.start_kill();
                    let _ = child.wait().await;
                    true
                }
            };
        }
        if !gone {
            send(Some(child), Signal::SIGQUIT);
            if timeout(Duration::from_secs(1), child.wait()).await.is_err() {
                let _ = child.start_kill();
                let _ = child.wait().await;
            }
        }
        self.kill_strays().await;
        self.generation.fetch_add(1, Ordering::SeqCst);
        (inner.child, inner.died) = (None, None);
    }

    /// A crashed postmaster's backends can live on in a long computation; they must not outlive this.
    async fn kill_strays(&self) {
        for _ in 0..100 {
            let strays = stray::processes(&self.layout.pgdata);
            if strays.is_empty() {
                return;
            }
            for pid in strays {
                // Each leads a group, in which is what it runs: the archiver's command.
                let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
                let _ = kill(pid, Signal::SIGKILL);
            }
            sleep(Duration::from_millis(20)).await;
        }
        tracing::error!("processes of PostgreSQL can't be killed: the kernel holds them");
    }
}

/// Ends the archiver once the shutdown checkpoint is written and every standby has it, so that the server ends by itself, with its
/// statistics written: from PostgreSQL 18 on they are written after the archiver has ended. Returns where it does not.
async fn end_archiver(layout: &Layout) {
    while !(is_shut_down(layout) && stray::of_kind(&layout.pgdata, "walsender").is_empty()) {
        sleep(STOP_POLL).await;
    }
    for archiver in stray::of_kind(&layout.pgdata, "archiver") {
        // Its group has the command as well. It begins with no other file, and ends at once where a command died of a signal.
        let _ = kill(Pid::from_raw(-archiver.as_raw()), Signal::SIGTERM);
    }
    sleep(LAST_WORK).await;
}

/// `state` of pg_control, which follows its identifier and two versions, is `DB_SHUTDOWNED`.
fn is_shut_down(layout: &Layout) -> bool {
    let control = fs::read(layout.pgdata.join("global/pg_control")).unwrap_or_default();
    control.get(16..20).is_some_and(|state| state == 1_u32.to_ne_bytes())
}

fn send(child: Option<&Child>, signal: Signal) {
    let pid = child.and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

//! PID 1 of the PostgreSQL container: starts the agent, reaps orphans, passes signals on, and holds the fencing deadline.
//!
//! After a fencing it starts another agent: a network that comes and goes is no fault of this program, and the kubelet, which
//! waits longer before each restart of a container, would keep a replica away for minutes. When an agent dies by itself, the
//! container ends with it.
//!
//! It is small, single-purpose and without an async runtime on purpose: a stopped, deadlocked or killed agent must not be
//! able to keep PostgreSQL running as primary past its deadline. It talks to nobody but the agent.

use std::{
    fs::{self, File},
    io,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::{
    clock::Boottime,
    fencer::{Heartbeat, parse_heartbeat},
    layout::Layout,
    postgres::stray,
};

/// How long PostgreSQL has between SIGQUIT and SIGKILL.
const QUIT_GRACE: Duration = Duration::from_secs(1);
/// The deadline is looked at this often: `recv_timeout` counts CLOCK_MONOTONIC, which a suspend stops.
const TICK: Duration = Duration::from_millis(50);
/// What was killed is gone within this time, unless its disk is dead; then the container ends.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Exit code after a fencing that no other agent follows, for `kubectl describe pod`.
pub const EXIT_FENCED: u8 = 75;
/// Exit code when the agent died.
pub const EXIT_AGENT_DIED: u8 = 76;

/// What the waiting threads report.
enum Incident {
    Signal(Signal),
    Heartbeat(Heartbeat),
}

/// Runs as the container's PID 1 until an agent ends.
#[must_use]
pub fn supervise() -> ExitCode {
    ExitCode::from(supervise_in(&Layout::pod(), &["agent-main"], u32::MAX))
}

/// [`supervise`] with another layout and other arguments for the agent, and for so many agents one after the other, for tests.
/// Returns the exit code.
#[must_use]
pub fn supervise_in(layout: &Layout, agent_args: &[&str], agents: u32) -> u8 {
    run(layout, agent_args, agents).unwrap_or_else(|error| {
        say("error", &format!("failed to start: {error}"));
        1
    })
}

fn run(layout: &Layout, agent_args: &[&str], agents: u32) -> io::Result<u8> {
    let incidents = listen(layout)?;
    let mut left = agents;
    loop {
        left = left.saturating_sub(1);
        let agent = spawn(layout, agent_args)?;
        match watch(layout, agent, &incidents) {
            End::Exit(code) => return Ok(code),
            End::Fenced if left == 0 || !await_gone(layout, agent) => return Ok(EXIT_FENCED),
            // What the last agent still said is about what is gone.
            End::Fenced => {
                if incidents.try_iter().any(|incident| incident.ends()) {
                    return Ok(EXIT_FENCED);
                }
                say("info", "starting another agent");
            }
        }
    }
}

/// Blocks the signals and opens the fencer's socket, before there is an agent: none of them may be missed.
fn listen(layout: &Layout) -> io::Result<Receiver<Incident>> {
    SigSet::all().thread_block()?;
    let path = layout.fencer_socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    let (sender, incidents) = mpsc::channel();
    let for_signals = sender.clone();
    thread::Builder::new().name("signals".into()).spawn(move || forward_signals(&for_signals))?;
    thread::Builder::new().name("heartbeats".into()).spawn(move || forward_heartbeats(&socket, &sender))?;
    Ok(incidents)
}

fn spawn(layout: &Layout, agent_args: &[&str]) -> io::Result<Pid> {
    // The agent's stdin is the volume's lock file. Supervisor and agent share the open file, so that a lock which the
    // agent takes on it lasts until both are gone: a twin of this pod can't start PostgreSQL on the same volume before.
    let lock =
        File::options().create(true).truncate(false).write(true).read(true).open(layout.volume.join("agent.lock"));
    let shared = lock.and_then(|file| HELD.get_or_init(|| file).try_clone());
    let stdin = shared.map_or_else(|_| Stdio::null(), Stdio::from);
    let agent = Command::new("/proc/self/exe").arg0("pgherd").args(agent_args).stdin(stdin).spawn()?;
    Ok(Pid::from_raw(i32::try_from(agent.id()).map_err(io::Error::other)?))
}

fn forward_signals(sender: &Sender<Incident>) {
    let all = SigSet::all();
    while let Ok(signal) = all.wait() {
        if sender.send(Incident::Signal(signal)).is_err() {
            return;
        }
    }
}

fn forward_heartbeats(socket: &UnixDatagram, sender: &Sender<Incident>) {
    let mut buffer = [0_u8; 64];
    while let Ok(length) = socket.recv(&mut buffer) {
        let Some(heartbeat) = buffer.get(..length).and_then(parse_heartbeat) else { continue };
        if sender.send(Incident::Heartbeat(heartbeat)).is_err() {
            return;
        }
    }
}

/// What became of an agent. Nothing of PostgreSQL runs any more.
enum End {
    /// The container ends, with this exit code.
    Exit(u8),
    /// Everything was killed because the deadline had passed.
    Fenced,
}

/// The main loop, for as long as one agent lives.
fn watch(layout: &Layout, agent: Pid, incidents: &Receiver<Incident>) -> End {
    let mut state = State::default();
    loop {
        match incidents.recv_timeout(TICK) {
            Ok(incident) => state.note(&incident, agent),
            Err(RecvTimeoutError::Timeout) => {}
            // Both threads are gone: nothing could ever disarm or be told.
            Err(RecvTimeoutError::Disconnected) => {
                stop_everything(layout, agent);
                return End::Exit(EXIT_FENCED);
            }
        }
        // What queued up during a pause of the whole machine is read before the deadline is judged; a heartbeat that is
        // itself past by then does not help.
        while let Ok(incident) = incidents.try_recv() {
            state.note(&incident, agent);
        }
        if let Some(code) = reap(agent) {
            say("info", &format!("the agent ended with code {code}"));
            stop_everything(layout, agent);
            return End::Exit(if code == 0 { 0 } else { EXIT_AGENT_DIED });
        }
        if state.deadline.is_some_and(|deadline| Boottime::now() >= deadline) {
            say("error", "the Lease was not renewed in time: killing PostgreSQL");
            stop_everything(layout, agent);
            return if state.ends { End::Exit(EXIT_FENCED) } else { End::Fenced };
        }
    }
}

/// What is known of the agent that runs.
#[derive(Default)]
struct State {
    deadline: Option<Boottime>,
    /// The container was told to end.
    ends: bool,
}

impl State {
    fn note(&mut self, incident: &Incident, agent: Pid) {
        match incident {
            Incident::Heartbeat(Heartbeat::Arm(until)) => self.deadline = Some(*until),
            Incident::Heartbeat(Heartbeat::Disarm) => self.deadline = None,
            Incident::Signal(signal) if incident.ends() => {
                say("info", &format!("passing {signal} on to the agent"));
                let _ = kill(agent, Signal::SIGTERM);
                self.ends = true;
            }
            Incident::Signal(_) => {}
        }
    }
}

impl Incident {
    /// The container is told to end.
    fn ends(&self) -> bool {
        matches!(self, Self::Signal(Signal::SIGTERM | Signal::SIGINT))
    }
}

/// Waits until what was killed is gone: nothing of it may be there when the next agent looks around.
fn await_gone(layout: &Layout, agent: Pid) -> bool {
    let end = Boottime::now().plus_millis(u64::try_from(GONE_WITHIN.as_millis()).unwrap_or(5_000));
    loop {
        let _ = reap(agent);
        if stray::processes(&layout.pgdata).is_empty() && kill(agent, None).is_err() {
            return true;
        }
        if Boottime::now() >= end {
            say("error", "what was killed is still there");
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reaps every child that ended; the agent's exit code if it is among them.
fn reap(agent: Pid) -> Option<i32> {
    let mut ended = None;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == agent => ended = Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == agent => ended = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ended,
        }
    }
}

/// SIGQUIT to PostgreSQL (an immediate shutdown), SIGKILL to everything a second later. Never a smart or fast shutdown:
/// sessions that are open would go on committing.
fn stop_everything(layout: &Layout, agent: Pid) {
    if let Some(postmaster) = stray::postmaster(&layout.pgdata) {
        let _ = kill(postmaster, Signal::SIGQUIT);
        let end = Boottime::now().plus_millis(u64::try_from(QUIT_GRACE.as_millis()).unwrap_or(1_000));
        while Boottime::now() < end && !stray::processes(&layout.pgdata).is_empty() {
            thread::sleep(Duration::from_millis(10));
            let _ = reap(agent);
        }
    }
    kill_everything(&layout.pgdata, agent);
    let _ = reap(agent);
}

/// As PID 1 everything else in the container; elsewhere (tests) only what is known to be ours.
fn kill_everything(pgdata: &Path, agent: Pid) {
    if getpid().as_raw() == 1 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        return;
    }
    let _ = kill(agent, Signal::SIGKILL);
    for process in stray::processes(pgdata) {
        let _ = kill(process, Signal::SIGKILL);
    }
}

/// One JSON line, like the agent's logs.
fn say(level: &str, message: &str) {
    let line = serde_json::json!({"timestamp": jiff::Timestamp::now().to_string(), "level": level.to_uppercase(), "target": "pgherd_agent::supervisor", "fields": {"message": message}});
    println!("{line}");
}

/// Keeps the lock file open in this process.
static HELD: std::sync::OnceLock<File> = std::sync::OnceLock::new();

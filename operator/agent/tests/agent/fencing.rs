//! The supervisor kills PostgreSQL at the deadline, whatever became of the agent.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{THIS_PROGRAM, free_port, ran_as_postgres};
use pgherd_agent::{
    clock::Boottime,
    fencer::{Fencer, Heartbeat},
    layout::Layout,
    postgres::{binaries::Binaries, process::Server, stray},
    supervisor::{EXIT_AGENT_DIED, EXIT_FENCED, supervise_in},
};

const ROOT: &str = "PGHERD_TEST_ROOT";
const BEHAVIOUR: &str = "PGHERD_TEST_BEHAVIOUR";

fn layout(root: &Path) -> Layout {
    Layout {
        volume: root.to_owned(),
        pgdata: root.join("pgdata"),
        run: root.to_owned(),
        socket_dir: root.to_owned(),
        postgres_port: std::env::var("PGHERD_TEST_PORT").map_or(0, |port| port.parse().unwrap()),
        ..Layout::pod()
    }
}

/// Not a test of its own: the process that plays the supervisor.
#[test]
fn stage_supervisor() {
    if let Some(root) = std::env::var_os(ROOT) {
        let code = supervise_in(&layout(Path::new(&root)), &["--exact", "fencing::stage_agent", "--nocapture"], 2);
        std::process::exit(i32::from(code));
    }
}

/// Not a test of its own: an agent that starts PostgreSQL, arms the fencer, and then hangs or dies.
#[test]
fn stage_agent() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let layout = layout(Path::new(&root));
    nix::sys::signal::SigSet::all().thread_unblock().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::new(layout.clone());
    runtime.block_on(async {
        server.start(&Binaries::observe().unwrap(), &["listen_addresses=".to_owned()]).await.unwrap();
        while stray::postmaster(&layout.pgdata).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    Fencer::at(&layout.fencer_socket()).send(Heartbeat::Arm(Boottime::now().plus_millis(1_500))).unwrap();
    if std::env::var(BEHAVIOUR).as_deref() == Ok("die") {
        std::process::abort();
    }
    let me = nix::unistd::getpid();
    nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGSTOP).unwrap();
}

fn run(behaviour: &str) -> (i32, Duration) {
    let root = tempfile::Builder::new().prefix("pgherd").tempdir_in("/tmp").unwrap();
    let binaries = Binaries::observe().unwrap();
    let made = Command::new(binaries.program("initdb"))
        .arg("-D")
        .arg(root.path().join("pgdata"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let started = Instant::now();
    let status = Command::new(THIS_PROGRAM)
        .args(["--exact", "fencing::stage_supervisor", "--nocapture"])
        .env(ROOT, root.path())
        .env(BEHAVIOUR, behaviour)
        .env("PGHERD_TEST_PORT", free_port().to_string())
        .status()
        .unwrap();
    let took = started.elapsed();
    assert!(stray::processes(&root.path().join("pgdata")).is_empty(), "PostgreSQL still runs");
    (status.code().unwrap(), took)
}

#[test]
fn a_stopped_agent_does_not_disarm_the_fencer_and_another_one_follows() {
    if ran_as_postgres("fencing::a_stopped_agent_does_not_disarm_the_fencer_and_another_one_follows") {
        return;
    }
    let (code, took) = run("hang");
    assert_eq!(code, i32::from(EXIT_FENCED));
    // Two agents, each of which had 1.5 s.
    assert!(took > Duration::from_millis(2_900) && took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn postgres_does_not_outlive_its_agent() {
    if ran_as_postgres("fencing::postgres_does_not_outlive_its_agent") {
        return;
    }
    let (code, _) = run("die");
    assert_eq!(code, i32::from(EXIT_AGENT_DIED));
}

//! The streams in a process of their own, as a Job runs them: it can be killed, and its memory is its own.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation},
    compression::LevelBounds,
};
use pgherd_stream::{
    backup::{BackupOptions, BackupOwner, BackupProgress, observe_peak_rss, run_backup},
    local::LocalOptions,
    replication::ConnectOptions,
    restore::{RestoreProgress, restore_backup, verify_backup},
    store::ObjectStore,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{mutations::mutate_all, postgres::Postgres};

const VARIABLE: &str = "PGHERD_TEST_ERRAND";
const MARK: &str = "FINDINGS ";

/// What the other process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Errand {
    Backup {
        sockets: String,
        port: u16,
        location: ClusterLocation,
        owner: Option<BackupOwner>,
        slow: bool,
        level: Option<i32>,
        /// The data directory, where its files are to be read, and how many at a time.
        #[serde(default)]
        local: Option<(PathBuf, usize)>,
    },
    Restore {
        location: BackupLocation,
        target: PathBuf,
    },
    Verify {
        location: BackupLocation,
    },
    Mutate {
        captures: PathBuf,
        cases: u32,
    },
}

impl Errand {
    pub(crate) fn backup(server: &Postgres, location: ClusterLocation) -> Self {
        let sockets = server.sockets.to_str().unwrap().to_owned();
        Self::Backup { sockets, port: server.port, location, owner: None, slow: false, level: None, local: None }
    }
}

/// What it says when it is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    pub(crate) error: Option<String>,
    pub(crate) id: String,
    pub(crate) system_id: String,
    pub(crate) tar_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) cpu_seconds: f64,
}

/// A process on its way; killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(errand: &Errand) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["process::run_an_errand", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, serde_json::to_string(errand).unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// SIGKILL, and gone.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn finish(mut self) -> Findings {
        let stdout = self.0.stdout.take().unwrap();
        let text = tokio::task::spawn_blocking(move || std::io::read_to_string(stdout)).await.unwrap().unwrap();
        self.0.wait().unwrap();
        let line = text.lines().find_map(|line| line.split_once(MARK)).unwrap_or_else(|| panic!("no findings: {text}"));
        serde_json::from_str(line.1).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "what other tests start in a process of its own"]
fn run_an_errand() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let errand: Errand = serde_json::from_str(&text).unwrap();
    let runtime = pgherd_stream::process::build_runtime().unwrap();
    let mut findings = runtime.block_on(perform(errand));
    findings.peak_rss_bytes = observe_peak_rss().unwrap();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    findings.cpu_seconds = seconds(usage.user_time()) + seconds(usage.system_time());
    println!("{MARK}{}", serde_json::to_string(&findings).unwrap());
}

async fn perform(errand: Errand) -> Findings {
    let mut findings = Findings {
        error: None,
        id: String::new(),
        system_id: String::new(),
        tar_bytes: 0,
        stored_bytes: 0,
        seconds: 0.0,
        peak_rss_bytes: 0,
        cpu_seconds: 0.0,
    };
    let record = match errand {
        Errand::Mutate { captures, cases } => {
            mutate_all(&captures, cases);
            return findings;
        }
        Errand::Backup { sockets, port, location, owner, slow, level, local } => {
            let mut options = BackupOptions::new(connect(sockets, port), location);
            options.owner = owner;
            options.local = local.map(|(data, readers)| LocalOptions { data, readers });
            if slow {
                (options.max_rate, options.part_bytes, options.levels) = (Some(12 << 10), 5 << 20, fixed(-7));
            }
            options.levels = level.map_or(options.levels, fixed);
            let (sender, _receiver) = watch::channel(BackupProgress::default());
            let outcome = run_backup(options, sender, CancellationToken::new()).await;
            outcome.map(|outcome| (outcome.record, outcome.seconds)).map_err(|error| format!("{error:?}"))
        }
        Errand::Restore { location, target } => {
            let store = ObjectStore::connect(&location.cluster.store).await.unwrap();
            let (sender, _receiver) = watch::channel(RestoreProgress::default());
            let outcome = restore_backup(&store, &location, &target, sender, CancellationToken::new()).await;
            outcome.map(|outcome| (outcome.record, outcome.seconds)).map_err(|error| format!("{error:?}"))
        }
        Errand::Verify { location } => {
            let store = ObjectStore::connect(&location.cluster.store).await.unwrap();
            let (sender, _receiver) = watch::channel(RestoreProgress::default());
            let outcome = verify_backup(&store, &location, sender, CancellationToken::new()).await;
            outcome.map(|outcome| (outcome.record, outcome.seconds)).map_err(|error| format!("{error:?}"))
        }
    };
    match record {
        Ok((record, seconds)) => {
            findings.tar_bytes = record.tar_bytes;
            findings.stored_bytes = record.stored_bytes;
            (findings.id, findings.system_id, findings.seconds) = (record.id, record.system_id, seconds);
        }
        Err(error) => findings.error = Some(error),
    }
    findings
}

/// The same level for every frame.
pub(crate) fn fixed(level: i32) -> LevelBounds {
    LevelBounds::new(level, level).unwrap()
}

pub(crate) fn connect(host: String, port: u16) -> ConnectOptions {
    ConnectOptions {
        host,
        port,
        server_name: "localhost".to_owned(),
        user: "postgres".to_owned(),
        database: None,
        tls: None,
        password_file: None,
        application_name: "pgherd-test".to_owned(),
        connect_timeout: std::time::Duration::from_secs(10),
    }
}

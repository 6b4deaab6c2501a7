//! Verification by restore and the Job of retention, against a real PostgreSQL and a real MinIO: a good backup passes, and
//! whatever is wrong with one is found and named.
//!
//! The programs are found as in `operator/stream`; as root the tests run again as the user `postgres`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub, reason = "tests")]

mod list;
#[path = "../../stream/tests/streams/postgres.rs"]
mod postgres;
mod prune;
mod restore;
#[path = "../../stream/tests/streams/server.rs"]
mod server;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    sync::Mutex,
};

use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_stream::{
    backup::{BackupOptions, BackupProgress, run_backup},
    store::ObjectStore,
    wal::push,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::postgres::Postgres;

/// Waits until `check` is true; fails the test after a minute.
async fn wait_until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !check().await {
        assert!(std::time::Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

static FORKING: Mutex<()> = Mutex::new(());

/// PostgreSQL refuses to run as root: runs this test again as the user `postgres`. True when there is nothing left to do.
fn is_done(test: &str) -> bool {
    if std::env::var("PGHERD_TEST_WITHOUT_POSTGRES").is_ok_and(|value| value == "1") {
        eprintln!("not run: PGHERD_TEST_WITHOUT_POSTGRES=1");
        return true;
    }
    if !nix::unistd::getuid().is_root() {
        return false;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let fields: Vec<&str> =
        passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres").split(':').collect();
    let (uid, gid): (u32, u32) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A child that another thread forks meanwhile would hold the copy open for writing, and nobody can run it then.
    let forking = FORKING.lock().unwrap();
    let store = server::Brand::of_this_run();
    let copies = [(store.program(), "store"), (std::env::current_exe().unwrap(), "test")];
    for (program, name) in copies {
        fs::copy(program, shared.path().join(name)).unwrap();
        fs::set_permissions(shared.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut child = Command::new(shared.path().join("test"))
        .args(["--exact", test, "--nocapture"])
        .current_dir("/")
        .env("TMPDIR", "/tmp")
        .env("HOME", "/tmp")
        .env(store.variable(), shared.path().join("store"))
        .uid(uid)
        .gid(gid)
        .spawn()
        .unwrap();
    drop(forking);
    let status = child.wait().unwrap();
    assert!(status.success(), "{test} failed as the user postgres");
    true
}

/// Takes a backup, and archives the WAL up to its end and a little more, as the agent does. Returns the backup and the
/// names of the archived segments.
async fn take(server: &Postgres, store: &ObjectStore, location: ClusterLocation) -> (BackupLocation, Vec<String>) {
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let options = BackupOptions::new(server.connect(), location);
    let outcome = run_backup(options, sender, CancellationToken::new()).await.unwrap();
    let archived = archive(server, store, &outcome.location).await;
    (BackupLocation { cluster: outcome.location, backup_id: outcome.record.id }, archived)
}

/// Ends the present segment and archives what there is.
async fn archive(server: &Postgres, store: &ObjectStore, location: &ClusterLocation) -> Vec<String> {
    server.sql("SELECT pg_logical_emit_message(false, 'x', 'y')");
    let last = server.sql("SELECT pg_walfile_name(pg_switch_wal())");
    push_upto(server, store, location, &last).await
}

async fn push_upto(server: &Postgres, store: &ObjectStore, location: &ClusterLocation, last: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(server.data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24 && **name <= *last)
        .collect();
    names.sort();
    for name in &names {
        push(store, location, &server.data.join("pg_wal").join(name), name).await.unwrap();
    }
    names
}

//! A backup from local files that cannot be whole leaves nothing: corrupt pages, a session that is lost, a promotion, a cancel.

use std::{fs, os::unix::fs::FileExt, time::Duration};

use pgherd_stream::{
    backup::{BackupError, BackupOutcome, BackupProgress, run_backup},
    local::LocalError,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    local::{back_up_with, local_options, make_standby},
    postgres::{Postgres, workspace},
    server::Server,
};

type Running = JoinHandle<Result<BackupOutcome, BackupError>>;

/// A slow backup that has stored something.
async fn begin(server: &Postgres, minio: &Server) -> (Running, CancellationToken) {
    let (sender, mut progress) = watch::channel(BackupProgress::default());
    let mut options = local_options(server, minio.location());
    (options.max_rate, options.levels) = (Some(12 << 10), crate::process::fixed(-7));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(run_backup(options, sender, cancel.clone()));
    progress.wait_for(|progress| progress.stored_bytes > 0).await.unwrap();
    (task, cancel)
}

async fn end(running: Running) -> BackupError {
    let result = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it ends soon");
    result.unwrap().unwrap_err()
}

async fn assert_nothing_left(server: &Postgres, minio: &Server) {
    assert_eq!(minio.store().await.list("").await.unwrap(), []);
    assert_eq!(minio.open_uploads(), 0);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots), \
                (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgherd-test')";
    crate::wait_until("slot and session are gone", async || server.sql(left) == "0|0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_pages_are_named_by_file_and_block() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id");
    let path = server.sql("SELECT pg_relation_filepath('t')");
    server.stop("fast");
    let file = fs::OpenOptions::new().write(true).open(server.data.join(&path)).unwrap();
    file.write_all_at(b"corrupt", 70 * 8192 + 4000).unwrap();
    server.start("");
    let error = back_up_with(local_options(&server, minio.location())).await.unwrap_err();
    assert!(
        matches!(&error, BackupError::Local(LocalError::CorruptPage { path: found, block: 70 }) if *found == path),
        "{error:?}"
    );
    assert_nothing_left(&server, &minio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_or_server_and_a_cancel_end_the_backup() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    server.fill_with_noise(30_000);

    let (running, _cancel) = begin(&server, &minio).await;
    let killed = server.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE application_name = 'pgherd-test' AND backend_type = 'client backend'",
    );
    assert_eq!(killed, "1");
    let error = end(running).await;
    assert!(
        matches!(&error, BackupError::Local(LocalError::Session(error)) if error.code() == Some("57P01")),
        "{error:?}"
    );
    assert_nothing_left(&server, &minio).await;

    let (running, cancel) = begin(&server, &minio).await;
    cancel.cancel();
    assert!(matches!(end(running).await, BackupError::Cancelled));
    assert_nothing_left(&server, &minio).await;

    let (running, _cancel) = begin(&server, &minio).await;
    server.stop("immediate");
    let error = end(running).await;
    assert!(matches!(&error, BackupError::Local(LocalError::Session(_)) | BackupError::SlotLost(_)), "{error:?}");
    server.start("");
    assert_nothing_left(&server, &minio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_meanwhile_makes_no_local_backup() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    let standby = make_standby(&server, dir.path()).await;
    let (running, _cancel) = begin(&standby, &minio).await;
    standby.sql("SELECT pg_promote()");
    let error = end(running).await;
    assert!(
        matches!(&error, BackupError::Local(LocalError::Session(error)) if error.code() == Some("55000")),
        "{error:?}"
    );
    assert_nothing_left(&standby, &minio).await;
}

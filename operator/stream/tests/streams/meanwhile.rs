//! What happens while a backup is made: its source writes more WAL than it keeps, or is promoted, or the credentials are rotated.

use std::{fs, time::Duration};

use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupOutcome, BackupProgress, run_backup},
    clone::clone_from_instance,
    restore::{RestoreProgress, restore_backup, verify_backup},
    store::{ObjectStore, StoreError},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    local::{back_up_with, local_options, make_standby},
    postgres::{Postgres, verify, workspace},
    server::{Server, write_credentials},
};

/// A slow backup that has stored something.
async fn begin(server: &Postgres, location: ClusterLocation) -> JoinHandle<Result<BackupOutcome, BackupError>> {
    let (sender, mut progress) = watch::channel(BackupProgress::default());
    let mut options = BackupOptions::new(server.connect(), location);
    (options.max_rate, options.part_bytes, options.levels) = (Some(12 << 10), 5 << 20, crate::process::fixed(-7));
    let task = tokio::spawn(run_backup(options, sender, CancellationToken::new()));
    progress.wait_for(|progress| progress.stored_bytes > 0).await.unwrap();
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_a_backup_needs_stays_until_it_has_it() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    for setting in ["max_wal_size = '2MB'", "min_wal_size = '2MB'"] {
        server.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    server.sql("SELECT pg_reload_conf()");
    let first = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let is_there = || server.sql(&format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = '{first}'")) == "1";
    let running = begin(&server, minio.location()).await;
    // What the server keeps by itself is gone after the second round, by the checkpoint.
    server.sql("CREATE TABLE meanwhile (n int)");
    let mut outlasted = 0;
    while !running.is_finished() {
        server.sql("INSERT INTO meanwhile VALUES (1)");
        server.sql("SELECT pg_switch_wal()");
        server.sql("CHECKPOINT");
        outlasted += u32::from(is_there());
    }
    assert!(outlasted > 2, "it was there after {outlasted} checkpoints");
    let outcome = running.await.unwrap().unwrap();
    crate::wait_until("it is not kept for longer", async || {
        server.sql("CHECKPOINT");
        !is_there()
    })
    .await;
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let target = dir.path().join("restored");
    restore_backup(&minio.store().await, &location, &target, sender, CancellationToken::new()).await.unwrap();
    verify(&target);
    // The backup is as of its stop, which came somewhere in between.
    assert_ne!(Postgres::on(dir.path(), "restored").sql("SELECT count(*) FROM meanwhile"), "0");
}

/// `pg_backup_stop` waits for it unless it is told not to, a standby's on an idle primary for ever (barman#448).
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_ends_although_the_archive_takes_nothing() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let mut standby = make_standby(&server, dir.path()).await;
    for server in [&mut server, &mut standby] {
        server.stop("fast");
        server.start("-c archive_mode=always -c archive_command=/bin/false");
    }
    server.sql("CREATE TABLE t AS SELECT 1 AS n");
    server.sql("SELECT pg_switch_wal()");
    crate::wait_until("the archiver fails", async || server.sql("SELECT failed_count FROM pg_stat_archiver") != "0")
        .await;
    for (name, source) in [("of-primary", &server), ("of-standby", &standby)] {
        // A standby's two begin at the same restart point, perhaps within a second: their id would be the same.
        let location = |how: &str| ClusterLocation { cluster: format!("{how}-{name}"), ..minio.location() };
        let streamed = BackupOptions::new(source.connect(), location("streamed"));
        for options in [streamed, local_options(source, location("local"))] {
            let ended = tokio::time::timeout(Duration::from_secs(60), back_up_with(options)).await;
            ended.expect("it waits for the archiver").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_idle_sessions_leaves_the_slot_of_a_backup() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    server.sql("ALTER SYSTEM SET idle_session_timeout = '200ms'");
    server.sql("SELECT pg_reload_conf()");
    let outcome = begin(&server, minio.location()).await.await.unwrap().unwrap();
    assert!(outcome.seconds > 1.0, "it was idle for longer than that: {} s", outcome.seconds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_slot_is_lost_ends_at_once_and_says_so() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    let running = begin(&server, minio.location()).await;
    server.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(&error, BackupError::SlotLost(reason) if reason.code() == Some("57P01")), "{error:?}");
    assert_eq!(minio.store().await.list("").await.unwrap(), [], "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_meanwhile_makes_no_backup() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    let target = dir.path().join("standby");
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    clone_from_instance(server.connect(), &target, sender, CancellationToken::new()).await.unwrap();
    fs::write(target.join("standby.signal"), "").unwrap();
    let conninfo = format!("host={} port={} user=postgres", server.sockets.display(), server.port);
    fs::write(target.join("postgresql.auto.conf"), format!("primary_conninfo = '{conninfo}'\n")).unwrap();
    let standby = Postgres::on(dir.path(), "standby");
    let running = begin(&standby, minio.location()).await;
    standby.sql("SELECT pg_promote()");
    assert!(!running.is_finished());
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, BackupError::BaseBackup(_) | BackupError::TimelineChanged { .. }), "{error:?}");
    assert_eq!(minio.store().await.list("").await.unwrap(), [], "nothing is left of it");
    assert_eq!(minio.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_with_credentials_that_were_rotated_meanwhile() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill_with_noise(20_000);
    for user in ["old-key", "new-key"] {
        minio.add_user(user, "a-secret-of-the-test");
    }
    let mut location = minio.location();
    let folder = dir.path().join("rotating");
    location.store.credentials_dir = write_credentials(&folder, "old-key", "a-secret-of-the-test");
    let running = begin(&server, location).await;
    write_credentials(&folder, "new-key", "a-secret-of-the-test");
    minio.remove_user("old-key");
    assert!(!running.is_finished());
    let outcome = running.await.unwrap().unwrap();
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    verify_backup(&minio.store().await, &location, sender, CancellationToken::new()).await.unwrap();
    write_credentials(&folder, "old-key", "a-secret-of-the-test");
    let old = ObjectStore::connect(&location.cluster.store).await.unwrap();
    assert!(matches!(old.probe().await, Err(StoreError::WrongCredentials { .. })), "the old ones are of no use");
}

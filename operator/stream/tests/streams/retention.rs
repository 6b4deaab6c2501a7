//! Retention in the store: what goes becomes invisible first, and what somebody needs stays.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation},
    retention::RetentionPolicy,
};
use pgherd_stream::{
    backup::{BackupOptions, BackupProgress, run_backup},
    catalogue::list_backups,
    prune::{PruneOptions, apply_prune, measure_wal, plan_prune},
    restore::{RestoreError, RestoreProgress, restore_backup, verify_backup},
    store::ObjectStore,
    wal::push,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, workspace},
    server::{Brand, Server},
};

on_each_server!(what_is_beyond_the_retention_goes_and_what_is_in_use_stays);

fn keep_last(count: u32) -> PruneOptions {
    let policy = RetentionPolicy { keep_last: Some(count), keep_for: None };
    let none = BTreeSet::new;
    PruneOptions { policy, pinned: none(), doomed: none(), damaged: none(), now: Timestamp::now() }
}

async fn ids(store: &ObjectStore, location: &ClusterLocation) -> Vec<String> {
    list_backups(store, location).await.unwrap().into_iter().map(|record| record.id).collect()
}

/// Archives the segments that are complete now, and begins the next one.
async fn archive(server: &Postgres, store: &ObjectStore, location: &ClusterLocation) -> String {
    server.sql("SELECT pg_logical_emit_message(false, 'x', 'y')");
    let name = server.sql("SELECT pg_walfile_name(pg_switch_wal() - 1)");
    push(store, location, &server.data.join("pg_wal").join(&name), &name).await.unwrap();
    name
}

async fn take(server: &Postgres, store: &ObjectStore, location: &mut ClusterLocation) -> (String, String) {
    let (outcome, _) = back_up(server, location.clone()).await;
    *location = outcome.location;
    let wal = archive(server, store, location).await;
    // An id has seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    (outcome.record.id, wal)
}

async fn what_is_beyond_the_retention_goes_and_what_is_in_use_stays(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    server.fill_with_noise(20_000);
    let store = minio.store().await;
    let mut location = minio.location();
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(take(&server, &store, &mut location).await);
    }
    let [(first, first_wal), (second, second_wal), (third, third_wal)] = taken.try_into().unwrap();

    let nothing = plan_prune(&store, &location, &keep_last(3)).await.unwrap();
    assert_eq!(nothing.backups.delete, []);
    let plan = plan_prune(&store, &location, &keep_last(1)).await.unwrap();
    let doomed: Vec<_> = plan.backups.delete.iter().map(|verdict| verdict.id.clone()).collect();
    assert_eq!(doomed, [first.clone(), second.clone()]);
    let wal = measure_wal(&store, &location, &plan).await.unwrap();
    assert!(wal.files == 2 && wal.bytes > 0, "{wal:?}");
    assert_eq!(ids(&store, &location).await.len(), 3, "a plan deletes nothing");

    // A running backup needs its WAL; the one that is being read stays with its own.
    let (sender, mut progress) = watch::channel(BackupProgress::default());
    let mut options = BackupOptions::new(server.connect(), location.clone());
    (options.max_rate, options.levels) = (Some(12 << 10), crate::process::fixed(-7));
    let running = tokio::spawn(run_backup(options, sender, CancellationToken::new()));
    progress.wait_for(|progress| progress.stored_bytes > 0).await.unwrap();
    let lock = format!("{}/locks/{second}.reader.json", location.root());
    store.put(&lock, bytes::Bytes::from_static(b"{}")).await.unwrap();
    let done = apply_prune(&store, &location, &keep_last(1), &plan).await.unwrap();
    assert_eq!((done.backups, done.spared), (vec![first.clone()], vec![second.clone()]));
    assert_eq!(ids(&store, &location).await, [second.clone(), third.clone()]);
    assert_eq!(store.list(&location.backup_prefix(&first)).await.unwrap(), []);
    assert!(store.head(&location.wal_key(&second_wal)).await.unwrap().is_some(), "its reader needs it");
    assert!(store.head(&location.wal_key(&first_wal)).await.unwrap().is_none());

    store.delete(&lock).await.unwrap();
    let plan = plan_prune(&store, &location, &keep_last(1)).await.unwrap();
    let done = apply_prune(&store, &location, &keep_last(1), &plan).await.unwrap();
    assert_eq!(done.backups, [second]);
    let newest = running.await.unwrap().unwrap().record.id;
    assert_eq!(ids(&store, &location).await, [third.clone(), newest.clone()]);
    for id in [&third, &newest] {
        let location = BackupLocation { cluster: location.clone(), backup_id: id.clone() };
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        verify_backup(&store, &location, sender, CancellationToken::new()).await.unwrap();
    }
    assert!(store.head(&location.wal_key(&third_wal)).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_backup_goes_says_so_and_leaves_no_database() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let store = minio.store().await;
    let mut location = minio.location();
    let (first, _) = take(&server, &store, &mut location).await;
    take(&server, &store, &mut location).await;
    let backup = BackupLocation { cluster: location.clone(), backup_id: first.clone() };
    let restore = async |name: &str| {
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        let target = dir.path().join(name);
        let result = restore_backup(&store, &backup, &target, sender, CancellationToken::new()).await;
        assert!(!target.join("global/pg_control").exists());
        result.unwrap_err()
    };
    // Somebody else marks it while nobody reads.
    let marker = format!("{}inprogress.json", location.backup_prefix(&first));
    let text = format!(
        r#"{{"id":"{first}","startedAt":"{}","archives":["base"],"run":"r","deleting":true}}"#,
        Timestamp::now()
    );
    store.put(&marker, bytes::Bytes::from(text)).await.unwrap();
    assert!(matches!(restore("marked").await, RestoreError::BeingDeleted(id) if id == first));
    // It goes on where another stopped.
    let plan = plan_prune(&store, &location, &keep_last(1)).await.unwrap();
    apply_prune(&store, &location, &keep_last(1), &plan).await.unwrap();
    assert_eq!(store.list(&location.backup_prefix(&first)).await.unwrap(), []);
    assert!(matches!(restore("gone").await, RestoreError::Deleted(id) if id == first));
    assert_eq!(store.list(&format!("{}/locks/", location.root())).await.unwrap(), [], "no lock is left");
    // The last one never goes.
    let plan = plan_prune(&store, &location, &keep_last(0)).await.unwrap();
    assert_eq!(plan.backups.delete, []);
}

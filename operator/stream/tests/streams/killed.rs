//! A backup whose process is killed or stopped: the next attempt removes what it left, at once, and nothing else.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use pgherd_core::backup::ClusterLocation;
use pgherd_stream::{
    backup::{BackupOptions, BackupOwner, BackupProgress, run_backup},
    catalogue::list_backups,
    replication::ReplicationClient,
    store::ObjectStore,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    encryption::{Pair, with_keys},
    failures::assert_no_upload,
    postgres::{Postgres, workspace},
    process::{Errand, Process},
    server::{Brand, Server},
};

on_each_server!(
    the_next_attempt_removes_what_a_killed_one_left_and_spares_the_running_and_the_complete,
    a_process_that_was_taken_for_dead_cannot_complete_its_backup,
);

/// A slow backup in a process of its own, with open uploads of its first object and of its record.
async fn start_slow(
    server: &Postgres,
    store: &ObjectStore,
    location: &ClusterLocation,
    owner: &str,
    attempt: u32,
) -> (Process, String) {
    let base = format!("{}/base/", location.root());
    let before = store.list_dirs(&base).await.unwrap();
    let Errand::Backup { sockets, port, .. } = Errand::backup(server, location.clone()) else { panic!() };
    let owner = Some(BackupOwner { id: owner.to_owned(), attempt });
    let process = Process::start(&Errand::Backup {
        sockets,
        port,
        location: location.clone(),
        owner,
        slow: true,
        level: None,
        local: None,
    });
    let mut first_object = String::new();
    crate::wait_until("an upload is open", async || {
        let ids = store.list_dirs(&base).await.unwrap();
        let Some(id) = ids.iter().find(|id| !before.contains(id)) else { return false };
        let suffix = if location.store.encryption.is_some() { ".age" } else { "" };
        first_object = format!("{base}{id}/base.tar.zst.0000{suffix}");
        store.list_uploads(&first_object).await.unwrap().len() == 1
    })
    .await;
    let record = format!("{}/backup.json", first_object.rsplit_once('/').unwrap().0);
    assert_eq!(store.list_uploads(&record).await.unwrap().len(), 1, "its record is an upload from the start");
    (process, first_object)
}

async fn run_attempt(server: &Postgres, location: &ClusterLocation, owner: &str, attempt: u32) -> String {
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let mut options = BackupOptions::new(server.connect(), location.clone());
    options.owner = Some(BackupOwner { id: owner.to_owned(), attempt });
    run_backup(options, sender, CancellationToken::new()).await.unwrap().record.id
}

async fn the_next_attempt_removes_what_a_killed_one_left_and_spares_the_running_and_the_complete(brand: Brand) {
    kill_one_of_two(brand, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_removes_what_a_killed_encrypted_one_left() {
    if !crate::without_real_parts() {
        kill_one_of_two(Brand::Minio, true).await;
    }
}

async fn kill_one_of_two(brand: Brand, encrypted: bool) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    server.fill_with_noise(25_000);
    let store = minio.store().await;
    let mut location = minio.location();
    location.system_id =
        ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap().system_id;
    if encrypted {
        location = with_keys(&location, &[&Pair::make(dir.path(), "identity")], None);
    }
    let complete = back_up(&server, location.clone()).await.0.record.id;

    let (other, others_object) = start_slow(&server, &store, &location, "another Backup", 1).await;
    let (killed, killed_object) = start_slow(&server, &store, &location, "the Backup", 1).await;
    killed.kill();
    assert_eq!(store.list_uploads(&killed_object).await.unwrap().len(), 1, "a killed process leaves its upload");
    let next = run_attempt(&server, &location, "the Backup", 2).await;

    assert_no_upload(&store, &killed_object).await;
    assert_eq!(store.list(killed_object.rsplit_once('/').unwrap().0).await.unwrap(), []);
    assert_eq!(store.list_uploads(&others_object).await.unwrap().len(), 1, "another Backup's is alive");
    let found = other.finish().await;
    assert_eq!(found.error, None, "it runs to its end");
    let records = list_backups(&store, &location).await.unwrap().into_iter();
    let ids: BTreeSet<String> = records.map(|record| record.id).collect();
    let expected = BTreeSet::from([complete, next, found.id]);
    assert_eq!(ids, expected);
}

async fn a_process_that_was_taken_for_dead_cannot_complete_its_backup(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    server.fill_with_noise(25_000);
    let store = minio.store().await;
    let mut location = minio.location();
    location.system_id =
        ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap().system_id;
    let (frozen, frozen_object) = start_slow(&server, &store, &location, "the Backup", 1).await;
    frozen.signal(Signal::SIGSTOP);
    let next = run_attempt(&server, &location, "the Backup", 2).await;
    assert_no_upload(&store, &frozen_object).await;
    frozen.signal(Signal::SIGCONT);
    let found = frozen.finish().await;
    assert!(found.error.is_some(), "{found:?}");
    assert_no_upload(&store, &frozen_object).await;
    assert_eq!(store.list(frozen_object.rsplit_once('/').unwrap().0).await.unwrap(), []);
    let ids: Vec<String> = list_backups(&store, &location).await.unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(ids, [next]);
}

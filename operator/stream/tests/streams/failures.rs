//! A backup that fails, is cancelled or is killed leaves nothing visible, no object and no open upload; a damaged object
//! is never restored.

use std::{fs, os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupOutcome, BackupProgress, SweepScope, run_backup, sweep_abandoned},
    base_backup::BaseBackupError,
    catalogue::list_backups,
    replication::ReplicationClient,
    restore::{INCOMPLETE_MARKER, RestoreError, RestoreProgress, restore_backup},
    store::{ObjectStore, StoreError},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, workspace},
    server::{Brand, Server, write_credentials},
};

on_each_server!(a_broken_off_backup_leaves_nothing);

struct Running {
    task: JoinHandle<Result<BackupOutcome, BackupError>>,
    cancel: CancellationToken,
    location: ClusterLocation,
    first_object: String,
}

/// A slow backup that has sent at least one part of its first object.
async fn start_slow_backup(server: &Postgres, minio: &Server, store: &ObjectStore) -> Running {
    let (sender, mut receiver) = watch::channel(BackupProgress::default());
    let mut location = minio.location();
    location.system_id =
        ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap().system_id;
    let mut options = BackupOptions::new(server.connect(), location.clone());
    (options.max_rate, options.part_bytes, options.levels) = (Some(12 << 10), 5 << 20, crate::process::fixed(-7));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(run_backup(options, sender, cancel.clone()));
    let id = receiver.wait_for(|p| p.stored_bytes > 0).await.unwrap().backup_id.clone().unwrap();
    let first_object = format!("{}base.tar.zst.0000", location.backup_prefix(&id));
    assert_eq!(store.list_uploads(&first_object).await.unwrap().len(), 1, "an upload is open while it runs");
    Running { task, cancel, location, first_object }
}

async fn assert_nothing_left(store: &ObjectStore, running: &Running) {
    assert_eq!(store.list(&running.location.root()).await.unwrap(), []);
    assert_no_upload(store, &running.first_object).await;
}

/// Neither of the archive nor of the record is an upload open.
pub(crate) async fn assert_no_upload(store: &ObjectStore, first_object: &str) {
    let record = first_object.replace("base.tar.zst.0000", "backup.json");
    for key in [first_object, &record] {
        assert_eq!(store.list_uploads(key).await.unwrap(), [] as [String; 0], "{key}");
    }
}

async fn a_broken_off_backup_leaves_nothing(brand: Brand) {
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start(brand, dir.path()).await);
    server.fill_with_noise(30_000);
    let store = minio.store().await;

    let mut running = start_slow_backup(&server, &minio, &store).await;
    running.cancel.cancel();
    let result = tokio::time::timeout(Duration::from_secs(20), &mut running.task).await.expect("a cancel is prompt");
    assert!(matches!(result.unwrap(), Err(BackupError::Cancelled)));
    assert_nothing_left(&store, &running).await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    crate::wait_until("the temporary slot is gone", async || server.sql(slots) == "0").await;

    let mut running = start_slow_backup(&server, &minio, &store).await;
    server.stop("immediate");
    let result = (&mut running.task).await.unwrap();
    assert!(matches!(result, Err(BackupError::BaseBackup(_) | BackupError::SlotLost(_))), "{result:?}");
    assert_nothing_left(&store, &running).await;
    server.start("");

    // Killed, it can clean up nothing: that is for a later one to do.
    let mut running = start_slow_backup(&server, &minio, &store).await;
    running.task.abort();
    assert!((&mut running.task).await.unwrap_err().is_cancelled());
    assert!(list_backups(&store, &running.location).await.unwrap().is_empty(), "never visible");
    let sweep = async |age| {
        let silent_age = Duration::from_secs(age);
        let scope = SweepScope { own_id: "", owner: None, silent_age };
        sweep_abandoned(&store, &running.location, &scope).await.unwrap()
    };
    assert!(sweep(3600).await.is_empty(), "it may be running");
    assert_eq!(sweep(0).await.len(), 1);
    assert_nothing_left(&store, &running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_pages_of_the_source_are_an_error_of_their_own() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id");
    let path = server.data.join(server.sql("SELECT pg_relation_filepath('t')"));
    server.stop("fast");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"corrupt", 8192 + 4000).unwrap();
    server.start("");
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let options = BackupOptions::new(server.connect(), minio.location());
    let result = run_backup(options, sender, CancellationToken::new()).await;
    assert!(
        matches!(&result, Err(BackupError::BaseBackup(BaseBackupError::CorruptSource(error))) if error.code == "XX001"),
        "{result:?}"
    );
    assert_eq!(minio.store().await.list("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_a_bad_store_ends_before_it_troubles_the_instance() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let minio = Server::start_plain(dir.path()).await;
    let server = Postgres::create(dir.path(), "primary", 1);
    let mut location = minio.location();
    location.store.credentials_dir = write_credentials(&dir.path().join("wrong"), "pgherd-test", "wrong");
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let result = run_backup(BackupOptions::new(server.connect(), location), sender, CancellationToken::new()).await;
    assert!(matches!(result, Err(BackupError::Store(StoreError::WrongCredentials { .. }))), "{result:?}");
    let mut location = minio.location();
    location.system_id = "123".to_owned();
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let result = run_backup(BackupOptions::new(server.connect(), location), sender, CancellationToken::new()).await;
    assert!(matches!(result, Err(BackupError::WrongSystem { .. })), "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_object_is_never_restored() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let (outcome, _) = back_up(&server, minio.location()).await;
    let store = minio.store().await;
    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let restore = async |name: &str| {
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        let target = dir.path().join(name);
        let result = restore_backup(&store, &location, &target, sender, CancellationToken::new()).await;
        assert!(!target.join("global/pg_control").exists(), "no half-restored directory looks like a database");
        (result.unwrap_err(), target.join(INCOMPLETE_MARKER).exists())
    };
    let data_key = format!("{prefix}base.tar.zst.0000");
    let good = store.get(&data_key).await.unwrap().unwrap();
    let mut flipped = good.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    store.put(&data_key, Bytes::from(flipped)).await.unwrap();
    assert!(matches!(restore("flipped").await, (RestoreError::Frame { .. }, true)));
    store.put(&data_key, good.slice(..middle)).await.unwrap();
    let (error, marked) = restore("short").await;
    assert!(matches!(error, RestoreError::Store(_)) && marked, "{error:?}");
    store.delete(&data_key).await.unwrap();
    assert!(matches!(restore("missing").await, (RestoreError::MissingObject(key), true) if key == data_key));
    let manifest_key = format!("{prefix}backup_manifest");
    store.put(&manifest_key, Bytes::from_static(b"{}")).await.unwrap();
    assert!(matches!(restore("manifest").await, (RestoreError::Inconsistent(_), false)));
}

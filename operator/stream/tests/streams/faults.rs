//! Faults of the store and of the way to it: each ends in a success that restores, or in a failure with a reason and nothing
//! visible; never in an open upload. A flipped bit in any kind of object is found, by the object's or the file's name.

use std::error::Error;

use bytes::Bytes;
use pgherd_core::backup::{BackupLocation, ClusterLocation, StoreConfig};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupOutcome, BackupOwner, BackupProgress, run_backup},
    catalogue::list_backups,
    replication::ConnectOptions,
    restore::{RestoreProgress, restore_backup, verify_backup},
    store::{ObjectStore, StoreError},
    wal::{WalError, fetch, push},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    fake_server::{Content, FakeServer, SYSTEM_ID},
    server::{Minio, Server},
    postgres::{Postgres, workspace},
    process::connect,
    proxy::{Fault, Proxy},
};

struct Scene {
    _dir: tempfile::TempDir,
    minio: Server,
    proxy: Proxy,
    connect: ConnectOptions,
    through: ClusterLocation,
    store: ObjectStore,
}

impl Scene {
    async fn new(megabytes: usize) -> Self {
        let dir = workspace();
        let (server, minio) =
            (FakeServer::start(dir.path(), Content::Noise, megabytes), Minio::start(dir.path()).await);
        let proxy = Proxy::start(&minio.config.endpoint);
        let config = StoreConfig { endpoint: proxy.endpoint.clone(), ..minio.config.clone() };
        let through = ClusterLocation { store: config, system_id: SYSTEM_ID.to_owned(), ..minio.location() };
        let connect = connect(server.sockets.to_str().unwrap().to_owned(), server.port);
        let store = minio.store().await;
        Self { _dir: dir, minio, proxy, connect, through, store }
    }

    async fn back_up(&self, attempt: u32) -> Result<BackupOutcome, BackupError> {
        let (sender, _receiver) = watch::channel(BackupProgress::default());
        let mut options = BackupOptions::new(self.connect.clone(), self.through.clone());
        options.owner = Some(BackupOwner { id: "the Backup".to_owned(), attempt });
        run_backup(options, sender, CancellationToken::new()).await
    }

    fn direct(&self) -> ClusterLocation {
        ClusterLocation { store: self.minio.config.clone(), ..self.through.clone() }
    }

    /// Every backup that is visible is whole, and no upload is open.
    async fn assert_sound(&self, visible: usize) {
        let location = self.direct();
        let records = list_backups(&self.store, &location).await.unwrap();
        assert_eq!(records.len(), visible);
        for record in &records {
            let location = BackupLocation { cluster: location.clone(), backup_id: record.id.clone() };
            let (sender, _receiver) = watch::channel(RestoreProgress::default());
            verify_backup(&self.store, &location, sender, CancellationToken::new()).await.unwrap();
        }
        for id in self.store.list_dirs(&format!("{}/base/", location.root())).await.unwrap() {
            assert!(records.iter().any(|record| record.id == id), "objects of {id} are left");
        }
        let uploads = self.minio.open_uploads();
        assert_eq!(uploads, 0, "uploads are left open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_store_ends_in_a_whole_backup_or_in_none() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(24).await;
    let mut visible = 0;
    let part = |line: &str| line.starts_with("PUT") && line.contains("partNumber");
    let complete = |line: &str| line.starts_with("POST") && line.contains("uploadId");
    let begin = |line: &str| line.starts_with("POST") && line.contains("?uploads");
    let put = |line: &str| line.starts_with("PUT") && !line.contains("partNumber");
    for (what, fault, times, every, applies) in [
        ("parts are told to slow down", Fault::SlowDown, 6, 1, part as fn(&str) -> bool),
        ("the connections of parts are reset", Fault::Reset, 5, 2, part),
        ("answers to parts are lost", Fault::LostAnswer, 4, 2, part),
        ("parts are slow", Fault::Slow, 8, 1, part),
        ("a beginning is told to slow down", Fault::SlowDown, 3, 1, begin),
        ("objects are told to slow down", Fault::SlowDown, 4, 1, put),
        ("an answer to a completion is lost", Fault::LostAnswer, 1, 1, complete),
        ("completions are told to slow down", Fault::SlowDown, 3, 1, complete),
        ("a completion is answered with an error inside", Fault::ErrorInside, 1, 1, complete),
        ("all completions are answered with an error inside", Fault::ErrorInside, 1000, 1, complete),
        ("parts are always told to slow down", Fault::SlowDown, 1000, 1, part),
    ] {
        scene.proxy.inject(fault, times, every, applies);
        let result = scene.back_up(1).await;
        assert!(scene.proxy.heal() > 0, "{what}: it befell nothing");
        println!("{what}: {}", result.as_ref().map_or_else(|error| format!("{error:?}"), |_| "a backup".to_owned()));
        match result {
            Ok(_) => visible += 1,
            Err(error) => assert!(matches!(error, BackupError::Store(_)), "{what}: {error:?}"),
        }
        scene.assert_sound(visible).await;
        // An id has seconds: the next one must be another.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    assert!(visible >= 8, "what passes is tried again: {visible}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_midway_fail_by_name_and_the_next_attempt_cleans_up() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(40).await;
    let late = std::sync::atomic::AtomicUsize::new(0);
    scene.proxy.inject(Fault::Expired, usize::MAX, 1, move |line| {
        let parts = line.contains("partNumber=3");
        let seen = late.fetch_add(usize::from(parts), std::sync::atomic::Ordering::SeqCst);
        parts || seen > 0
    });
    let error = scene.back_up(1).await.unwrap_err();
    assert!(
        matches!(&error, BackupError::Store(StoreError::WrongCredentials { code, .. }) if code == "ExpiredToken"),
        "{error:?}"
    );
    assert!(scene.proxy.heal() > 0);
    assert!(scene.minio.open_uploads() > 0, "without credentials nothing can be cleaned up");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    scene.back_up(2).await.unwrap();
    scene.assert_sound(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_breaks_off_is_repeated_and_one_that_lies_is_found() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(24).await;
    let id = scene.back_up(1).await.unwrap().record.id;
    let location = BackupLocation { cluster: scene.through.clone(), backup_id: id };
    let store = ObjectStore::connect(&scene.through.store).await.unwrap();
    let verify = async || {
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        verify_backup(&store, &location, sender, CancellationToken::new()).await
    };
    let get = |line: &str| line.starts_with("GET") && line.contains("/base/2") && !line.contains("list-type");
    for (fault, times, every) in
        [(Fault::Truncate, 4, 2), (Fault::Reset, 4, 2), (Fault::SlowDown, 4, 2), (Fault::LostAnswer, 4, 2)]
    {
        scene.proxy.inject(fault, times, every, get);
        verify().await.unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
        assert_eq!(scene.proxy.heal(), times, "{fault:?}");
    }
    scene.proxy.inject(Fault::FlipBit, 1, 1, |line| line.starts_with("GET") && line.contains("base.tar.zst.0000"));
    let error = verify().await.unwrap_err();
    assert!(error.to_string().contains("base.tar.zst.0000"), "{error}");
    scene.proxy.heal();
    scene.assert_sound(1).await;
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_kind_of_object_is_found_by_name() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Minio::start(dir.path()).await);
    let (outcome, _) = back_up(&server, minio.location()).await;
    let store = minio.store().await;
    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let location = BackupLocation { cluster: outcome.location.clone(), backup_id: outcome.record.id };
    for name in ["base.tar.zst.0000", "index.json.zst", "backup_manifest", "backup.json"] {
        let key = format!("{prefix}{name}");
        let good = store.get(&key).await.unwrap().unwrap();
        for part in [1, 3, 5, 7] {
            let mut flipped = good.to_vec();
            let mut at = flipped.len() * part / 8;
            // White space of the record means nothing.
            while flipped[at].is_ascii_whitespace() {
                at += 1;
            }
            flipped[at] ^= 0x01;
            store.put(&key, Bytes::from(flipped)).await.unwrap();
            let (sender, _receiver) = watch::channel(RestoreProgress::default());
            let target = dir.path().join(format!("{name}-{part}"));
            let result = restore_backup(&store, &location, &target, sender, CancellationToken::new()).await;
            let text = chain(&result.expect_err(&format!("{name} at byte {at}")));
            assert!(text.contains(name), "{name} at byte {at}: {text}");
            assert!(!target.join("global/pg_control").exists());
        }
        store.put(&key, good).await.unwrap();
    }
    let name = server.sql("SELECT pg_walfile_name(pg_switch_wal())");
    push(&store, &outcome.location, &server.data.join("pg_wal").join(&name), &name).await.unwrap();
    let key = outcome.location.wal_key(&name);
    let good = store.get(&key).await.unwrap().unwrap();
    for part in [1, 4, 7] {
        let mut flipped = good.to_vec();
        let at = flipped.len() * part / 8;
        flipped[at] ^= 0x20;
        store.put(&key, Bytes::from(flipped)).await.unwrap();
        let error = fetch(&store, &outcome.location, &name, &dir.path().join("wal")).await.unwrap_err();
        assert!(matches!(error, WalError::Decode { .. } | WalError::Foreign { .. }), "{error:?}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(!dir.path().join("wal").exists());
    }
}

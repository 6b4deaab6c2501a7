//! Faults of the store and of the way to it: each ends in a success that restores, or in a failure with a reason and nothing
//! visible; never in an open upload.

use std::{
    error::Error,
    fs,
    sync::OnceLock,
    time::{Duration, Instant},
};

use pgherd_core::backup::{BackupLocation, ClusterLocation, StoreConfig};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupOutcome, BackupOwner, BackupProgress, run_backup},
    catalogue::list_backups,
    replication::ConnectOptions,
    restore::{RestoreProgress, restore_backup, verify_backup},
    store::{LONG_PATIENCE, ObjectStore, StoreError},
    wal::{FetchOutcome, WalError, fetch, push},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    fake_server::{Content, FakeServer, SYSTEM_ID},
    postgres::workspace,
    process::connect,
    proxy::{Fault, Proxy},
    server::Server,
};

struct Scene {
    dir: tempfile::TempDir,
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
            (FakeServer::start(dir.path(), Content::Noise, megabytes), Server::start_plain(dir.path()).await);
        let proxy = Proxy::start(&minio.config.endpoint);
        let config = StoreConfig { endpoint: proxy.endpoint.clone(), ..minio.config.clone() };
        let through = ClusterLocation { store: config, system_id: SYSTEM_ID.to_owned(), ..minio.location() };
        let connect = connect(server.sockets.to_str().unwrap().to_owned(), server.port);
        let store = minio.store().await;
        Self { dir, minio, proxy, connect, through, store }
    }

    async fn back_up(&self, attempt: u32) -> Result<BackupOutcome, BackupError> {
        // Some of these faults never pass.
        self.back_up_with(attempt, Duration::from_secs(3)).await
    }

    async fn back_up_with(&self, attempt: u32, patience: Duration) -> Result<BackupOutcome, BackupError> {
        let (sender, _receiver) = watch::channel(BackupProgress::default());
        let mut options = BackupOptions::new(self.connect.clone(), self.through.clone());
        options.owner = Some(BackupOwner { id: "the Backup".to_owned(), attempt });
        options.patience = patience;
        run_backup(options, sender, CancellationToken::new()).await
    }

    /// From the request that `begins` it on every connection is closed, for longer than the client tries by itself.
    fn go_away(&self, begins: fn(&str) -> bool) {
        let began = OnceLock::new();
        self.proxy.inject(Fault::ResetAt(0), usize::MAX, 1, move |line| {
            if begins(line) {
                began.get_or_init(Instant::now);
            }
            began.get().is_some_and(|at: &Instant| at.elapsed() < Duration::from_secs(20))
        });
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
        ("parts break off in the middle", Fault::ResetAt(50), 5, 2, part),
        ("parts break off near their end", Fault::ResetAt(99), 5, 2, part),
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
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert!(visible >= 9, "what passes is tried again: {visible}");
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
    tokio::time::sleep(Duration::from_millis(1100)).await;
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
    for (fault, times, every) in [
        (Fault::TruncateAt(50), 4, 2),
        (Fault::TruncateAt(99), 4, 2),
        (Fault::ResetAt(0), 4, 2),
        (Fault::SlowDown, 4, 2),
        (Fault::LostAnswer, 4, 2),
    ] {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_a_while_ends_neither_a_backup_nor_a_restore() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(40).await;
    scene.go_away(|line| line.contains("partNumber=3"));
    let id = scene.back_up_with(1, LONG_PATIENCE).await.unwrap().record.id;
    assert!(scene.proxy.heal() > 6, "the store was not away");
    scene.assert_sound(1).await;

    scene.go_away(|line| line.starts_with("GET") && line.contains("base.tar.zst.0000"));
    let location = BackupLocation { cluster: scene.through.clone(), backup_id: id };
    let cancel = CancellationToken::new();
    let store = ObjectStore::connect(&scene.through.store).await.unwrap().with_long_patience(LONG_PATIENCE, &cancel);
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let outcome = restore_backup(&store, &location, &scene.dir.path().join("restored"), sender, cancel).await.unwrap();
    assert!(scene.proxy.heal() > 6, "the store was not away");
    assert!(outcome.bytes > 40 << 20, "{} bytes were restored", outcome.bytes);
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

/// What the archive is asked for and what may come of it, in one word.
async fn use_archive(scene: &Scene, store: &ObjectStore, name: &str) -> String {
    let (file, dest) = (scene.dir.path().join(name), scene.dir.path().join("fetched"));
    let tell = |error: WalError| match chain(&error) {
        text if text.contains(name) || matches!(error, WalError::Store(_)) => "an error".to_owned(),
        text => panic!("an error that does not say of what: {text}"),
    };
    if let Err(error) = push(store, &scene.through, &file, name).await {
        return tell(error);
    }
    match fetch(store, &scene.through, name, &dest).await {
        Ok(FetchOutcome::Absent) => panic!("{name} was archived"),
        Ok(FetchOutcome::Fetched) => {
            assert_eq!(fs::read(&dest).unwrap(), fs::read(&file).unwrap());
            fs::remove_file(&dest).unwrap();
            "good".to_owned()
        }
        Err(error) => {
            assert!(!dest.exists(), "nothing of a file that cannot be trusted");
            tell(error)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archive_outlasts_a_burst_and_takes_no_fault_for_a_success_or_an_absence() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(1).await;
    let store = ObjectStore::connect(&scene.through.store).await.unwrap();
    let impatient = store.with_short_patience();
    let any = |_: &str| true;
    let put = |line: &str| line.starts_with("PUT");
    let get = |line: &str| line.starts_with("GET") && !line.contains("list-type");
    let list = |line: &str| line.starts_with("GET") && line.contains("list-type");
    for (number, (fault, times, applies, expected)) in [
        (Fault::SlowDown, 3, any as fn(&str) -> bool, "good"),
        (Fault::LostAnswer, 1, put, "good"),
        (Fault::ResetAt(50), 2, put, "good"),
        (Fault::ResetAt(99), 2, put, "good"),
        (Fault::Slow, 4, any, "good"),
        (Fault::TruncateAt(50), 2, get, "good"),
        (Fault::TruncateAt(99), 2, get, "good"),
        (Fault::ErrorInside, usize::MAX, put, "an error"),
        (Fault::ErrorInside, usize::MAX, get, "an error"),
        (Fault::FlipBit, 1, get, "an error"),
        (Fault::Expired, 1, put, "an error"),
        (Fault::Expired, 1, get, "an error"),
        (Fault::Expired, 1, list, "an error"),
        (Fault::Stall, usize::MAX, put, "an error"),
    ]
    .into_iter()
    .enumerate()
    {
        let (timeline, patience) = (number + 2, if fault == Fault::Stall { &impatient } else { &store });
        let name = format!("{timeline:08X}.history");
        fs::write(scene.dir.path().join(&name), "1\t0/3000060\tno recovery target specified\n").unwrap();
        scene.proxy.inject(fault, times, 1, applies);
        let found = use_archive(&scene, patience, &name).await;
        assert!(scene.proxy.heal() > 0, "{fault:?} befell nothing");
        assert_eq!(found, expected, "{fault:?}");
        assert_eq!(use_archive(&scene, &store, &name).await, "good", "after {fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_are_deleted_by_one_request_or_else_one_by_one() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(1).await;
    let store = ObjectStore::connect(&scene.through.store).await.unwrap();
    let keys: Vec<String> = (0..5).map(|n| format!("many/{n}")).collect();
    let named = [keys.as_slice(), &["many/absent".to_owned()]].concat();
    let is_delete = |line: &str| line.starts_with("POST") && line.contains("?delete");
    let one = |line: &str| line.starts_with("DELETE");
    for (fault, times, applies, gone) in [
        (Fault::SlowDown, 2, is_delete as fn(&str) -> bool, true),
        (Fault::LostAnswer, 1, is_delete, true),
        (Fault::Refuse, 9, is_delete, true),
        (Fault::ErrorInside, 9, is_delete, false),
        (Fault::Expired, 9, is_delete, false),
    ] {
        for key in &keys {
            store.put(key, "x".into()).await.unwrap();
        }
        scene.proxy.inject(fault, times, 1, applies);
        let result = store.delete_all(&named).await;
        assert!(scene.proxy.heal() > 0, "{fault:?} befell nothing");
        assert_eq!(result.is_ok(), gone, "{fault:?}: {result:?}");
        assert_eq!(scene.store.list("many/").await.unwrap().is_empty(), gone, "{fault:?}");
    }
    // One request for all: none of its own for any.
    scene.proxy.inject(Fault::Refuse, usize::MAX, 1, one);
    store.delete_all(&named).await.unwrap();
    assert_eq!((scene.proxy.heal(), scene.store.list("many/").await.unwrap()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_of_an_object_is_taken_than_it_may_have() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::new(1).await;
    let store = ObjectStore::connect(&scene.through.store).await.unwrap();
    store.put("ten", "0123456789".into()).await.unwrap();
    assert_eq!(store.get_at_most("ten", 10).await.unwrap().unwrap(), "0123456789");
    assert!(matches!(store.get_at_most("ten", 9).await, Err(StoreError::Damaged { key, .. }) if key == "ten"));
    scene.proxy.inject(Fault::Endless, usize::MAX, 1, |_| true);
    assert!(matches!(store.get_at_most("ten", 1 << 20).await, Err(StoreError::Damaged { key, .. }) if key == "ten"));
    assert!(matches!(store.get_range("ten", 2, 4).await, Err(StoreError::Damaged { key, .. }) if key == "ten"));
    assert_eq!(scene.proxy.heal(), 2, "it is not asked for again");
}

//! An archive that is longer than an object may be goes into several.

use std::time::Duration;

use pgherd_core::backup::BackupLocation;
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupProgress, run_backup},
    restore::{RestoreProgress, restore_backup, verify_backup},
    store::ObjectStore,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups,
    encryption::{self, Pair, with_keys},
    failures::assert_no_upload,
    postgres::{Postgres, verify, workspace},
    server::{Brand, Server},
};

on_each_server!(
    an_archive_of_several_objects_comes_back_by_pgherd_and_by_hand,
    an_encrypted_archive_of_several_objects_comes_back_by_pgherd_and_by_hand,
    a_backup_that_breaks_off_in_a_later_object_leaves_none,
);

const PART: u64 = 5 << 20;
const PARTS: u64 = 2;
const ROWS: &str = "SELECT count(*), sum(length(b)) FROM noise";

/// About 38 MB that do not compress.
async fn set(brand: Brand) -> (tempfile::TempDir, Postgres, Server, ObjectStore) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    server.fill_with_noise(20_000);
    let store = minio.store().await;
    (dir, server, minio, store)
}

async fn an_archive_of_several_objects_comes_back_by_pgherd_and_by_hand(brand: Brand) {
    there_and_back(brand, false).await;
}

async fn an_encrypted_archive_of_several_objects_comes_back_by_pgherd_and_by_hand(brand: Brand) {
    there_and_back(brand, true).await;
}

async fn there_and_back(brand: Brand, encrypted: bool) {
    let (dir, server, minio, store) = set(brand).await;
    let pair = Pair::make(dir.path(), "identity");
    let (location, suffix) =
        if encrypted { (with_keys(&minio.location(), &[&pair], None), ".age") } else { (minio.location(), "") };
    let mut options = BackupOptions::new(server.connect(), location);
    options.object_parts = PARTS;
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let outcome = run_backup(options, sender, CancellationToken::new()).await.unwrap();

    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let objects = store.list(&format!("{prefix}base.tar.zst.")).await.unwrap();
    assert!(objects.len() >= 4, "{objects:?}");
    for (number, (key, size)) in objects.iter().enumerate() {
        assert_eq!(key, &format!("{prefix}base.tar.zst.{number:04}{suffix}"));
        assert!(*size <= PART * PARTS, "{objects:?}");
        // All but the last are as full as whole frames let them be.
        assert!(number + 1 == objects.len() || *size > PART * PARTS - (2 << 20), "{objects:?}");
    }
    let sizes: Vec<u64> = objects.iter().map(|(_, size)| *size).collect();
    assert_eq!(outcome.record.archives[0].segments, sizes);

    let cluster = if encrypted { with_keys(&outcome.location, &[], Some(&pair.file)) } else { outcome.location };
    let location = BackupLocation { cluster, backup_id: outcome.record.id };
    let store = ObjectStore::connect(&location.cluster.store).await.unwrap();
    let (restored, by_hand) = (dir.path().join("restored"), dir.path().join("by_hand"));
    let progress = || watch::channel(RestoreProgress::default()).0;
    verify_backup(&store, &location, progress(), CancellationToken::new()).await.unwrap();
    restore_backup(&store, &location, &restored, progress(), CancellationToken::new()).await.unwrap();
    if encrypted {
        encryption::restore_by_hand(&store, &prefix, &pair.file, &by_hand).await;
    } else {
        backups::restore_by_hand(&store, &prefix, &by_hand).await;
    }
    let rows = server.sql(ROWS);
    for name in ["restored", "by_hand"] {
        crate::postgres::run(std::process::Command::new("chmod").arg("0700").arg(dir.path().join(name)));
        verify(&dir.path().join(name));
        assert_eq!(Postgres::on(dir.path(), name).sql(ROWS), rows, "{name}");
    }
}

async fn a_backup_that_breaks_off_in_a_later_object_leaves_none(brand: Brand) {
    let (_dir, server, minio, store) = set(brand).await;
    let mut options = BackupOptions::new(server.connect(), minio.location());
    (options.object_parts, options.max_rate, options.levels) = (PARTS, Some(12 << 10), crate::process::fixed(-7));
    let (sender, mut receiver) = watch::channel(BackupProgress::default());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(run_backup(options, sender, cancel.clone()));
    receiver.wait_for(|progress| progress.stored_bytes > PART * PARTS).await.unwrap();
    let keys = async || store.list("").await.unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    crate::wait_until("the first object is whole", async || {
        keys().await.iter().any(|key| key.ends_with("/base.tar.zst.0000"))
    })
    .await;
    assert!(!task.is_finished());
    let first = keys().await.into_iter().find(|key| key.ends_with("/base.tar.zst.0000")).unwrap();
    cancel.cancel();
    let result = tokio::time::timeout(Duration::from_secs(20), task).await.expect("a cancel is prompt").unwrap();
    assert!(matches!(result, Err(BackupError::Cancelled)), "{result:?}");
    assert_eq!(keys().await, [""; 0]);
    assert_no_upload(&store, &first).await;
    assert_eq!(minio.open_uploads(), 0);
}

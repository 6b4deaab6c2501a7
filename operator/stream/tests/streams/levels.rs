//! The level of compression follows what is short, and what was stored with many levels comes back as it was.

use std::{fs, path::Path};

use pgherd_core::{
    backup::{BackupLocation, ClusterLocation, StoreConfig},
    compression::LevelBounds,
};
use pgherd_stream::{
    backup::{BackupOptions, BackupOutcome, BackupProgress, run_backup},
    restore::{RestoreProgress, restore_backup},
    store::ObjectStore,
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

async fn back_up(server: &FakeServer, location: ClusterLocation, levels: LevelBounds) -> BackupOutcome {
    let connect = connect(server.sockets.to_str().unwrap().to_owned(), server.port);
    let mut options = BackupOptions::new(connect, location);
    options.levels = levels;
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    run_backup(options, sender, CancellationToken::new()).await.unwrap()
}

/// The restored files of the fake server's data.
async fn restore(store: &ObjectStore, outcome: &BackupOutcome, target: &Path) -> Vec<Vec<u8>> {
    let location = BackupLocation { cluster: outcome.location.clone(), backup_id: outcome.record.id.clone() };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    restore_backup(store, &location, target, sender, CancellationToken::new()).await.unwrap();
    let mut paths: Vec<_> = fs::read_dir(target.join("base/5")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_raises_the_level_and_what_has_many_levels_comes_back_the_same() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let server = FakeServer::start(dir.path(), Content::Halves, 300);
    let minio = Server::start_plain(dir.path()).await;
    let store = minio.store().await;
    let direct = ClusterLocation { system_id: SYSTEM_ID.to_owned(), ..minio.location() };
    let proxy = Proxy::start(&minio.config.endpoint);
    let slow = StoreConfig { endpoint: proxy.endpoint.clone(), ..minio.config.clone() };

    proxy.inject(Fault::Slow, usize::MAX, 1, |line| line.contains("partNumber="));
    let through = ClusterLocation { store: slow, ..direct.clone() };
    let slow = back_up(&server, through, LevelBounds::default()).await;
    assert!(proxy.heal() > 10);
    let raised = slow.levels.unwrap();
    assert!(raised.lowest == 1 && raised.highest >= 3 && raised.mean_hundredths > 150, "{raised:?}");

    // That a fast store lowers it is tested beside the pipeline: here the fake server competes for the same processors.
    let fast = back_up(&server, direct, LevelBounds::new(-7, -3).unwrap()).await;
    let low = fast.levels.unwrap();
    assert!(low.lowest >= -7 && low.highest == -3, "{low:?}");
    assert!(fast.record.stored_bytes > slow.record.stored_bytes);

    let slow = BackupOutcome { location: fast.location.clone(), ..slow };
    let one = restore(&store, &slow, &dir.path().join("one")).await;
    let other = restore(&store, &fast, &dir.path().join("other")).await;
    assert!(one.len() == 5 && one == other);
}

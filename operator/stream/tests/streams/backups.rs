//! What goes up comes back: by pgherd, by hand with standard tools, from a primary and from a standby.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_stream::{
    backup::{BackupOptions, BackupOutcome, BackupPhase, BackupProgress, run_backup},
    catalogue::{CatalogueError, list_backups, list_clusters, resolve},
    clone::clone_from_instance,
    replication::ReplicationClient,
    restore::{RestoreError, RestoreProgress, restore_backup},
    store::ObjectStore,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    postgres::{Postgres, major_version, run, verify, workspace},
    server::{Brand, Server},
};

on_each_server!(a_backup_comes_back_by_pgherd_and_by_hand);

/// Runs a backup with the defaults.
pub(crate) async fn back_up(server: &Postgres, location: ClusterLocation) -> (BackupOutcome, BackupProgress) {
    let (sender, receiver) = watch::channel(BackupProgress::default());
    let options = BackupOptions::new(server.connect(), location);
    let outcome = run_backup(options, sender, CancellationToken::new()).await.unwrap();
    let progress = receiver.borrow().clone();
    (outcome, progress)
}

async fn restore(store: &ObjectStore, location: &BackupLocation, target: &Path) -> Result<u64, RestoreError> {
    let (sender, receiver) = watch::channel(RestoreProgress::default());
    let outcome = restore_backup(store, location, target, sender, CancellationToken::new()).await?;
    assert_eq!(receiver.borrow().bytes_done, outcome.record.tar_bytes);
    Ok(outcome.files)
}

/// `cat base.tar.zst.* | zstd -dc | tar xf -`, as the documentation says.
pub(crate) async fn restore_by_hand(store: &ObjectStore, prefix: &str, target: &Path) {
    fs::create_dir(target).unwrap();
    let joined = target.with_extension("tar.zst");
    let mut file = File::create(&joined).unwrap();
    for (key, _) in store.list(&format!("{prefix}base.tar.zst.")).await.unwrap() {
        file.write_all(&store.get(&key).await.unwrap().unwrap()).unwrap();
    }
    let mut zstd = Command::new("zstd").args(["-dc", "--quiet"]).arg(&joined).stdout(Stdio::piped()).spawn().unwrap();
    run(Command::new("tar").arg("-xf").arg("-").arg("-C").arg(target).stdin(zstd.stdout.take().unwrap()));
    assert!(zstd.wait().unwrap().success());
    let manifest = store.get(&format!("{prefix}backup_manifest")).await.unwrap().unwrap();
    fs::write(target.join("backup_manifest"), manifest).unwrap();
}

fn assert_rows(parent: &Path, name: &str, rows: &str) {
    run(Command::new("chmod").arg("0700").arg(parent.join(name)));
    verify(&parent.join(name));
    let server = Postgres::on(parent, name);
    assert_eq!(server.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts"), rows);
}

async fn a_backup_comes_back_by_pgherd_and_by_hand(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start(brand, dir.path()).await);
    server.fill(5);
    server.sql("UPDATE pgbench_accounts SET abalance = aid % 7");
    let rows = server.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts");
    let store = minio.store().await;

    let unknown = BackupLocation { cluster: minio.location(), backup_id: String::new() };
    assert!(matches!(resolve(&store, &unknown).await, Err(CatalogueError::UnknownCluster(_))));
    let (outcome, progress) = back_up(&server, minio.location()).await;
    assert_eq!((progress.phase, progress.bytes_done), (BackupPhase::Done, outcome.record.tar_bytes));
    assert!(progress.bytes_total.unwrap() > 60 << 20 && outcome.record.stored_bytes < outcome.record.tar_bytes);
    assert_eq!(outcome.record.server_version / 10_000, major_version());

    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let names: Vec<_> =
        store.list(&prefix).await.unwrap().into_iter().map(|(key, _)| key[prefix.len()..].to_owned()).collect();
    assert_eq!(names, ["backup.json", "backup_manifest", "base.tar.zst.0000", "index.json.zst"]);
    assert!(store.list_uploads(&format!("{prefix}base.tar.zst.0000")).await.unwrap().is_empty());
    assert_eq!(list_backups(&store, &outcome.location).await.unwrap(), std::slice::from_ref(&outcome.record));
    let clusters = list_clusters(&store, &minio.config.prefix).await.unwrap();
    assert_eq!(
        (clusters[0].name.as_str(), &clusters[0].system_ids),
        ("shop", &vec![outcome.location.system_id.clone()])
    );

    let (location, record) = resolve(&store, &unknown).await.unwrap();
    assert_eq!((&record, &location.backup_id), (&outcome.record, &outcome.record.id));
    restore(&store, &location, &dir.path().join("restored")).await.unwrap();
    let again = restore(&store, &location, &dir.path().join("restored")).await;
    assert!(matches!(again, Err(RestoreError::TargetNotEmpty { incomplete: false, .. })));
    assert_rows(dir.path(), "restored", &rows);
    restore_by_hand(&store, &prefix, &dir.path().join("by_hand")).await;
    assert_rows(dir.path(), "by_hand", &rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_becomes_a_standby_and_a_backup_of_it_is_whole() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill(2);
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let target = dir.path().join("standby");
    let mut client = ReplicationClient::connect(&server.connect()).await.unwrap();
    client.create_physical_slot("pgherd_standby", false, true).await.unwrap();
    let copy = clone_from_instance(server.connect(), &target, sender, CancellationToken::new()).await.unwrap();
    assert!(copy.bytes > 30 << 20 && copy.stop_lsn > copy.start_lsn);
    verify(&target);
    fs::write(target.join("standby.signal"), "").unwrap();
    let conninfo = format!("host={} port={} user=postgres", server.sockets.display(), server.port);
    fs::write(
        target.join("postgresql.auto.conf"),
        format!("primary_conninfo = '{conninfo}'\nprimary_slot_name = 'pgherd_standby'\n"),
    )
    .unwrap();
    let standby = Postgres::on(dir.path(), "standby");
    server.sql("CREATE TABLE later AS SELECT generate_series(1, 1000) AS id");
    crate::wait_until("the standby follows", async || standby.sql("SELECT to_regclass('later') IS NOT NULL") == "t")
        .await;
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");

    let (outcome, _) = back_up(&standby, minio.location()).await;
    assert_eq!(outcome.location.system_id, copy.system_id);
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots"), "1", "temporary slots are gone");
    let store = minio.store().await;
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    restore(&store, &location, &dir.path().join("restored")).await.unwrap();
    fs::remove_file(dir.path().join("restored/standby.signal")).unwrap();
    verify_without_signal(&dir.path().join("restored"));
    fs::write(dir.path().join("restored/postgresql.auto.conf"), "").unwrap();
    let restored = Postgres::on(dir.path(), "restored");
    assert_eq!(restored.sql("SELECT count(*) FROM pgbench_accounts"), "200000");
}

/// The standby's own files were part of its backup; whoever restores replaces them.
fn verify_without_signal(data: &Path) {
    crate::postgres::hand_over(data);
    run(crate::postgres::program("pg_verifybackup").args(["-i", "standby.signal"]).arg(data));
}

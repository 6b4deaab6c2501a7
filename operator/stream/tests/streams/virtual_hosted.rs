//! Virtual-hosted style: the bucket is a part of the host's name, and so of the name that a certificate has to have.

use std::{fs, process::Command};

use pgherd_core::backup::{BackupLocation, StoreConfig};
use pgherd_stream::{
    restore::{RestoreProgress, restore_backup},
    store::{ObjectStore, StoreError},
    wal::{FetchOutcome, PushOutcome, fetch, push},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, run, verify, workspace},
    server::{BUCKET, Brand, DOMAIN, Server},
    wal_archive::make_segments,
};

const TEST: &str = "a_backup_a_restore_and_the_archive_find_the_bucket_in_the_host";
const VARIABLE: &str = "PGHERD_TEST_HOSTS";
/// Resolves, and is in no certificate.
const UNNAMED: &str = "unnamed";

on_each_server!(a_backup_a_restore_and_the_archive_find_the_bucket_in_the_host);

/// Runs this test in a process of its own, for which alone the names of the store are in `/etc/hosts`: true when it has.
fn ran_with_hosts(brand: Brand) -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return false;
    }
    let dir = workspace();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost {DOMAIN} {BUCKET}.{DOMAIN} {UNNAMED}.{DOMAIN}\n")).unwrap();
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--map-current-user", "--keep-caps"]);
    }
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]).arg(hosts);
    let module = if brand == Brand::Minio { "on_minio" } else { "on_versity" };
    command.arg(std::env::current_exe().unwrap()).arg(format!("virtual_hosted::{module}::{TEST}"));
    let output = run(command.args(["--exact", "--nocapture"]).env(VARIABLE, "1"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("1 passed"), "{text}");
    true
}

async fn a_backup_a_restore_and_the_archive_find_the_bucket_in_the_host(brand: Brand) {
    if ran_with_hosts(brand) {
        return;
    }
    let dir = workspace();
    let server = Postgres::create(dir.path(), "primary", 1);
    let gateway = Server::start_virtual_hosted(brand, dir.path()).await;
    let store = gateway.store().await;
    let (outcome, _) = back_up(&server, gateway.location()).await;

    let name = &make_segments(&server)[0];
    let (segment, fetched) = (server.data.join("pg_wal").join(name), dir.path().join("fetched"));
    assert_eq!(push(&store, &outcome.location, &segment, name).await.unwrap(), PushOutcome::Pushed);
    assert_eq!(fetch(&store, &outcome.location, name, &fetched).await.unwrap(), FetchOutcome::Fetched);
    assert!(fs::read(&fetched).unwrap() == fs::read(&segment).unwrap());

    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let (target, (sender, _receiver)) = (dir.path().join("restored"), watch::channel(RestoreProgress::default()));
    restore_backup(&store, &location, &target, sender, CancellationToken::new()).await.unwrap();
    verify(&target);

    let unnamed = StoreConfig { bucket: UNNAMED.to_owned(), ..gateway.config.clone() };
    let error = ObjectStore::connect(&unnamed).await.unwrap().probe().await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "the certificate is another host's: {error:?}");
}

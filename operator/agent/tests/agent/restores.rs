//! Data directories that come from a backup or an archive: what is held meanwhile, and when what failed is tried again.

use std::{sync::Arc, time::Duration};

use pgherd_agent::{actions::rebuild::rebuild, archive::own_location, register_store::MemoryRegister};
use pgherd_core::instance::{Bootstrap, InstanceConfig, Phase, REPLICATION_ROLE, RecoveryTarget, ReplicaSourcePolicy};
use pgherd_stream::{
    backup::{BackupOptions, BackupProgress, run_backup},
    replication::ConnectOptions,
    tls::PostgresTls,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Cluster, Instance,
    minio::{self, Minio},
    ran_as_postgres,
    takeover::{PATIENCE, bring_up, first_register, has_aside, streams, wait_for, wait_without_aside},
    unserved_store,
};

async fn back_up(primary: &Instance) {
    let tls = primary.agent.layout.tls();
    let connect = ConnectOptions {
        host: "localhost".to_owned(),
        port: primary.agent.layout.postgres_port,
        server_name: "localhost".to_owned(),
        user: REPLICATION_ROLE.to_owned(),
        database: None,
        tls: Some(PostgresTls {
            ca_file: tls.join("ca.crt"),
            cert_file: Some(tls.join("replication.crt")),
            key_file: Some(tls.join("replication.key")),
        }),
        password_file: None,
        application_name: "pgherd-test".to_owned(),
        connect_timeout: Duration::from_secs(10),
    };
    let options = BackupOptions::new(connect, own_location(&primary.agent).unwrap());
    run_backup(options, watch::Sender::new(BackupProgress::default()), CancellationToken::new()).await.unwrap();
}

/// A cluster of two whose primary alone runs and has a backup, from which a replica is to be made.
async fn back_up_one_of_two() -> (Cluster, Minio, Instance) {
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    cluster.config.replica_source = ReplicaSourcePolicy::Backup;
    let primary = bring_up(&cluster, 1).await.pop().unwrap();
    back_up(&primary).await;
    (cluster, minio, primary)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_held_until_the_replica_that_was_made_from_it_streams() {
    if minio::ran_as_postgres("restores::a_backup_is_held_until_the_replica_that_was_made_from_it_streams") {
        return;
    }
    let (cluster, minio, primary) = back_up_one_of_two().await;
    let folder = format!("{}/locks/", own_location(&primary.agent).unwrap().root());
    let store = minio.store().await;
    let locks = async || store.list(&folder).await.unwrap().len();

    let replica = cluster.start("c-1", "uid-1");
    wait_for(&replica, "restoring", |status| status.phase == Phase::Restoring || status.source.is_some()).await;
    // Got when the step that makes the data directory ends; the server is started by another one.
    let acting = replica.agent.acting.lock().await;
    let source = replica.agent.board.status().source.unwrap();
    assert_eq!(source.source, "backup", "{}", source.reason);
    assert_eq!(locks().await, 1);
    drop(acting);
    wait_for(&replica, "streaming", streams).await;
    let end = Instant::now() + PATIENCE;
    while locks().await > 0 {
        assert!(Instant::now() < end, "it is still held");
        sleep(Duration::from_millis(50)).await;
    }
    replica.terminate().await;
    primary.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_does_not_come_back_is_replaced_by_a_copy_and_old_data_stays_until_the_new_streams() {
    const NAME: &str =
        "restores::a_backup_that_does_not_come_back_is_replaced_by_a_copy_and_old_data_stays_until_the_new_streams";
    if minio::ran_as_postgres(NAME) {
        return;
    }
    let (cluster, minio, primary) = back_up_one_of_two().await;
    let (store, root) = (minio.store().await, own_location(&primary.agent).unwrap().root());
    let objects = store.list(&format!("{root}/base/")).await.unwrap();
    let (key, _) = objects.into_iter().find(|(key, _)| key.ends_with("/base.tar.zst.0000")).unwrap();
    let mut bytes = store.get(&key).await.unwrap().unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(&key, bytes.into()).await.unwrap();

    let replica = cluster.start("c-1", "uid-1");
    let source = wait_for(&replica, "streaming", streams).await.source.unwrap();
    assert_eq!((source.source.as_str(), source.from.as_str()), ("instance", "c-0"), "{}", source.reason);
    assert!(source.reason.contains("could not be restored") && source.reason.contains(&key), "{}", source.reason);
    assert!(!has_aside(&replica), "there was nothing to keep");

    rebuild(&replica.agent).await.unwrap();
    let asked = "somebody asked for it";
    wait_for(&replica, "built anew", |status| status.source.as_ref().is_some_and(|made| made.reason.contains(asked)))
        .await;
    // Got when the step that makes the data directory ends; the server is started by another one.
    let acting = replica.agent.acting.lock().await;
    assert!(has_aside(&replica) && !streams(&replica.agent.board.status()));
    drop(acting);
    wait_for(&replica, "streaming again", streams).await;
    wait_without_aside(&replica).await;
    replica.terminate().await;
    primary.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_says_when_it_is_tried_again_and_a_new_configuration_is_tried_at_once() {
    const NAME: &str =
        "restores::a_restore_that_fails_says_when_it_is_tried_again_and_a_new_configuration_is_tried_at_once";
    if ran_as_postgres(NAME) {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    cluster.config.bootstrap =
        Bootstrap::Import { store: unserved_store(), key: "none".into(), target: RecoveryTarget::Latest };
    let instance = cluster.start("c-0", "uid-0");
    // Each message stands for one try; the third is 1 s and 2 s after the first.
    let mut told: Vec<String> = Vec::new();
    while told.len() < 3 {
        let last = told.last().cloned();
        let is_new = |message: &String| message.contains("tried again at 2") && Some(message) != last.as_ref();
        let status =
            wait_for(&instance, "told", |status| status.phase == Phase::Failed && is_new(&status.message)).await;
        assert!(status.message.starts_with("failed to import the archive"), "{}", status.message);
        told.push(status.message);
    }
    let config = InstanceConfig { bootstrap: Bootstrap::Initdb, ..cluster.config.clone() };
    instance.config.send_replace(Arc::new(config));
    wait_for(&instance, "up", |status| status.phase == Phase::Primary).await;
    instance.terminate().await;
}

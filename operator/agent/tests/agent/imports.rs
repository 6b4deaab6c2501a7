//! Data of a server that was never pgherd's becomes a cluster, or is refused by what PostgreSQL says of it.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use pgherd_agent::{
    postgres::{binaries::Binaries, sql::Session},
    register_store::MemoryRegister,
};
use pgherd_core::instance::{Bootstrap, RecoveryTarget};

use crate::support::{
    Cluster, Instance, free_port,
    minio::{self, Minio},
    takeover::{bring_up, first_register, session, wait_for},
};

/// A server as somebody else runs it; stopped when dropped.
struct Source {
    data: PathBuf,
    root: PathBuf,
    port: u16,
}

impl Source {
    fn create(root: &Path, segment_megabytes: u32) -> Self {
        let source = Self { data: root.join("source"), root: root.to_owned(), port: free_port() };
        let segments = format!("--wal-segsize={segment_megabytes}");
        source.run("initdb", &["--no-sync", "--auth=trust", "--username=postgres", &segments]);
        let options = format!("-p {} -k {} -c listen_addresses= -c fsync=off", source.port, root.display());
        source.run("pg_ctl", &["start", "-w", "-l", "/dev/null", "-o", &options]);
        source
    }

    fn run(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(Binaries::observe().unwrap().program(program));
        let status = command.args(args).arg("-D").arg(&self.data).stdout(std::process::Stdio::null()).status();
        assert!(status.unwrap().success(), "{program} {args:?}");
    }

    async fn sql(&self, database: &str, statement: &str) {
        let session = Session::connect(&self.root, self.port, database, Duration::from_secs(30)).await.unwrap();
        session.execute(statement).await.unwrap();
    }

    /// What `pg_basebackup --format=tar --wal-method=fetch --pgdata=-` writes; the server is gone afterwards.
    fn into_tar(self) -> Vec<u8> {
        let mut command = Command::new(Binaries::observe().unwrap().program("pg_basebackup"));
        command.args(["--format=tar", "--wal-method=fetch", "--checkpoint=fast", "--pgdata=-", "--username=postgres"]);
        let output = command.arg("-h").arg(&self.root).args(["-p", &self.port.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.run("pg_ctl", &["stop", "-w", "-m", "immediate"]);
    }
}

/// A cluster of one instance that is to be made of this archive.
async fn import_of(tar: Vec<u8>) -> (Cluster, Minio) {
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let minio = Minio::start(cluster.root.path()).await;
    minio.store().await.put("old.tar", Bytes::from(tar)).await.unwrap();
    let (store, key) = (minio.config.clone(), "old.tar".to_owned());
    cluster.config.bootstrap = Bootstrap::Import { store, key, target: RecoveryTarget::Latest };
    (cluster, minio)
}

async fn ask(instance: &Instance, sql: &str) -> String {
    session(instance, "postgres").await.query(sql, &[]).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_large_segments_and_a_subscription_becomes_a_cluster_that_takes_nothing_from_its_publisher() {
    if minio::ran_as_postgres(
        "imports::a_source_with_large_segments_and_a_subscription_becomes_a_cluster_that_takes_nothing_from_its_publisher",
    ) {
        return;
    }
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let (source, port) = (Source::create(root.path(), 64), free_port());
    let subscribe = format!(
        "CREATE SUBSCRIPTION \"the orders\" CONNECTION 'host=127.0.0.1 port={port}' PUBLICATION p WITH (connect = false)"
    );
    source.sql("postgres", &subscribe).await;
    source.sql("postgres", "ALTER SUBSCRIPTION \"the orders\" ENABLE").await;
    let (cluster, _minio) = import_of(source.into_tar()).await;

    let publisher = TcpListener::bind(("127.0.0.1", port)).unwrap();
    publisher.set_nonblocking(true).unwrap();
    let new = bring_up(&cluster, 1).await.pop().unwrap();
    let reason = new.agent.board.status().source.unwrap().reason;
    assert!(reason.ends_with("its 1 enabled subscriptions are disabled: postgres.the orders"), "{reason}");
    assert_eq!(ask(&new, "SELECT subenabled::text FROM pg_subscription").await, "false");
    assert_ne!(ask(&new, "SHOW max_logical_replication_workers").await, "0");
    assert_eq!(
        ask(&new, "SELECT name FROM pg_settings WHERE name = 'wal_segment_size' AND setting = '67108864'").await,
        "wal_segment_size"
    );
    assert_eq!(ask(&new, "SHOW min_wal_size").await, "320MB");
    new.terminate().await;
    assert!(publisher.accept().is_err(), "a worker of the copy asked the source's publisher");
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    publisher.accept().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_nobody_in_ends_the_import_with_its_own_words() {
    if minio::ran_as_postgres("imports::a_server_that_lets_nobody_in_ends_the_import_with_its_own_words") {
        return;
    }
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let source = Source::create(root.path(), 16);
    source.sql("template1", "DROP DATABASE postgres").await;
    let (cluster, _minio) = import_of(source.into_tar()).await;
    let new = cluster.start("c-0", "uid-0");
    wait_for(&new, "refused", |status| status.message.contains("database \"postgres\" does not exist")).await;
    new.terminate().await;
}

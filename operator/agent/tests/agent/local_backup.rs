//! A backup from local files that a Job asks for: who may ask and when, one at a time, and its process ends with the connection or the
//! instance. A script stands for the process; what a backup is belongs to other tests.

use std::{fs, path::Path, time::Duration};

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{bring_up, first_register},
};
use pgherd_agent::{archive::own_location, register_store::MemoryRegister};
use pgherd_core::local_backup::{LOCAL_BACKUP_PATH, LocalBackupOrder, LocalBackupRequest};
use tokio::{io::AsyncReadExt, time::Instant};

/// Keeps its order, says a line, and ends when it is told to, or at once unless there is a file `stay`.
const PROCESS: &str = r#"#!/bin/sh
[ "$1" = local-backup ] || exit 1
cd "$(dirname "$0")" || exit 1
cat >order
trap 'echo yes >ended; exit 1' TERM
echo '{"progress":{"bytesDone":7,"storedBytes":0}}'
while [ -e stay ]; do sleep 0.1; done
echo '{"outcome":"the last word"}'
"#;

async fn wait_until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn render_request(instance: &Instance, change: impl FnOnce(&mut LocalBackupRequest)) -> String {
    let mut location = own_location(&instance.agent).unwrap();
    location.store.credentials_dir = "/of/the/job".into();
    let mut request = LocalBackupRequest {
        backup_uid: "u".into(),
        attempt: 1,
        location,
        min_level: None,
        max_level: Some(3),
        max_rate: None,
    };
    change(&mut request);
    serde_json::to_string(&request).unwrap()
}

/// A conversation under way, of which the beginning was heard.
async fn stay(instance: &Instance, root: &Path, request: &str) -> impl Sized + use<> {
    fs::write(root.join("stay"), "").unwrap();
    let mut stream = instance.begin(root, "replication", "POST", LOCAL_BACKUP_PATH, request).await;
    let mut heard = Vec::new();
    while !heard.windows(7).any(|part| part == b"bytesDo") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "{}", String::from_utf8_lossy(&heard));
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_lasts_as_long_as_its_connection_and_there_is_one_at_a_time() {
    if ran_as_postgres("local_backup::a_backup_lasts_as_long_as_its_connection_and_there_is_one_at_a_time") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let root = cluster.root.path().to_owned();
    cluster.stand_in(PROCESS);
    cluster.register.edit(|register| register.quorum.acks = 0);
    let instance = bring_up(&cluster, 1).await.pop().unwrap();
    let request = render_request(&instance, |_| ());
    let ask = async |client: &str, request: &str| instance.ask(&root, client, "POST", LOCAL_BACKUP_PATH, request).await;

    assert!(ask("operator", &request).await.0.contains("403"), "it has no business with it");
    let elsewhere = render_request(&instance, |request| request.location.store.bucket = "other".into());
    let (refused, why) = ask("replication", &elsewhere).await;
    assert!(refused.contains("409") && why.contains("object store"), "{refused} {why}");

    let (answered, said) = ask("replication", &request).await;
    assert!(answered.contains("200") && said.contains("bytesDone") && said.contains("the last word"), "{said}");
    let order: LocalBackupOrder = serde_json::from_slice(&fs::read(root.join("order")).unwrap()).unwrap();
    assert_eq!(order.request.location.store.credentials_dir, "/nowhere", "the instance's own");
    assert_eq!(
        (order.data.as_str(), order.request.max_level),
        (instance.agent.layout.pgdata.to_str().unwrap(), Some(3))
    );

    let connection = stay(&instance, &root, &request).await;
    let (busy, why) = ask("replication", &request).await;
    assert!(busy.contains("409") && why.contains("under way"), "{busy} {why}");
    assert!(!root.join("ended").exists());
    drop(connection);
    wait_until("the process is told to end", || root.join("ended").exists()).await;
    fs::remove_file(root.join("stay")).unwrap();
    wait_until("another one may begin", || instance.agent.local_backups.available_permits() == 1).await;
    assert!(ask("replication", &request).await.0.contains("200"));

    fs::remove_file(root.join("ended")).unwrap();
    let _connection = stay(&instance, &root, &request).await;
    instance.terminate().await;
    wait_until("it ends with the instance", || root.join("ended").exists()).await;
}

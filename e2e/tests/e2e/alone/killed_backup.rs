//! A backup whose Job dies in the middle leaves nothing visible and nothing open in the store, and is tried again.

use std::{collections::BTreeSet, time::Duration};

use pgherd_crds::names::keys;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, wait_backup},
    kubectl::{apply, kubectl},
    postgres::psql,
    store,
    wait::{Look, until},
};

use crate::{
    alone_in_namespace,
    checks::{claim, fill},
    manifests,
};

/// How often the stream is looked at: it takes a few seconds only.
const GLANCE: Duration = Duration::from_millis(50);

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_killed_backup_leaves_nothing_behind_and_completes_when_tried_again() -> Result<()> {
    alone_in_namespace("e2e-killed", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 1, &manifests::backup_to_store())).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(1).await?;
        psql(namespace, "c-0", "app", &fill(2_200_000)).await?;
        let size = psql(namespace, "c-0", "app", "SELECT pg_size_pretty(pg_database_size('app'))").await?;

        let before = store::open_uploads().await?;
        apply(namespace, &manifests::backup("b", "c")).await?;
        let opened = wait_uploads(&before).await?;
        let selector = format!("{}=b", keys::BACKUP);
        kubectl(namespace, &["delete", "pods", "-l", &selector, "--force", "--grace-period=0", "--wait=false"]).await?;
        println!("killed while {} uploads were open, database of {size}", opened.len());
        let records = records(namespace).await?;
        claim(records.is_empty(), || format!("a backup is visible although its Job died: {records:?}"))?;

        let done = wait_backup(client, namespace, "b", |_| ()).await?.status.unwrap_or_default();
        claim(done.restorable == Some(true), || "the second attempt is not restorable".to_string())?;
        let id = done.id.ok_or("the backup has no id")?;
        let records = self::records(namespace).await?;
        claim(records.len() == 1 && records.iter().all(|key| key.contains(&id)), || {
            format!("visible are {records:?} instead of {id} alone")
        })?;
        until("the dead attempt's uploads to be aborted", PATIENCE, async || {
            let left: Vec<String> = store::open_uploads().await?.difference(&before).cloned().collect();
            Ok(if left.is_empty() {
                Look::Done(())
            } else {
                Look::NotYet(format!("open: {left:?}, of the dead attempt: {opened:?}"))
            })
        })
        .await
    })
    .await
}

/// Waits until the backup has begun to upload.
async fn wait_uploads(before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let begun = std::time::Instant::now();
    loop {
        let opened: BTreeSet<String> = store::open_uploads().await?.difference(before).cloned().collect();
        if !opened.is_empty() {
            return Ok(opened);
        }
        claim(begun.elapsed() < PATIENCE, || "the backup uploads nothing".to_string())?;
        tokio::time::sleep(GLANCE).await;
    }
}

/// What makes a backup visible.
async fn records(namespace: &str) -> Result<Vec<String>> {
    let all = store::keys(&format!("{namespace}/")).await?;
    Ok(all.into_iter().filter(|key| key.ends_with("/backup.json")).collect())
}

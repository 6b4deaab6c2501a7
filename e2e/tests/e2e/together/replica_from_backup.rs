//! A new replica is built from a backup if the archive reaches from there to the primary; if a segment is missing, from an
//! instance, and status names the segment.

use pgherd_core::lsn::Lsn;
use pgherd_crds::names::keys;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::apply,
    postgres::psql,
    store,
    wait::{Look, until},
};
use serde_json::json;

use crate::{
    checks::{DIGEST, archive_segment, claim, fill, source_of, take_backup, wait_follows},
    in_namespace, manifests,
};

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_new_replica_comes_from_the_backup_and_with_a_hole_in_the_archive_from_an_instance() -> Result<()> {
    in_namespace("e2e-replica", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 2, &manifests::backup_to_store())).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(2).await?;
        let primary = cluster.primary().await?;
        psql(namespace, &primary, "app", &fill(200_000)).await?;
        let backup = take_backup(client, namespace, "first", "c").await?.status.unwrap_or_default();
        let id = backup.id.ok_or("the backup has no id")?;

        grow(&cluster, 3).await?;
        let source = source_of(&cluster, "c-2").await?;
        println!("c-2: {}", source.reason);
        claim(source.source == "backup" && source.from == id, || {
            format!("c-2 was built from {} {}: {}", source.source, source.from, source.reason)
        })?;
        claim(source.reason.contains(&id), || format!("the reason does not name the backup: {}", source.reason))?;

        rebuild(&cluster, "c-2", &id).await?;

        let stop: Lsn = backup.stop_lsn.ok_or("the backup has no stop LSN")?.parse()?;
        let removed = make_hole(namespace, &primary, stop).await?;
        // Not even the user's wish makes a backup usable that the WAL does not reach.
        cluster.patch(json!({"spec": {"replicaSource": "Backup"}})).await?;
        grow(&cluster, 4).await?;
        let source = source_of(&cluster, "c-3").await?;
        println!("c-3: {}", source.reason);
        claim(source.source == "instance", || {
            format!("c-3 was built from {} {} despite the hole", source.source, source.from)
        })?;
        claim(source.reason.contains(&removed), || format!("the reason does not name {removed}: {}", source.reason))
    })
    .await
}

/// On request an instance is built anew, from the backup again.
async fn rebuild(cluster: &Cluster, pod: &str, backup: &str) -> Result<()> {
    cluster.patch(json!({"metadata": {"annotations": {keys::REBUILD: pod}}})).await?;
    let source = until(&format!("{pod} to be built anew"), PATIENCE, async || {
        let source = source_of(cluster, pod).await?;
        Ok(if source.reason.contains("asked for") { Look::Done(source) } else { Look::NotYet(source.reason) })
    })
    .await?;
    println!("{pod} again: {}", source.reason);
    claim(source.from == backup, || format!("{pod} was built from {} {}", source.source, source.from))?;
    cluster.wait_ready(3).await?;
    wait_follows(cluster, pod).await?;
    let primary = cluster.primary().await?;
    let (ours, theirs) =
        (psql(&cluster.namespace, pod, "app", DIGEST).await?, psql(&cluster.namespace, &primary, "app", DIGEST).await?);
    claim(ours == theirs, || format!("{pod} has {ours} instead of {theirs}"))
}

async fn grow(cluster: &Cluster, instances: u32) -> Result<()> {
    cluster.scale(instances).await?;
    cluster.wait_ready(instances).await?;
    let new = format!("{}-{}", cluster.name, instances - 1);
    wait_follows(cluster, &new).await?;
    let (namespace, primary) = (&cluster.namespace, cluster.primary().await?);
    let (ours, theirs) = (psql(namespace, &new, "app", DIGEST).await?, psql(namespace, &primary, "app", DIGEST).await?);
    claim(ours == theirs, || format!("{new} has {ours} instead of {theirs}"))
}

/// Archives some segments after the backup's end and removes one of them from the store; returns its name. The checkpoint
/// moves the place from which the primary would keep WAL for a new slot beyond them.
async fn make_hole(namespace: &str, primary: &str, stop: Lsn) -> Result<String> {
    let mut segments = Vec::new();
    for _ in 0..4 {
        segments.push(archive_segment(namespace, primary).await?);
    }
    psql(namespace, primary, "postgres", "CHECKPOINT").await?;
    archive_segment(namespace, primary).await?;
    let after = psql(namespace, primary, "postgres", &format!("SELECT pg_walfile_name('{stop}')")).await?;
    let removed =
        segments.into_iter().find(|segment| *segment > after).ok_or("no segment after the backup was archived")?;
    let all = store::keys(&format!("{namespace}/")).await?;
    let key = all
        .iter()
        .find(|key| key.ends_with(&format!("/{removed}.zst")))
        .ok_or_else(|| format!("{removed} is not in the store"))?;
    store::mc(&["rm", &format!("local/{}/{key}", store::BUCKET)]).await?;
    Ok(removed)
}

//! A full backup and two incremental ones: the last comes back whole, also where tables shrank and grew again and databases went
//! and came; it verifies, makes a replica, and what it is made of stays.

use kube::{Api, Client};
use pgherd_crds::{Backup, BackupStatus, v1alpha1::backup::BackupKind};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    store,
    wait::{Look, until},
};

use super::{
    backup_restore::check_recovered,
    retention::{SOME_RUNS, wait_schedule},
};
use crate::{
    checks::{DIGEST, archive_segment, claim, fill, source_of, wait_follows},
    in_namespace, manifests,
};

/// Shrinks the file of `shrink` and lets it grow again with other rows.
const SHRINK_AND_GROW: &str = "DELETE FROM shrink WHERE id > 50; VACUUM (TRUNCATE) shrink; \
     INSERT INTO shrink SELECT g, md5((g * 3)::text) FROM generate_series(1000, 9000) g; \
     UPDATE goods SET price = price + 1 WHERE id <= 4000";
const SHRUNK_DIGEST: &str = "SELECT count(*) || ' ' || sum(hashtext(id::text || name)::bigint) FROM shrink";

/// The part of a spec that has PostgreSQL note what changes.
const SUMMARIES: &str = "  postgresql: {parameters: {summarize_wal: \"on\"}}\n";

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_chain_of_incremental_backups_comes_back_whole_and_stays_whole() -> Result<()> {
    in_namespace("e2e-incremental", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 1, &format!("{SUMMARIES}{}", manifests::backup_to_store()))).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(1).await?;
        let ids = make_chain(client, namespace).await?;
        let expected = psql(namespace, "c-0", "app", DIGEST).await?;
        let shrunk = psql(namespace, "c-0", "app", SHRUNK_DIGEST).await?;
        psql(namespace, "c-0", "app", "CREATE TABLE later AS SELECT generate_series(1, 1000) AS id").await?;
        archive_segment(namespace, "c-0").await?;

        let restored = Cluster::new(client, namespace, "restored");
        check_recovered(&restored, &manifests::recovery_from_object("b3"), &expected).await?;
        let found = psql(namespace, "restored-0", "app", SHRUNK_DIGEST).await?;
        claim(found == shrunk, || format!("shrink has {found} instead of {shrunk}"))?;
        let databases = psql(namespace, "restored-0", "postgres", "SELECT datname FROM pg_database ORDER BY 1").await?;
        claim(databases.contains("fresh") && !databases.contains("doomed"), || format!("the databases: {databases}"))?;
        let rows = psql(namespace, "restored-0", "fresh", "SELECT count(*) FROM there").await?;
        claim(rows == "5000", || format!("{rows} rows in the new database"))?;
        kubectl(namespace, &["delete", "pgc/restored", "--timeout=120s"]).await?;

        cluster.scale(2).await?;
        cluster.wait_ready(2).await?;
        wait_follows(&cluster, "c-1").await?;
        let source = source_of(&cluster, "c-1").await?;
        println!("c-1: {}", source.reason);
        claim(source.source == "backup" && source.from == ids[2], || {
            format!("c-1 was built from {} {}: {}", source.source, source.from, source.reason)
        })?;

        verify(client, namespace).await?;
        refuse_to_delete(client, namespace, &ids[0]).await?;
        retain(client, namespace, &ids).await
    })
    .await
}

/// Three backups with changes in between; returns their ids.
async fn make_chain(client: &Client, namespace: &str) -> Result<Vec<String>> {
    psql(namespace, "c-0", "app", &fill(400_000)).await?;
    psql(
        namespace,
        "c-0",
        "app",
        "CREATE TABLE shrink AS SELECT g AS id, md5(g::text) AS name FROM generate_series(1, 50000) g",
    )
    .await?;
    psql(namespace, "c-0", "postgres", "CREATE DATABASE doomed").await?;
    psql(namespace, "c-0", "doomed", "CREATE TABLE gone AS SELECT generate_series(1, 5000) AS id").await?;
    let first = take_incremental(client, namespace, "b1").await?;
    let why = first.full_reason.clone().unwrap_or_default();
    claim(first.kind == Some(BackupKind::Full) && why.contains("no earlier backup"), || format!("{first:?}"))?;

    shrink_and_grow(namespace).await?;
    psql(namespace, "c-0", "postgres", "DROP DATABASE doomed").await?;
    psql(namespace, "c-0", "postgres", "CREATE DATABASE fresh").await?;
    psql(namespace, "c-0", "fresh", "CREATE TABLE there AS SELECT generate_series(1, 5000) AS id").await?;
    let second = take_incremental(client, namespace, "b2").await?;
    claim(second.parent == first.id && second.chain_length == Some(2), || format!("{second:?}"))?;

    psql(
        namespace,
        "c-0",
        "app",
        "TRUNCATE shrink; INSERT INTO shrink SELECT g, md5(g::text) FROM generate_series(1, 30000) g",
    )
    .await?;
    shrink_and_grow(namespace).await?;
    let third = take_incremental(client, namespace, "b3").await?;
    claim(third.parent == second.id && third.chain_length == Some(3), || format!("{third:?}"))?;
    for (name, status) in [("b1", &first), ("b2", &second), ("b3", &third)] {
        println!("{name}: {:?} read, {:?} stored, in {:?}", status.bytes_done, status.stored_bytes, status.duration);
    }
    claim(third.stored_bytes.map(|bytes| bytes * 2) < first.stored_bytes, || {
        format!("an incremental backup of {:?} bytes after a full one of {:?}", third.stored_bytes, first.stored_bytes)
    })?;
    [first, second, third].into_iter().map(|status| status.id.ok_or("a backup has no id".into())).collect()
}

/// VACUUM cannot run in a transaction with others.
async fn shrink_and_grow(namespace: &str) -> Result<()> {
    for statement in SHRINK_AND_GROW.split("; ") {
        psql(namespace, "c-0", "app", statement).await?;
    }
    Ok(())
}

async fn take_incremental(client: &Client, namespace: &str, name: &str) -> Result<BackupStatus> {
    let yaml = manifests::backup(name, "c").replace("spec: {", "spec: {incremental: {}, ");
    apply(namespace, &yaml).await?;
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until(&format!("backup {name} to be complete, with its WAL"), PATIENCE, async || {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok(if status.restorable == Some(true) && status.pitr_ready == Some(true) {
            Look::Done(status)
        } else {
            Look::NotYet(format!("{status:?}"))
        })
    })
    .await
}

/// The chain is restored for a trial.
async fn verify(client: &Client, namespace: &str) -> Result<()> {
    let more = "  verify:\n    every: 7d\n    sql: [\"select count(*) = 400000 from goods\"]\n";
    apply(namespace, &format!("{}{more}", manifests::schedule("s", "c", "0 0 1 1 *"))).await?;
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until("the last backup of the chain to be verified", PATIENCE, async || {
        let status = api.get("b3").await?.status.unwrap_or_default();
        Ok(if status.verified_at.is_some() { Look::Done(()) } else { Look::NotYet(format!("{:?}", status.conditions)) })
    })
    .await?;
    kubectl(namespace, &["delete", "pgbs/s"]).await.map(drop)
}

/// What others are made of is not deleted, and its object says why; without its data it may go.
async fn refuse_to_delete(client: &Client, namespace: &str, id: &str) -> Result<()> {
    kubectl(namespace, &["patch", "pgb/b1", "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Delete"}}"#]).await?;
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until("the finalizer", PATIENCE, async || {
        let finalizers = api.get("b1").await?.metadata.finalizers.unwrap_or_default();
        Ok(if finalizers.is_empty() { Look::NotYet("none".to_string()) } else { Look::Done(()) })
    })
    .await?;
    kubectl(namespace, &["delete", "pgb/b1", "--wait=false"]).await?;
    until("the deletion of the parent to be refused", PATIENCE, async || {
        let status = api.get("b1").await?.status.unwrap_or_default();
        let said: Vec<String> = status.conditions.iter().map(|c| format!("{}: {}", c.reason, c.message)).collect();
        let refused = said.iter().any(|text| text.contains("DataKept") && text.contains("incremental backup"));
        Ok(if refused { Look::Done(()) } else { Look::NotYet(said.join("; ")) })
    })
    .await?;
    claim(has_record(namespace, id).await?, || format!("{id} was deleted"))?;
    kubectl(namespace, &["patch", "pgb/b1", "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Retain"}}"#]).await?;
    until("the object to go without its data", PATIENCE, async || {
        Ok(if api.get_opt("b1").await?.is_none() { Look::Done(()) } else { Look::NotYet("it is there".to_string()) })
    })
    .await?;
    claim(has_record(namespace, id).await?, || format!("{id} was deleted with its object"))
}

/// A schedule goes on with the chain, keeps one backup, and with it all that it is made of.
async fn retain(client: &Client, namespace: &str, ids: &[String]) -> Result<()> {
    let schedule = manifests::schedule("s", "c", "* * * * *");
    // The new replica knows no WAL from before it was made.
    let more = "  incremental: {maxChain: 50}\n  target: Primary\n  retention: {keepLast: 1}\n";
    apply(namespace, &format!("{schedule}{more}")).await?;
    let status = wait_schedule(client, namespace, SOME_RUNS, "retention to run", |status| {
        status.retention.as_ref().is_some_and(|retention| retention.kept.is_some())
    })
    .await?;
    kubectl(namespace, &["patch", "pgbs/s", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#]).await?;
    let retention = status.retention.unwrap_or_default();
    println!("retention: {retention:?}");
    claim(retention.deleted.is_empty(), || format!("{:?} were deleted", retention.deleted))?;
    for id in ids {
        claim(has_record(namespace, id).await?, || format!("{id} is not in the store any more"))?;
    }
    Ok(())
}

async fn has_record(namespace: &str, id: &str) -> Result<bool> {
    let keys = store::keys(&format!("{namespace}/")).await?;
    Ok(keys.iter().any(|key| key.ends_with(&format!("/base/{id}/backup.json"))))
}

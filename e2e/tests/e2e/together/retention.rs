//! Retention deletes old backups and their WAL from the store, what stays can be restored, and a Backup's data goes with it
//! where that is asked for.

use std::{collections::BTreeSet, time::Duration};

use kube::{Api, Client};
use pgherd_crds::{Backup, BackupSchedule, BackupScheduleStatus};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    store,
    wait::{Look, until},
};

use crate::{
    checks::{DIGEST, archive_segment, claim, fill, take_backup},
    in_namespace, manifests,
};

/// Three runs of an every-minute schedule, and what comes between.
pub(crate) const SOME_RUNS: Duration = Duration::from_secs(420);

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn retention_deletes_old_backups_and_wal_and_what_stays_is_restored() -> Result<()> {
    in_namespace("e2e-retention", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 1, &manifests::backup_to_store())).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(1).await?;
        psql(namespace, "c-0", "app", &fill(50_000)).await?;
        let expected = psql(namespace, "c-0", "app", DIGEST).await?;
        let oldest_wal = archive_segment(namespace, "c-0").await?;
        claim(has_wal(namespace, &oldest_wal).await?, || format!("{oldest_wal} is not in the store"))?;

        let schedule = format!("{}  retention: {{keepLast: 1}}\n", manifests::schedule("s", "c", "* * * * *"));
        apply(namespace, &schedule).await?;
        let pruned = wait_schedule(client, namespace, SOME_RUNS, "retention to delete", |status| {
            status.retention.as_ref().is_some_and(|retention| !retention.deleted.is_empty())
        })
        .await?;
        // No further run: what is looked at must not change meanwhile.
        kubectl(namespace, &["patch", "pgbs/s", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#]).await?;
        let retention = pruned.retention.ok_or("the schedule says nothing of retention")?;
        println!("retention: {retention:?}");
        for id in &retention.deleted {
            let left = backup_keys(namespace, id).await?;
            claim(left.is_empty(), || format!("{id} was deleted and left {left:?}"))?;
        }
        claim(retention.bytes_freed.unwrap_or_default() > 0, || "no bytes were freed".to_string())?;
        claim(!retention.next.is_empty(), || "it is not said what goes next".to_string())?;
        claim(!has_wal(namespace, &oldest_wal).await?, || format!("{oldest_wal} is still in the store"))?;
        let objects: Api<Backup> = Api::namespaced(client.clone(), namespace);
        until("the objects of deleted backups to go", PATIENCE, async || {
            let ids: Vec<String> = objects
                .list(&kube::api::ListParams::default())
                .await?
                .items
                .into_iter()
                .filter_map(|backup| backup.status?.id)
                .filter(|id| retention.deleted.contains(id))
                .collect();
            Ok(if ids.is_empty() { Look::Done(()) } else { Look::NotYet(format!("objects of {ids:?}")) })
        })
        .await?;

        check_deletion_with_data(client, namespace).await?;
        kubectl(namespace, &["delete", "pgbs/s"]).await?;
        let restored = Cluster::new(client, namespace, "restored");
        apply(namespace, &manifests::cluster("restored", 1, &manifests::recovery_from_bucket("c"))).await?;
        restored.wait_ready(1).await?;
        let found = psql(namespace, "restored-0", "app", DIGEST).await?;
        claim(found == expected, || format!("restored: {found} instead of {expected}"))
    })
    .await
}

/// The data of a Backup with `deletionPolicy: Delete` goes before the object does; as the newest one it stays, and says so.
async fn check_deletion_with_data(client: &Client, namespace: &str) -> Result<()> {
    apply(namespace, &manifests::backup_with_data("gone", "c")).await?;
    let gone = pgherd_e2e::cluster::wait_backup(client, namespace, "gone", |_| ()).await?;
    let id = gone.status.and_then(|status| status.id).ok_or("the backup has no id")?;
    kubectl(namespace, &["delete", "pgb/gone", "--wait=false"]).await?;
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until("the newest backup's data to be refused", PATIENCE, async || {
        let status = api.get("gone").await?.status.unwrap_or_default();
        let said: Vec<String> = status.conditions.iter().map(|c| format!("{}: {}", c.reason, c.message)).collect();
        let refused = said.iter().any(|text| text.contains("DataKept") && text.contains("newest"));
        Ok(if refused { Look::Done(()) } else { Look::NotYet(said.join("; ")) })
    })
    .await?;
    claim(!backup_keys(namespace, &id).await?.is_empty(), || format!("the newest backup {id} was deleted"))?;
    take_backup(client, namespace, "newer", "c").await?;
    until("the older backup's data and object to go", SOME_RUNS, async || {
        let object = api.get_opt("gone").await?;
        let left = backup_keys(namespace, &id).await?;
        Ok(match object {
            None if left.is_empty() => Look::Done(()),
            None => return Err(format!("the object went before its data: {left:?}").into()),
            Some(_) => Look::NotYet(format!("{} objects in the store", left.len())),
        })
    })
    .await
}

/// Waits until the schedule's status is as wanted.
pub(crate) async fn wait_schedule(
    client: &Client,
    namespace: &str,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&BackupScheduleStatus) -> bool,
) -> Result<BackupScheduleStatus> {
    let api: Api<BackupSchedule> = Api::namespaced(client.clone(), namespace);
    let wanted = &wanted;
    until(what, limit, async || {
        let status = api.get("s").await?.status.unwrap_or_default();
        Ok(if wanted(&status) { Look::Done(status) } else { Look::NotYet(format!("{status:?}")) })
    })
    .await
}

/// The keys of a backup in the store.
async fn backup_keys(namespace: &str, id: &str) -> Result<Vec<String>> {
    let part = format!("/base/{id}/");
    Ok(store::keys(&format!("{namespace}/")).await?.into_iter().filter(|key| key.contains(&part)).collect())
}

async fn has_wal(namespace: &str, segment: &str) -> Result<bool> {
    let names: BTreeSet<String> = store::keys(&format!("{namespace}/")).await?.into_iter().collect();
    Ok(names.iter().any(|key| key.ends_with(&format!("/{segment}.zst"))))
}

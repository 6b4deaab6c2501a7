//! What the faults of the object store have in common: a cluster that archives and backs up through a proxy on which things go
//! wrong, and what must hold afterwards. The archive catches up, every visible backup is whole, nothing half-made is left, and a
//! cluster that is made from the store has every row that the primary has.

use std::{collections::BTreeSet, time::Duration};

use kube::{Api, Client};
use pgherd_crds::{Backup, BackupStatus, v1alpha1::backup::BackupPhase};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::{major, psql},
    store::{self, keys},
    store_faults::StoreProxy,
    wait::{Look, until},
};

use crate::{
    registry::Mode,
    run::{NAMESPACE, remove_cluster},
    scene::{Scene, claim},
};

/// Rows for a backup to carry: 60 MB, so that it takes several parts.
const FILL: &str = "CREATE TABLE IF NOT EXISTS goods AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS name \
                    FROM generate_series(1, 500000) g";
/// Everything that clients wrote, in a count and a hash for each table.
const DIGEST: &str = "SELECT (SELECT count(*) || ' ' || coalesce(sum(hashtext(l::text)::bigint), 0) FROM ledger l) || ' ' || \
                      (SELECT count(*) || ' ' || coalesce(sum(hashtext(l::text)::bigint), 0) FROM lists l) || ' ' || \
                      (SELECT count(*) FROM goods)";

/// The store of a scene.
pub(crate) struct Backed {
    pub(crate) proxy: StoreProxy,
    /// The database system, which is a part of each key.
    system_id: String,
    /// Uploads that were open before the fault, whoever's they are.
    uploads: BTreeSet<String>,
}

/// The proxy, which a cluster needs before it is made.
pub(crate) async fn provide(client: &Client) -> Result<StoreProxy> {
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(client.clone(), NAMESPACE);
    if secrets.get_opt("minio").await?.is_none() {
        store::forget(&format!("{NAMESPACE}/")).await?;
        store::provide_credentials(client, NAMESPACE).await?;
    }
    StoreProxy::start(client, NAMESPACE).await
}

/// What is there before the fault: a backup of a cluster with some data, and no object of an earlier fault.
pub(crate) async fn begin(cluster: &Cluster, proxy: StoreProxy) -> Result<Backed> {
    kubectl(NAMESPACE, &["delete", "pgbs,pgb", "--all", "--timeout=120s"]).await?;
    let system_id = cluster.status().await?.system_id.ok_or("a cluster that is Ready has no system id")?;
    psql(NAMESPACE, &cluster.primary().await?, "app", FILL).await?;
    let backed = Backed { proxy, system_id, uploads: store::open_uploads().await? };
    if backed.records(&cluster.name).await?.is_empty() {
        ask_backup(&cluster.name, "base", "").await?;
        wait_completed(&cluster.client, "base").await?;
    }
    Ok(backed)
}

impl Backed {
    /// The folder of a cluster of this database system in the store.
    pub(crate) fn root(&self, cluster: &str) -> String {
        format!("{NAMESPACE}/{cluster}/{}", self.system_id)
    }

    /// What makes backups visible.
    pub(crate) async fn records(&self, cluster: &str) -> Result<Vec<String>> {
        let all = keys(&format!("{}/base/", self.root(cluster))).await?;
        Ok(all.into_iter().filter(|key| key.ends_with("/backup.json")).collect())
    }

    /// The source of a recovery from the bucket, as lines of a spec.
    pub(crate) fn recovery(&self, cluster: &str, target: &str) -> String {
        format!(
            "  bootstrap:\n    recovery:\n      from:\n        cluster: {cluster}\n        systemId: \"{}\"\n{}{target}",
            self.system_id,
            StoreProxy::object_store_yaml(NAMESPACE, 8)
        )
    }
}

impl Scene {
    /// The way to the store.
    pub(crate) fn backed(&self) -> Result<&Backed> {
        self.backed.as_ref().ok_or_else(|| "this cluster has no store".into())
    }
}

/// A cluster of one instance; `more` are lines of its spec.
pub(crate) fn single(name: &str, more: &str) -> String {
    format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: PostgresCluster\nmetadata: {{name: {name}}}\nspec:\n  version: {}\n  instances: 1\n  \
         storage: {{size: 1Gi}}\n{more}",
        major()
    )
}

/// Applies a Backup; `more` is the rest of its spec, beginning with a comma.
pub(crate) async fn ask_backup(cluster: &str, name: &str, more: &str) -> Result<()> {
    let manifest = format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: {cluster}}}{more}}}\n"
    );
    apply(NAMESPACE, &manifest).await.map(drop)
}

/// Waits until a Backup has completed or failed, as it may for a fault.
pub(crate) async fn wait_ended(client: &Client, name: &str) -> Result<BackupStatus> {
    let api: Api<Backup> = Api::namespaced(client.clone(), NAMESPACE);
    until(&format!("backup {name} to end"), PATIENCE, async || {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok(match status.phase {
            Some(BackupPhase::Completed | BackupPhase::Failed) => Look::Done(status),
            _ => Look::NotYet(format!("{status:?}")),
        })
    })
    .await
}

/// Waits until a Backup is restorable and the archive reaches its end.
pub(crate) async fn wait_completed(client: &Client, name: &str) -> Result<BackupStatus> {
    let ended = wait_ended(client, name).await?;
    claim(ended.restorable == Some(true), || format!("backup {name}: {:?} {:?}", ended.phase, ended.error))?;
    let api: Api<Backup> = Api::namespaced(client.clone(), NAMESPACE);
    until(&format!("the WAL of backup {name}"), PATIENCE, async || {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok(if status.pitr_ready == Some(true) { Look::Done(status) } else { Look::NotYet(format!("{status:?}")) })
    })
    .await
}

/// Ends the present WAL segment of a primary; returns its name.
pub(crate) async fn end_segment(primary: &str) -> Result<String> {
    let sql = "SELECT pg_logical_emit_message(false, 'e2e', 'x'); SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
    let name = psql(NAMESPACE, primary, "postgres", sql).await?;
    psql(NAMESPACE, primary, "postgres", "SELECT pg_switch_wal()").await?;
    Ok(name.lines().last().unwrap_or_default().to_string())
}

/// How many files wait for the archive.
pub(crate) async fn count_waiting(primary: &str) -> Result<u64> {
    let sql = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    Ok(psql(NAMESPACE, primary, "postgres", sql).await?.parse()?)
}

/// Ends a segment and waits until nothing waits for the archive any more, and the status says so.
pub(crate) async fn wait_archived(cluster: &Cluster) -> Result<()> {
    end_segment(&cluster.primary().await?).await?;
    until("the archive to catch up", PATIENCE, async || {
        let waiting = count_waiting(&cluster.primary().await?).await?;
        Ok(if waiting == 0 { Look::Done(()) } else { Look::NotYet(format!("{waiting} files wait")) })
    })
    .await?;
    cluster.wait_condition("Archiving", "True").await.map(drop)
}

/// Removes a cluster that a fault made.
pub(crate) async fn forget_cluster(client: &Client, name: &str) -> Result<()> {
    kubectl(NAMESPACE, &["delete", "postgrescluster", name, "--ignore-not-found", "--timeout=120s"]).await?;
    remove_cluster(&Cluster::new(client, NAMESPACE, name)).await
}

/// What holds after each fault of the store; nobody writes any more.
pub(crate) async fn check(scene: &Scene) -> Result<()> {
    let backed = scene.backed()?;
    wait_archived(&scene.cluster).await?;
    let prefix = format!("{}/base/", backed.root(Mode::Backed.cluster()));
    until("nothing half-made to be left in the store", PATIENCE, async || {
        let all = keys(&prefix).await?;
        let folder =
            |key: &String| key.strip_prefix(&prefix).and_then(|rest| rest.split('/').next()).map(str::to_owned);
        let whole: BTreeSet<_> = all.iter().filter(|key| key.ends_with("/backup.json")).filter_map(folder).collect();
        // Of a Job that died before it began an upload nobody knows whether it lives: its announcement stays for 15 minutes.
        let begun = all.iter().filter(|key| !key.ends_with("/inprogress.json")).filter_map(folder);
        let left: BTreeSet<_> = begun.filter(|id| !whole.contains(id)).collect();
        let open = store::open_uploads().await?.difference(&backed.uploads).count();
        Ok(if left.is_empty() && open == 0 {
            Look::Done(())
        } else {
            Look::NotYet(format!("objects of {left:?}, {open} open uploads"))
        })
    })
    .await?;
    let recovery = backed.recovery(Mode::Backed.cluster(), "");
    check_copy(scene, "copy", &recovery, None).await
}

/// Makes a cluster from the store and holds its rows against those of the primary, or against what they were at a time.
pub(crate) async fn check_copy(scene: &Scene, name: &str, recovery: &str, expected: Option<&str>) -> Result<()> {
    let expected = match expected {
        Some(expected) => expected.to_owned(),
        None => digest(&scene.cluster.primary().await?).await?,
    };
    let begun = std::time::Instant::now();
    apply(NAMESPACE, &single(name, recovery)).await?;
    let copy = Cluster::new(&scene.cluster.client, NAMESPACE, name);
    copy.wait_ready(1).await?;
    let found = digest(&copy.primary().await?).await?;
    claim(found == expected, || format!("{name}, made from the store, has {found} instead of {expected}"))?;
    scene.note(format!("a copy from the store is the same, made in {} s", begun.elapsed().as_secs()));
    forget_cluster(&scene.cluster.client, name).await
}

/// What clients wrote, as a primary has it.
pub(crate) async fn digest(primary: &str) -> Result<String> {
    psql(NAMESPACE, primary, "app", DIGEST).await
}

/// Waits until the proxy has let so many requests suffer; it is looked at often, since some moments are short.
pub(crate) async fn wait_hits(scene: &Scene, wanted: u64) -> Result<u64> {
    let (proxy, begun) = (&scene.backed()?.proxy, std::time::Instant::now());
    loop {
        let hits = proxy.hits().await?;
        if hits >= wanted {
            return Ok(hits);
        }
        claim(begun.elapsed() < PATIENCE, || format!("the fault befell {hits} requests instead of {wanted}"))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

//! The steps of the demo, in order.

use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use pgherd_crds::{Backup, BackupSchedule, names::keys, v1alpha1::backup::BackupPhase};
use pgherd_e2e::{
    Result,
    cluster::{self, Cluster, PATIENCE},
    kubectl::{apply, kubectl, script},
    namespace,
    postgres::psql,
    store,
    wait::{Look, until},
    writer::WriterPod,
};
use serde_json::json;

use crate::{failover, report::Report};

/// Where the demo's objects are.
pub(crate) const NAMESPACE: &str = "demo";

/// Rows besides the ledger, so that a backup has something to carry: about 150 MB.
const FILL: &str = "CREATE TABLE goods AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS name, g % 1000 AS price \
                    FROM generate_series(1, 1200000) g; ALTER TABLE goods ADD PRIMARY KEY (id)";
const COMPARE: &str = "SELECT count(*) || ' ' || sum(hashtext(id::text || name || price::text)::bigint) FROM goods";

pub(crate) async fn run(client: &Client, report: &mut Report) -> Result<()> {
    let shop = Cluster::new(client, NAMESPACE, "shop");
    report.step("pgherd is installed by its Helm chart", install(client)).await?;
    report.step("a cluster of three on three nodes becomes Ready", create(&shop)).await?;
    let writer =
        report.step("a writer inserts through shop-rw without pause; 150 MB of other data", write(&shop)).await?;
    let backup = report.step("the schedule streams a backup to MinIO", backup(client, "shop-often")).await;
    let backup = note_backup(report, backup)?;
    let source = report.step("a fourth replica is built from that backup and follows the primary", grow(&shop)).await?;
    report.replica.source = source;
    let lagging = report.step("one replica is made to lag", failover::make_lag(&shop, &writer)).await?;
    let cut = report
        .step(
            "the primary's node is cut off; the replica furthest ahead takes over",
            failover::cut(&shop, &writer, &lagging),
        )
        .await?;
    report.failover = cut.figures;
    report
        .step(
            "the node comes back and the old primary rejoins as a replica",
            failover::heal(&shop, &cut.node, &cut.old_primary),
        )
        .await?;
    let verified = report.step("every acknowledged row is there", check_ledger(&writer)).await?;
    report.rows.acknowledged = verified.acknowledged;
    report.rows.lost = verified.lost;
    report.step("a second cluster is restored from the backup and compared", restore(&shop, &writer, &backup)).await?;
    Ok(())
}

fn note_backup(report: &mut Report, backup: Result<Backup>) -> Result<String> {
    let backup = backup?;
    let status = backup.status.unwrap_or_default();
    let seconds = |text: Option<String>| text.and_then(|t| t.parse::<jiff::Timestamp>().ok());
    report.backup.bytes = status.bytes_done.unwrap_or_default();
    report.backup.stored_bytes = status.stored_bytes.unwrap_or_default();
    report.backup.peak_rss_bytes = status.peak_rss_bytes.unwrap_or_default();
    if let (Some(from), Some(to)) = (seconds(status.started_at), seconds(status.completed_at)) {
        report.backup.seconds = to.duration_since(from).as_secs_f64();
    }
    if status.restorable != Some(true) {
        return Err("the backup completed but is not restorable".into());
    }
    backup.metadata.name.ok_or_else(|| "a Backup without a name".into())
}

async fn install(client: &Client) -> Result<()> {
    // A node that an interrupted run left cut off would fail everything after it.
    for node in 1..=3 {
        drop(script("node.sh", &["heal", &format!("kn{node}")]).await);
    }
    namespace::recreate(NAMESPACE).await?;
    store::provide_credentials(client, NAMESPACE).await?;
    cluster::install_operator().await
}

async fn create(shop: &Cluster) -> Result<()> {
    println!("   kubectl apply -f e2e/demo/quickstart.yaml");
    apply(NAMESPACE, include_str!("quickstart.yaml")).await?;
    let status = shop.wait_ready(3).await?;
    for member in &status.members {
        println!("   {:8} {:8} on {}", member.pod, member.role, member.node.clone().unwrap_or_default());
    }
    Ok(())
}

async fn write(shop: &Cluster) -> Result<WriterPod> {
    let primary = shop.primary().await?;
    let node = shop.node_of(&primary).await?;
    let writer = WriterPod::start(&shop.client, NAMESPACE, &shop.name, &node).await?;
    psql(NAMESPACE, &primary, "app", FILL).await?;
    let report = writer.wait_progress(100).await?;
    println!("   {} rows acknowledged so far, longest gap {} ms", report.acknowledged, report.longest_gap_ms);
    Ok(writer)
}

async fn backup(client: &Client, schedule: &str) -> Result<Backup> {
    let backups: Api<Backup> = Api::namespaced(client.clone(), NAMESPACE);
    let selector = format!("{}={schedule}", keys::SCHEDULE);
    let names = async || -> Result<Vec<String>> {
        let list = backups.list(&ListParams::default().labels(&selector)).await?;
        Ok(list.items.into_iter().filter_map(|backup| backup.metadata.name).collect())
    };
    // An earlier one was made before the data was there.
    let before = names().await?;
    let name = until("the schedule's next backup", PATIENCE, async || {
        let new = names().await?.into_iter().find(|name| !before.contains(name));
        Ok(new.map_or_else(|| Look::NotYet("no new Backup yet".into()), Look::Done))
    })
    .await?;
    let mut last = String::new();
    let backup = cluster::wait_backup(client, NAMESPACE, &name, |backup| {
        let status = backup.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or(BackupPhase::Pending);
        let line = format!(
            "{phase:?} {} {} {}",
            status.progress.unwrap_or_default(),
            status.size.unwrap_or_default(),
            status.rate.unwrap_or_default()
        );
        if line != last {
            println!("   {name}: {line}");
            last = line;
        }
    })
    .await?;
    // One is enough to show; the next would only take the machine's time.
    let schedules: Api<BackupSchedule> = Api::namespaced(client.clone(), NAMESPACE);
    schedules.patch(schedule, &PatchParams::default(), &Patch::Merge(json!({"spec": {"suspend": true}}))).await?;
    let status = backup.status.clone().unwrap_or_default();
    println!(
        "   read from {}, stored at {}",
        status.source_pod.unwrap_or_default(),
        status.destination.unwrap_or_default()
    );
    Ok(backup)
}

async fn grow(shop: &Cluster) -> Result<String> {
    kubectl(NAMESPACE, &["scale", "postgrescluster/shop", "--replicas=4"]).await?;
    println!("   kubectl scale pgc/shop --replicas=4");
    let status = shop.wait_ready(4).await?;
    let member = status.members.iter().find(|member| member.pod == "shop-3").ok_or("shop-3 is not in status")?;
    let source = member.source.clone().ok_or("status does not say how shop-3 was built")?;
    println!("   shop-3 on {}: {}", member.node.clone().unwrap_or_default(), source.reason);
    if source.source == "backup" {
        Ok(format!("backup {}", source.from))
    } else {
        Err(format!("shop-3 was built from {} {}: {}", source.source, source.from, source.reason).into())
    }
}

async fn check_ledger(writer: &WriterPod) -> Result<pgherd_e2e::ledger::Verification> {
    writer.wait_progress(50).await?;
    let verified = writer.verify().await?;
    println!("   {} rows acknowledged, {} in the table, {} lost", verified.acknowledged, verified.rows, verified.lost);
    if verified.lost > 0 || verified.phantom > 0 {
        return Err(
            format!("{} lost (first {:?}), {} never sent", verified.lost, verified.lost_ids, verified.phantom).into()
        );
    }
    Ok(verified)
}

async fn restore(shop: &Cluster, writer: &WriterPod, backup: &str) -> Result<()> {
    writer.set_paused(true).await?;
    let manifest = format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: PostgresCluster\nmetadata: {{name: shop-restored}}\nspec:\n  instances: 1\n  \
         storage: {{size: 2Gi}}\n  bootstrap:\n    recovery:\n      from: {{backupRef: {{name: {backup}}}}}\n"
    );
    apply(NAMESPACE, &manifest).await?;
    let restored = Cluster::new(&shop.client, NAMESPACE, "shop-restored");
    restored.wait_ready(1).await?;
    let (old, new) = (shop.primary().await?, restored.primary().await?);
    let (expected, found) =
        (psql(NAMESPACE, &old, "app", COMPARE).await?, psql(NAMESPACE, &new, "app", COMPARE).await?);
    let ledger = psql(NAMESPACE, &new, "app", "SELECT count(*), coalesce(max(id), 0) FROM ledger").await?;
    println!(
        "   goods (count, hash): original {expected}, restored {found}; ledger rows up to the archive's end: {ledger}"
    );
    if expected != found {
        return Err(format!("the restored table differs: {found} instead of {expected}").into());
    }
    let foreign = psql(NAMESPACE, &new, "app", "SELECT count(*) FROM ledger").await?.parse::<u64>()?;
    if foreign == 0 {
        return Err("the restored ledger is empty".into());
    }
    Ok(())
}

//! A running cluster is restored in place: refused while it can't be, to a time, and back again.

use pgherd_crds::v1alpha1::postgres_cluster::RestoreStatus;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, wait_backup},
    kubectl::{apply, kubectl},
    postgres::psql,
    wait::{Look, until},
};

use crate::{
    checks::{DIGEST, NOW, claim, fill, take_backup, wait_follows},
    in_namespace, manifests,
};

const MARKS: &str = "SELECT string_agg(name, ' ' ORDER BY name) FROM marks";

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_running_cluster_is_restored_in_place_and_back() -> Result<()> {
    in_namespace("e2e-in-place", async |client, namespace| {
        let spec = format!("{}{}", manifests::REQUIRED, manifests::backup_to_store());
        apply(namespace, &manifests::cluster("c", 3, &spec)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(3).await?;
        let sql = async |text: &str| psql(namespace, &cluster.primary().await?, "app", text).await;
        sql(&fill(50_000)).await?;
        let expected = sql(DIGEST).await?;
        take_backup(client, namespace, "before", "c").await?;
        sql("CREATE TABLE marks (name text); INSERT INTO marks VALUES ('kept')").await?;
        let before_the_mistake = sql(NOW).await?;
        sql("DROP TABLE goods; INSERT INTO marks VALUES ('late')").await?;

        ask(namespace, r#"{"id":"too-late","target":{"time":"2100-01-01T00:00:00Z"}}"#).await?;
        let refused = wait_phase(&cluster, "too-late", "Refused").await?;
        claim(refused.message.as_deref().is_some_and(|text| text.contains("future")), || format!("{refused:?}"))?;
        sql("INSERT INTO marks VALUES ('later')").await?;

        ask(namespace, &format!(r#"{{"id":"undo-drop","target":{{"time":"{before_the_mistake}"}}}}"#)).await?;
        let restored = wait_phase(&cluster, "undo-drop", "Completed").await?;
        println!("restored: {restored:?}");
        claim(restored.timeline == Some(2) && restored.lsn.is_some(), || format!("{restored:?}"))?;
        cluster.wait_ready(3).await?;
        check(&cluster, "kept", Some(&expected)).await?;
        let backup = until("the Backup of the restored cluster", PATIENCE, async || {
            let backup = cluster.status().await?.restore.and_then(|restore| restore.backup);
            Ok(backup.map_or(Look::NotYet("there is none".to_owned()), Look::Done))
        })
        .await?;
        wait_backup(client, namespace, &backup, |_| ()).await?;

        // What the restore left is still in the archive, on the timeline that was left.
        ask(namespace, r#"{"id":"back","target":null,"timeline":1}"#).await?;
        let back = wait_phase(&cluster, "back", "Completed").await?;
        println!("and back: {back:?}");
        claim(back.timeline == Some(3), || format!("{back:?}"))?;
        cluster.wait_ready(3).await?;
        check(&cluster, "kept late later", None).await?;

        // The restored cluster fails over as any other, and nothing is restored again.
        let primary = cluster.primary().await?;
        kubectl(namespace, &["delete", "pod", &primary, "--wait=false"]).await?;
        until("another primary", PATIENCE, async || {
            let status = cluster.status().await?;
            let moved = status.primary.as_ref().is_some_and(|now| *now != primary);
            Ok(if moved { Look::Done(()) } else { Look::NotYet(format!("{:?}", status.primary)) })
        })
        .await?;
        cluster.wait_ready(3).await?;
        check(&cluster, "kept late later", None).await?;
        let last = cluster.status().await?.restore;
        claim(
            last == Some(RestoreStatus { backup: last.as_ref().and_then(|last| last.backup.clone()), ..back }),
            || format!("{last:?}"),
        )
    })
    .await
}

async fn ask(namespace: &str, restore: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"restore":{restore}}}}}"#);
    kubectl(namespace, &["patch", "pgc/c", "--type=merge", "-p", &patch]).await.map(drop)
}

async fn wait_phase(cluster: &Cluster, id: &str, phase: &str) -> Result<RestoreStatus> {
    until(&format!("restore {id} to be {phase}"), PATIENCE, async || {
        let found = cluster.status().await?.restore.unwrap_or_default();
        Ok(if found.id == id && found.phase == phase { Look::Done(found) } else { Look::NotYet(format!("{found:?}")) })
    })
    .await
}

/// On the primary and on both replicas.
async fn check(cluster: &Cluster, marks: &str, digest: Option<&str>) -> Result<()> {
    let (namespace, primary) = (&cluster.namespace, cluster.primary().await?);
    for pod in (0..3).map(|ordinal| format!("{}-{ordinal}", cluster.name)) {
        if pod != primary {
            wait_follows(cluster, &pod).await?;
        }
        let found = psql(namespace, &pod, "app", MARKS).await?;
        claim(found == marks, || format!("{pod} has the marks {found:?} instead of {marks:?}"))?;
        let goods = psql(namespace, &pod, "app", "SELECT to_regclass('goods') IS NOT NULL").await?;
        match digest {
            Some(digest) => {
                let found = psql(namespace, &pod, "app", DIGEST).await?;
                claim(found == digest, || format!("{pod} has {found} instead of {digest}"))?;
            }
            None => claim(goods == "f", || format!("{pod} has goods, which was dropped"))?,
        }
    }
    Ok(())
}

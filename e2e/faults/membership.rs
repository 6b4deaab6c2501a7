//! Changes of the cluster itself under load: how many must acknowledge, how many instances there are, who is primary, and its
//! removal in the middle of a failover. Numbers 43, 44, 56.

use pgherd_e2e::{
    Result,
    cluster::PATIENCE,
    containers::Kind,
    kubectl::{kubectl, run},
    wait::{Look, until},
};
use serde_json::json;

use crate::scene::{Scene, claim};

pub(crate) async fn acknowledgements_changed(scene: &Scene) -> Result<()> {
    for replicas in [2, 1] {
        scene.cluster.patch(json!({"spec": {"synchronous": {"mode": "Required", "replicas": replicas}}})).await?;
        scene.cluster.wait_ready(3).await?;
        scene.writer.wait_progress(100).await?;
    }
    // A failover right after the change decides by the new W.
    scene.primary_container()?.signal("KILL", &[Kind::Supervisor]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn scaled(scene: &Scene) -> Result<()> {
    scene.cluster.scale(5).await?;
    scene.cluster.wait_ready(5).await?;
    scene.writer.wait_progress(50).await?;
    scene.cluster.scale(2).await?;
    scene.cluster.wait_ready(2).await?;
    scene.writer.wait_progress(50).await?;
    scene.cluster.scale(3).await?;
    scene.expect_instances(3);
    Ok(())
}

/// The annotation that asks for a switchover.
const SWITCHOVER: &str = "pgherd.dev/switchover";

pub(crate) async fn switchover(scene: &Scene) -> Result<()> {
    let ask = format!("{SWITCHOVER}=any");
    kubectl(scene.namespace(), &["annotate", "postgrescluster", &scene.cluster.name, &ask, "--overwrite"]).await?;
    scene.wait_failover().await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// The one that a switchover names dies as soon as the register has the request: the role goes to another one, or back.
pub(crate) async fn switchover_target_dies(scene: &Scene) -> Result<()> {
    let target = scene.replicas().into_iter().next().ok_or("there is no replica")?;
    let container = scene.container(&target)?;
    let ask = format!("{SWITCHOVER}={target}");
    kubectl(scene.namespace(), &["annotate", "postgrescluster", &scene.cluster.name, &ask, "--overwrite"]).await?;
    let begun = until("the switchover to begin", PATIENCE, async || {
        let register = scene.register().await?;
        let term = register["sealTerm"].as_u64().max(register["term"].as_u64());
        let begun = !register["handover"].is_null() || term > scene.before.term;
        Ok(if begun { Look::Done(register) } else { Look::NotYet("no handover in the register".to_string()) })
    })
    .await?;
    container.signal("KILL", &[Kind::Supervisor]).await?;
    scene.note(format!("{target} was killed while the register had handover {}", begun["handover"]));
    scene.writer.wait_progress(50).await?;
    let status = scene.cluster.status().await?;
    scene.note(format!("afterwards {:?} is primary", status.primary));
    Ok(())
}

/// The node of the primary is drained: its pod is evicted, which its disruption budget has to allow at some time.
pub(crate) async fn drained(scene: &Scene) -> Result<()> {
    let node = scene.cluster.node_of(&scene.primary()?).await?;
    let selector = format!("pgherd.dev/cluster={}", scene.cluster.name);
    run("kubectl", &["cordon", &node], None).await?;
    let drain =
        ["drain", &node, "--pod-selector", &selector, "--ignore-daemonsets", "--timeout=60s", "--delete-emptydir-data"];
    let drained = run("kubectl", &drain, None).await;
    run("kubectl", &["uncordon", &node], None).await?;
    drained?;
    scene.wait_failover().await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// The object is deleted while a failover is under way. Nothing but the instances may go: volumes stay.
pub(crate) async fn deleted_in_failover(scene: &Scene) -> Result<()> {
    let claims = async || -> Result<String> {
        let selector = format!("pgherd.dev/cluster={}", scene.cluster.name);
        kubectl(scene.namespace(), &["get", "pvc", "-l", &selector, "-o", "name"]).await
    };
    let before = claims().await?;
    scene.primary_container()?.signal("KILL", &[Kind::Supervisor]).await?;
    kubectl(scene.namespace(), &["delete", "postgrescluster", &scene.cluster.name, "--timeout=120s"]).await?;
    until("all instances to be gone", PATIENCE, async || {
        let left = scene.cluster.pods().await?.len();
        Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left} pods")) })
    })
    .await?;
    let after = claims().await?;
    claim(before == after && !after.trim().is_empty(), || format!("volumes before: {before}, after: {after}"))?;
    let selector = format!("pgherd.dev/cluster={}", scene.cluster.name);
    kubectl(scene.namespace(), &["delete", "pvc", "-l", &selector, "--timeout=120s"]).await.map(drop)
}

//! Faults of the register: the Lease deleted, written to by others, edited by hand. Number 19. The primary keeps the role or
//! stops; never are there two.

use std::time::{Duration, Instant};

use pgherd_e2e::{Result, kubectl::kubectl};

use crate::scene::Scene;

/// How long the cluster is watched with its register as the fault left it.
const WATCHED: Duration = Duration::from_secs(30);

async fn read(scene: &Scene) -> Result<serde_json::Value> {
    let lease = kubectl(scene.namespace(), &["get", "lease", &scene.cluster.name, "-o", "json"]).await?;
    Ok(serde_json::from_str(&lease)?)
}

async fn note_outcome(scene: &Scene) -> Result<()> {
    let status = scene.cluster.status().await?;
    let told = status.conditions.iter().filter(|c| c.type_ == "Ready" || c.type_ == "PrimaryAvailable");
    let conditions = told.map(|c| format!("{}={} {}", c.type_, c.status, c.reason));
    scene.note(format!(
        "after {} s: term {:?} (before {:?}), {}",
        WATCHED.as_secs(),
        status.term,
        scene.before.term,
        conditions.collect::<Vec<_>>().join(", ")
    ));
    Ok(())
}

/// Puts the register back as it was, which is what a person would have to do.
async fn restore(scene: &Scene, lease: &serde_json::Value) -> Result<()> {
    let patch = serde_json::json!({
        "metadata": {"annotations": lease["metadata"]["annotations"]},
        "spec": {"holderIdentity": lease["spec"]["holderIdentity"]},
    });
    let patch = patch.to_string();
    kubectl(scene.namespace(), &["patch", "lease", &scene.cluster.name, "--type=merge", "-p", &patch]).await.map(drop)
}

async fn annotate(scene: &Scene, value: &str) -> Result<()> {
    let key = pgherd_core::register::REGISTER_ANNOTATION;
    let patch = serde_json::json!({"metadata": {"annotations": {key: value}}}).to_string();
    kubectl(scene.namespace(), &["patch", "lease", &scene.cluster.name, "--type=merge", "-p", &patch]).await.map(drop)
}

pub(crate) async fn deleted(scene: &Scene) -> Result<()> {
    let lease = read(scene).await?;
    kubectl(scene.namespace(), &["delete", "lease", &scene.cluster.name]).await?;
    // The time that the fault is defined by.
    tokio::time::sleep(WATCHED).await;
    note_outcome(scene).await?;
    match read(scene).await {
        Ok(now) => scene.note(format!("the Lease is there again, held by {}", now["spec"]["holderIdentity"])),
        Err(_) => {
            scene.note("the Lease stays away; it is put back by hand from a copy".to_string());
            let copy = serde_json::json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {
                    "name": scene.cluster.name,
                    "labels": lease["metadata"]["labels"],
                    "annotations": lease["metadata"]["annotations"],
                    "ownerReferences": lease["metadata"]["ownerReferences"],
                },
                "spec": lease["spec"],
            });
            pgherd_e2e::kubectl::apply(scene.namespace(), &copy.to_string()).await?;
        }
    }
    Ok(())
}

pub(crate) async fn malformed(scene: &Scene) -> Result<()> {
    let lease = read(scene).await?;
    annotate(scene, "{\"term\": this is no JSON").await?;
    // The time that the fault is defined by.
    tokio::time::sleep(WATCHED).await;
    note_outcome(scene).await?;
    restore(scene, &lease).await
}

/// Somebody writes another pod into the register, with the same term: the holder must stop, and nobody else may write.
pub(crate) async fn other_holder(scene: &Scene) -> Result<()> {
    let lease = read(scene).await?;
    let text =
        lease["metadata"]["annotations"][pgherd_core::register::REGISTER_ANNOTATION].as_str().unwrap_or_default();
    let mut register: serde_json::Value = serde_json::from_str(text)?;
    let other = scene.replicas().into_iter().next().ok_or("there is no replica")?;
    register["holder"]["pod"] = other.into();
    register["holder"]["podUid"] = "00000000-0000-0000-0000-000000000000".into();
    annotate(scene, &register.to_string()).await?;
    // The time that the fault is defined by.
    tokio::time::sleep(WATCHED).await;
    note_outcome(scene).await
}

/// A foreign writer changes the Lease as fast as it can: every renewal meets conflicts.
pub(crate) async fn contended(scene: &Scene) -> Result<()> {
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(scene.cluster.client.clone(), scene.namespace());
    let (begun, mut writes) = (Instant::now(), 0_u64);
    while begun.elapsed() < WATCHED {
        let patch = serde_json::json!({"metadata": {"annotations": {"example.com/noise": writes.to_string()}}});
        let patch = kube::api::Patch::Merge(patch);
        leases.patch(&scene.cluster.name, &kube::api::PatchParams::default(), &patch).await?;
        writes += 1;
    }
    scene.note(format!("{writes} foreign writes in {} s", WATCHED.as_secs()));
    note_outcome(scene).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

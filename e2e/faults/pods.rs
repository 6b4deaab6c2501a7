//! Faults of pods: deleted with and without grace, a twin beside a container that still runs, a pause of everything in it.
//! Numbers 5, 6, 38.

use std::time::Duration;

use pgherd_e2e::{Result, kubectl::kubectl, nodes};

use crate::scene::{Scene, unix_ms};

pub(crate) async fn deleted(scene: &Scene) -> Result<()> {
    kubectl(scene.namespace(), &["delete", "pod", &scene.primary()?, "--wait=false"]).await?;
    scene.wait_failover_or_restart(&scene.primary()?).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn deleted_by_force(scene: &Scene) -> Result<()> {
    kubectl(scene.namespace(), &["delete", "pod", &scene.primary()?, "--force", "--grace-period=0"]).await?;
    scene.wait_failover_or_restart(&scene.primary()?).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// The container hangs, the API forgets the pod, a twin of the same name comes, and then the old one wakes up.
pub(crate) async fn twin(scene: &Scene) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let since = unix_ms();
    container.set_frozen(true)?;
    kubectl(scene.namespace(), &["delete", "pod", &primary, "--force", "--grace-period=0"]).await?;
    let outcome = async {
        scene.wait_failover_or_restart(&primary).await?;
        scene.writer.wait_progress(50).await
    }
    .await;
    // It may be gone by now: its node was told that the pod is no more.
    drop(container.set_frozen(false));
    outcome?;
    scene.note_last_ack_of(&container, since);
    Ok(())
}

/// Everything on the primary's node stops for a while, as a virtual machine that is moved, and goes on with its sessions.
async fn paused(scene: &Scene, seconds: u64) -> Result<()> {
    let (container, since) = (scene.primary_container()?, unix_ms());
    nodes::while_frozen(&container.node, async || {
        // The time that the fault is defined by.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    })
    .await?;
    scene.writer.wait_progress(50).await?;
    scene.note_last_ack_of(&container, since);
    let status = scene.cluster.status().await?;
    scene.note(format!("term {:?} before, {:?} after", scene.before.term, status.term));
    Ok(())
}

pub(crate) async fn paused_5(scene: &Scene) -> Result<()> {
    paused(scene, 5).await
}

pub(crate) async fn paused_12(scene: &Scene) -> Result<()> {
    paused(scene, 12).await
}

pub(crate) async fn paused_40(scene: &Scene) -> Result<()> {
    paused(scene, 40).await
}

//! Faults of whole nodes: dead, or cut off from everything, with and without the operator that leads. Numbers 7, 8, 41.

use pgherd_e2e::{Result, cluster::PATIENCE, containers, nodes, operators};

use crate::scene::{Scene, claim, unix_ms};

/// The node hangs, its containers are killed, and nothing of it answers until a failover has happened.
async fn dead(scene: &Scene, node: &str) -> Result<()> {
    nodes::while_frozen(node, async || {
        let victims = containers::observe(scene.namespace())?.into_iter().filter(|container| container.node == node);
        let operators = containers::observe(pgherd_e2e::cluster::OPERATOR_NAMESPACE)?;
        let operators = operators.into_iter().filter(|container| container.node == node);
        for container in victims.chain(operators) {
            let all: Vec<u32> = container.processes.iter().map(|process| process.pid).collect();
            // They die as soon as the node is thawed, before they run again.
            containers::send("KILL", &all).await?;
        }
        scene.wait_failover().await?;
        scene.writer.wait_progress(50).await.map(drop)
    })
    .await
}

async fn primary_node(scene: &Scene) -> Result<String> {
    scene.cluster.node_of(&scene.primary()?).await
}

pub(crate) async fn node_dead(scene: &Scene) -> Result<()> {
    let node = primary_node(scene).await?;
    operators::lead_elsewhere(&node).await?;
    dead(scene, &node).await
}

pub(crate) async fn node_dead_with_leader(scene: &Scene) -> Result<()> {
    let node = primary_node(scene).await?;
    operators::lead_on(&node).await?;
    scene.writer.reset_gap().await?;
    dead(scene, &node).await
}

async fn cut(scene: &Scene, node: &str) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let mut since = 0;
    nodes::while_cut(node, async || {
        since = unix_ms();
        let failover = scene.wait_failover().await?;
        claim(failover.from == primary, || format!("the record says that {} was given up", failover.from))?;
        scene.writer.wait_progress(50).await?;
        // The isolated one must be stopped by its own agent while nobody can reach it.
        scene.wait_silent(&container, PATIENCE).await
    })
    .await?;
    scene.note_last_ack_of(&container, since);
    Ok(())
}

pub(crate) async fn node_cut(scene: &Scene) -> Result<()> {
    let node = primary_node(scene).await?;
    operators::lead_elsewhere(&node).await?;
    scene.writer.reset_gap().await?;
    cut(scene, &node).await
}

pub(crate) async fn node_cut_with_leader(scene: &Scene) -> Result<()> {
    let node = primary_node(scene).await?;
    operators::lead_on(&node).await?;
    scene.writer.reset_gap().await?;
    cut(scene, &node).await
}

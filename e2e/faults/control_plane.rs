//! Faults of the API server while all pods run: stopped, killed, slow, wrong, and gone together with a replica. Numbers 14 to 18.

use std::time::Duration;

use pgherd_e2e::{
    Result,
    control_plane::{self, Trouble, Whose},
    operators,
};

use crate::scene::{Scene, claim};

async fn stopped(scene: &Scene, seconds: u64) -> Result<()> {
    scene
        .nothing_moves(async || {
            control_plane::while_stopped(async || {
                // The time that the fault is defined by.
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(())
            })
            .await?;
            // What comes late must not be a failover either.
            scene.watch_no_failover(Duration::from_secs(20)).await
        })
        .await
}

pub(crate) async fn stopped_2(scene: &Scene) -> Result<()> {
    stopped(scene, 2).await
}

pub(crate) async fn stopped_10(scene: &Scene) -> Result<()> {
    stopped(scene, 10).await
}

pub(crate) async fn stopped_60(scene: &Scene) -> Result<()> {
    stopped(scene, 60).await
}

pub(crate) async fn stopped_300(scene: &Scene) -> Result<()> {
    stopped(scene, 300).await
}

pub(crate) async fn killed_60(scene: &Scene) -> Result<()> {
    scene
        .nothing_moves(async || {
            control_plane::while_killed(async || {
                // The time that the fault is defined by.
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(())
            })
            .await?;
            scene.watch_no_failover(Duration::from_secs(20)).await
        })
        .await
}

/// A primary stays by the promise of those that are left, or stops: both are safe, and which it was is noted.
pub(crate) async fn stopped_and_a_replica_dead(scene: &Scene) -> Result<()> {
    let replica = scene.replicas().into_iter().next().ok_or("there is no replica")?;
    let container = scene.container(&replica)?;
    container.set_frozen(true)?;
    let outcome = control_plane::while_stopped(async || {
        // The time that the fault is defined by.
        tokio::time::sleep(Duration::from_secs(30)).await;
        Ok(())
    })
    .await;
    container.set_frozen(false)?;
    outcome?;
    scene.writer.wait_progress(50).await?;
    let (status, ledger) = (scene.cluster.status().await?, scene.writer.ledger().await?);
    scene.note(format!(
        "term {:?} before, {:?} after; longest gap {} ms",
        scene.before.term, status.term, ledger.longest_gap_ms
    ));
    Ok(())
}

/// Every request of a pod to the API server arrives late.
async fn slow(scene: &Scene, delay: Duration) -> Result<()> {
    control_plane::while_slow(&scene.program, delay, async || {
        // The time that the fault is defined by.
        tokio::time::sleep(Duration::from_secs(45)).await;
        Ok(())
    })
    .await?;
    scene.writer.wait_progress(50).await?;
    let status = scene.cluster.wait_ready(3).await?;
    let (before, after) = (scene.before.term.unwrap_or_default(), status.term.unwrap_or_default());
    scene.note(format!("term {before} before, {after} after"));
    claim(after <= before + 1, || format!("it flaps: term {before} before, {after} after"))
}

pub(crate) async fn slow_1(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_secs(1)).await
}

pub(crate) async fn slow_3(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_secs(3)).await
}

pub(crate) async fn slow_10(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_secs(10)).await
}

/// Of eight requests of any pod one is answered with 500 and another one with 429.
pub(crate) async fn errors(scene: &Scene) -> Result<()> {
    let work = async || scene.watch_no_failover(Duration::from_secs(45)).await;
    scene
        .nothing_moves(async || {
            let (refused, ()) =
                control_plane::while_troubled(&scene.program, Trouble::Errors, Whose::default(), work).await?;
            scene.note(format!("{refused} requests were refused"));
            Ok(())
        })
        .await
}

/// No pod hears of any change, and the primary hangs: what decides is asked for.
pub(crate) async fn stuck_watches(scene: &Scene) -> Result<()> {
    let primary = scene.primary_container()?;
    let work = async || {
        // Until every watch that was open has ended and come again through the proxy.
        tokio::time::sleep(Duration::from_secs(10)).await;
        scene.writer.reset_gap().await?;
        primary.set_frozen(true)?;
        scene.wait_failover().await?;
        scene.writer.wait_progress(50).await.map(drop)
    };
    let outcome = control_plane::while_troubled(&scene.program, Trouble::StuckWatches, Whose::default(), work).await;
    // It is gone if its liveness probe has failed meanwhile.
    drop(primary.set_frozen(false));
    let (stuck, ()) = outcome?;
    scene.note(format!("{stuck} watches said nothing"));
    Ok(())
}

/// Mode `Off`, in which an unchanged Lease alone is a reason: the operators read it, and all else of the cluster, as it was at first.
pub(crate) async fn stale_reads(scene: &Scene) -> Result<()> {
    let from: Vec<String> = operators::pods().await?.into_iter().map(|(_, _, address)| address).collect();
    let within = format!("/namespaces/{}/", scene.namespace());
    let whose = Whose { from: &from, within: &within };
    let work = async || scene.watch_no_failover(Duration::from_secs(40)).await;
    scene
        .nothing_moves(async || {
            let (stale, ()) = control_plane::while_troubled(&scene.program, Trouble::StaleReads, whose, work).await?;
            scene.note(format!("{stale} reads were stale"));
            Ok(())
        })
        .await
}

//! What clients do: cancel waits, refuse to wait. Number 42.

use pgherd_e2e::{
    Result,
    cluster::PATIENCE,
    partition::{self, Direction},
    postgres::psql,
    wait::{Look, until},
};

use crate::scene::{Scene, claim};

/// Both replicas are out of reach, commits wait, and somebody cancels them: such a commit is acknowledged with a warning, and
/// nobody can know whether it lasts.
pub(crate) async fn wait_cancelled(scene: &Scene) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let peers = scene.addresses(&scene.replicas()).await?;
    partition::cut(&container, &peers, Direction::Both).await?;
    let cancelled = until("waits to be cancelled", PATIENCE, async || {
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let count = psql(scene.namespace(), &primary, "postgres", cancel).await?;
        Ok(if count == "0" { Look::NotYet("nobody waits".to_string()) } else { Look::Done(count) })
    })
    .await;
    partition::heal(&container).await;
    let cancelled = cancelled?;
    let report = scene.writer.wait_progress(50).await?;
    scene.note(format!("{cancelled} waits cancelled, the writer was warned of {}", report.cancelled));
    claim(report.cancelled > 0, || "the writer heard of no cancelled wait".to_string())?;
    until("status.synchronous.cancelledWaits", PATIENCE, async || {
        let reported = scene.cluster.status().await?.synchronous.and_then(|synchronous| synchronous.cancelled_waits);
        Ok(if reported.is_some_and(|count| count > 0) { Look::Done(()) } else { Look::NotYet(format!("{reported:?}")) })
    })
    .await
}

/// The same, but each waiting session is ended.
pub(crate) async fn wait_terminated(scene: &Scene) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let peers = scene.addresses(&scene.replicas()).await?;
    partition::cut(&container, &peers, Direction::Both).await?;
    let ended = until("sessions that wait to be ended", PATIENCE, async || {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let count = psql(scene.namespace(), &primary, "postgres", terminate).await?;
        Ok(if count == "0" { Look::NotYet("nobody waits".to_string()) } else { Look::Done(count) })
    })
    .await;
    partition::heal(&container).await;
    scene.note(format!("{} sessions ended while they waited", ended?));
    scene.writer.wait_progress(50).await.map(drop)
}

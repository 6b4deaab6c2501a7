//! What clients do: cancel waits, refuse to wait. Number 42.

use pgherd_e2e::{
    Result,
    cluster::PATIENCE,
    partition::{self, Direction},
    postgres::psql,
    wait::{Look, until},
};
use serde_json::json;

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

/// A transaction on each replica has read a table that is dropped then, so that neither can replay any further; then the
/// primary hangs. Without the end of these transactions nobody could be promoted for as long as they please.
pub(crate) async fn query_on_replica(scene: &Scene) -> Result<()> {
    let primary = scene.primary()?;
    let sql = |pod: String, database: &'static str, sql: &'static str| async move {
        psql(scene.namespace(), &pod, database, sql).await
    };
    let forever = json!({"spec": {"postgresql": {"parameters": {"max_standby_streaming_delay": "-1", "max_standby_archive_delay": "-1"}}}});
    scene.cluster.patch(forever).await?;
    for replica in scene.replicas() {
        until("the parameter", PATIENCE, async || {
            let delay = sql(replica.clone(), "postgres", "SHOW max_standby_streaming_delay").await?;
            Ok(if delay == "-1" { Look::Done(()) } else { Look::NotYet(delay) })
        })
        .await?;
    }
    sql(primary.clone(), "app", "CREATE TABLE IF NOT EXISTS read_by_replicas AS SELECT 1 AS n").await?;
    let mut readers = Vec::new();
    for replica in scene.replicas() {
        until("the table on the replica", PATIENCE, async || {
            let there = sql(replica.clone(), "app", "SELECT to_regclass('read_by_replicas') IS NOT NULL").await?;
            Ok(if there == "t" { Look::Done(()) } else { Look::NotYet(there) })
        })
        .await?;
        let namespace = scene.namespace().to_owned();
        let pod = replica.clone();
        readers.push(tokio::spawn(async move {
            psql(&namespace, &pod, "app", "BEGIN; TABLE read_by_replicas; SELECT pg_sleep(600)").await
        }));
        until("the reader", PATIENCE, async || {
            let reads =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";
            let count = sql(replica.clone(), "postgres", reads).await?;
            Ok(if count == "0" { Look::NotYet("it does not read yet".to_string()) } else { Look::Done(()) })
        })
        .await?;
    }
    sql(primary.clone(), "app", "DROP TABLE read_by_replicas").await?;
    // Hung, so that it can't come back by itself.
    let container = scene.primary_container()?;
    container.set_frozen(true)?;
    let outcome = scene.wait_failover().await;
    container.set_frozen(false)?;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    outcome?;
    scene.writer.wait_progress(50).await.map(drop)
}

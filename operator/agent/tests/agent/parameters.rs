//! Parameters that a standby must have as high as its primary.

use pgherd_agent::register_store::MemoryRegister;
use pgherd_core::instance::Phase;

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{bring_up, first_register, session, streams, wait_for, wait_write},
};

async fn max_connections(instance: &Instance) -> String {
    session(instance, "postgres").await.query("SHOW max_connections", &[]).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_keeps_up_with_a_primary_that_was_started_with_more() {
    if ran_as_postgres("parameters::a_standby_keeps_up_with_a_primary_that_was_started_with_more") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    // Only the primary starts with it; the standby would pause its replay for good.
    first.terminate().await;
    cluster.register.edit(|register| register.released = false);
    cluster.config.parameters.insert("max_connections".to_owned(), "150".to_owned());
    let first = cluster.start("c-0", "uid-0");
    wait_for(&first, "primary again", |status| status.phase == Phase::Primary).await;
    wait_write(&first, "CREATE TABLE public.t AS SELECT 1 AS n").await;
    let replayed = first.agent.board.status().received_lsn;
    wait_for(&second, "a standby that replays", |status| streams(status) && status.replayed_lsn >= replayed).await;
    assert_eq!(max_connections(&second).await, "150");

    // Lowered, it holds for the standby as long as the primary runs with it.
    second.terminate().await;
    cluster.config.parameters.remove("max_connections");
    let second = cluster.start("c-1", "uid-1");
    wait_for(&second, "streaming", streams).await;
    assert_eq!(max_connections(&second).await, "150");
    second.terminate().await;
    first.terminate().await;
}

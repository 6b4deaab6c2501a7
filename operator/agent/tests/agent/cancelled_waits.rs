//! Commits that were acknowledged although nobody else has them are counted.

use std::time::Duration;

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{bring_up, first_register, session, wait_for},
};
use pgherd_agent::{postgres::sql::Session, register_store::MemoryRegister};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_for_replicas_was_cancelled_is_counted() {
    if ran_as_postgres("cancelled_waits::a_commit_whose_wait_for_replicas_was_cancelled_is_counted") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    session(&first, "app").await.execute("CREATE TABLE public.t (id int)").await.unwrap();
    assert_eq!(first.agent.board.status().cancelled_waits, 0);
    second.terminate().await;
    let layout = first.agent.layout.clone();
    let waiting = tokio::spawn(async move {
        let patience = Duration::from_secs(60);
        let open = Session::connect(&layout.socket_dir, layout.postgres_port, "app", patience).await.unwrap();
        open.execute("INSERT INTO public.t VALUES (1)").await
    });
    let other = session(&first, "postgres").await;
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let end = Instant::now() + Duration::from_secs(60);
    while other.query(cancel, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < end, "the commit does not wait");
        sleep(Duration::from_millis(20)).await;
    }
    waiting.await.unwrap().unwrap();
    wait_for(&first, "counted", |status| status.cancelled_waits == 1).await;
    first.terminate().await;
}

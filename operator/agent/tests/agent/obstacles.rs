//! What must not keep a failover from happening: queries on a replica, and a primary that can't start on its volume.

use std::fs;

use pgherd_agent::register_store::MemoryRegister;
use pgherd_core::instance::Phase;

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{bring_up, first_register, seal_all, session, streams, wait_for, wait_write},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_holds_the_replay_up_ends_when_a_failover_begins() {
    if ran_as_postgres("obstacles::a_query_that_holds_the_replay_up_ends_when_a_failover_begins") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    cluster.config.parameters.insert("max_standby_streaming_delay".to_owned(), "-1".to_owned());
    let mut all = bring_up(&cluster, 3).await;
    let (third, second, first) = (all.pop().unwrap(), all.pop().unwrap(), all.pop().unwrap());
    wait_write(&first, "CREATE TABLE public.t AS SELECT 1 AS n").await;
    let written = first.agent.sample_now().await.unwrap().received;
    wait_for(&second, "following", |status| streams(status) && status.replayed_lsn >= written).await;
    let reader = session(&second, "app").await;
    reader.execute("BEGIN; TABLE public.t").await.unwrap();
    wait_write(&first, "DROP TABLE public.t").await;
    let dropped = first.agent.sample_now().await.unwrap().received;
    wait_for(&second, "held up", |status| status.received_lsn >= dropped && status.replayed_lsn < dropped).await;
    first.terminate().await;
    seal_all(&cluster, &[&second, &third], 2).await;
    assert!(second.agent.sample_now().await.unwrap().replayed >= dropped);
    assert!(reader.execute("TABLE public.t").await.is_err(), "the reader's session went on");
    third.terminate().await;
    second.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_volume_takes_no_writes_lets_its_lease_run_out() {
    if ran_as_postgres("obstacles::a_primary_whose_volume_takes_no_writes_lets_its_lease_run_out") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let first = bring_up(&cluster, 1).await.pop().unwrap();
    let probe = first.agent.layout.volume.join("pgherd.probe");
    first.terminate().await;
    cluster.register.edit(|register| register.released = false);
    fs::remove_file(&probe).unwrap();
    fs::create_dir(&probe).unwrap();
    let renewed = cluster.register.view();

    let again = cluster.start("c-0", "uid-0");
    wait_for(&again, "saying why", |status| status.message.contains("did not take a write")).await;
    assert_eq!(cluster.register.view().register, renewed.register, "the Lease was renewed");
    fs::remove_dir(&probe).unwrap();
    wait_for(&again, "primary again", |status| status.phase == Phase::Primary).await;
    again.terminate().await;
}

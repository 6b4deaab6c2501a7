//! A primary that goes on purpose: it stops cleanly, gives its role back, and follows its successor without a rewind.

use std::{fs, time::Duration};

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{
        bring_up, claim, first_register, seal_all, session, streams, wait_for, wait_released, wait_write, wake,
    },
};
use pgherd_agent::register_store::MemoryRegister;
use pgherd_core::{
    instance::InstanceStatus,
    register::{Handover, Term},
};
use tokio::time::Instant;

const TABLE: &str = "CREATE TABLE public.t (id int); INSERT INTO public.t SELECT generate_series(1, 1000)";

async fn count(instance: &Instance) -> i64 {
    let rows = session(instance, "app").await.query("SELECT count(*) FROM public.t", &[]).await.unwrap();
    rows[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hands_over_follows_its_successor_as_it_is() {
    if ran_as_postgres("handover::a_primary_that_hands_over_follows_its_successor_as_it_is") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let all = bring_up(&cluster, 2).await;
    let (first, second) = (&all[0], &all[1]);
    session(first, "app").await.execute(TABLE).await.unwrap();
    let member = first.agent.board.status().member;

    let began = Instant::now();
    cluster.register.edit(|register| {
        register.handover = Some(Handover { target: Some("c-1".into()), reason: "switchover requested".into() });
    });
    wake(&[first]).await;
    wait_released(&cluster).await;
    let released = began.elapsed();
    // Everything is on the replica by then: nothing that the old primary wrote is missing.
    let written = cluster.register.view().position.flushed;
    assert!(written.0 > 0 && second.agent.sample_now().await.unwrap().received >= written);
    seal_all(&cluster, &[second], 2).await;
    let sealed = began.elapsed();
    claim(&cluster, second, &[first], 2, 1).await;
    // One acknowledgement is needed, and only the old primary can give it.
    wait_write(second, "INSERT INTO public.t VALUES (0)").await;
    println!(
        "handover: released after {released:?}, sealed {sealed:?}, first acknowledged write {:?}",
        began.elapsed()
    );

    // It streams the rest of the old timeline first.
    let is_back = |status: &InstanceStatus| {
        let timeline = status.history.as_ref().map(|history| history.timeline.0);
        streams(status) && status.term == Term(2) && timeline == Some(2)
    };
    let back = wait_for(first, "following", is_back).await;
    assert_eq!((back.member, back.source.map(|source| source.source)), (member, Some("initdb".to_owned())));
    assert_eq!(back.divergent, None);
    assert_eq!(count(second).await, 1_001);
    let end = Instant::now() + Duration::from_secs(60);
    while count(first).await != 1_001 {
        assert!(Instant::now() < end, "the old primary does not get the new one's rows");
    }
    for instance in all {
        instance.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_primary_comes_back_and_follows_as_it_is() {
    if ran_as_postgres("handover::a_deleted_primary_comes_back_and_follows_as_it_is") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    session(&first, "app").await.execute(TABLE).await.unwrap();
    let member = first.agent.board.status().member;
    let began = Instant::now();
    first.terminate().await;
    println!("deleted: stopped and released after {:?}", began.elapsed());
    assert!(cluster.register.view().register.released);
    seal_all(&cluster, &[&second], 2).await;
    claim(&cluster, &second, &[], 2, 0).await;
    wait_write(&second, "INSERT INTO public.t VALUES (0)").await;
    println!("deleted: first write after {:?}", began.elapsed());

    let first = cluster.start("c-0", "uid-of-another-pod");
    let back = wait_for(&first, "following", |status| streams(status) && status.term == Term(2)).await;
    assert_eq!((back.member, back.source, back.divergent), (member, None, None));
    first.terminate().await;
    second.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_hangs_does_not_hold_a_stop_up() {
    if ran_as_postgres("handover::an_archive_that_hangs_does_not_hold_a_stop_up") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    cluster.stand_in("#!/bin/sh\n[ \"$1\" = archive-wal ] && exec sleep 600\nexit 1\n");
    cluster.register.edit(|register| register.quorum.acks = 0);
    let first = bring_up(&cluster, 1).await.pop().unwrap();
    session(&first, "app").await.execute(TABLE).await.unwrap();
    session(&first, "app").await.execute("SELECT pg_switch_wal()").await.unwrap();
    let began = Instant::now();
    first.terminate().await;
    let took = began.elapsed();
    println!("stopped with a hanging archive after {took:?}");
    // The bound of a clean stop, after which it is killed, is 10 s.
    assert!(took < Duration::from_secs(9), "{took:?}");
    let pgdata = cluster.layout("c-0").pgdata;
    let works_there = |entry: fs::DirEntry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == pgdata);
    assert!(!fs::read_dir("/proc").unwrap().flatten().any(works_there), "the archive_command still runs");
    let control = fs::read(pgdata.join("global/pg_control")).unwrap();
    assert_eq!(control[16..20], 1_u32.to_ne_bytes(), "it was not shut down cleanly");
    assert!(pgdata.join("pg_stat/pgstat.stat").exists(), "its statistics are lost");
}

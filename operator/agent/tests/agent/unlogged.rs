//! Files of an unlogged relation in a copy whose init fork comes only by WAL: PostgreSQL's recovery ends on them once.

use std::fs;

use bytes::Bytes;
use pgherd_agent::register_store::MemoryRegister;
use pgherd_core::instance::{Bootstrap, Phase, RecoveryTarget};

use crate::support::{
    Cluster, Instance,
    copies::copy_as_tar,
    minio::{self, Minio},
    takeover::{bring_up, claim, first_register, seal_all, session, streams, wait_for, wait_write},
};

async fn ask(instance: &Instance, sql: &str) -> String {
    session(instance, "app").await.query(sql, &[]).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_while_an_unlogged_relation_came_to_be_is_recovered() {
    if minio::ran_as_postgres("unlogged::a_copy_made_while_an_unlogged_relation_came_to_be_is_recovered") {
        return;
    }
    let source = Cluster::new(MemoryRegister::new(first_register()), 2);
    let minio = Minio::start(source.root.path()).await;
    let mut all = bring_up(&source, 2).await;
    let (replica, old) = (all.pop().unwrap(), all.pop().unwrap());
    // The table has its main fork in the copy, and not yet its init fork.
    let tar = copy_as_tar(&old, source.root.path(), async |copy| {
        wait_write(&old, "CREATE UNLOGGED TABLE public.u AS SELECT 1 AS n").await;
        let (path, data) = (ask(&old, "SELECT pg_relation_filepath('public.u')").await, &old.agent.layout.pgdata);
        fs::copy(data.join(&path), copy.join(&path)).unwrap();
        assert!(!copy.join(format!("{path}_init")).exists() && data.join(format!("{path}_init")).exists());
    })
    .await;
    minio.store().await.put("old.tar", Bytes::from(tar)).await.unwrap();
    replica.terminate().await;
    old.terminate().await;

    let mut target = Cluster::new(MemoryRegister::new(first_register()), 1);
    let (store, key) = (minio.config.clone(), "old.tar".to_owned());
    target.config.bootstrap = Bootstrap::Import { store, key, target: RecoveryTarget::Latest };
    let new = bring_up(&target, 1).await.pop().unwrap();
    assert_eq!(ask(&new, "SELECT count(*)::text FROM public.u").await, "0", "reset, as after any recovery");
    new.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_with_such_files_becomes_primary_all_the_same() {
    if minio::ran_as_postgres("unlogged::a_standby_with_such_files_becomes_primary_all_the_same") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    let mut all = bring_up(&cluster, 3).await;
    let (third, second, first) = (all.pop().unwrap(), all.pop().unwrap(), all.pop().unwrap());
    wait_write(&first, "CREATE UNLOGGED TABLE public.u AS SELECT 1 AS n").await;
    let path = ask(&first, "SELECT pg_relation_filepath('public.u')").await;
    let written = first.agent.board.status().received_lsn;
    wait_for(&second, "following", |status| streams(status) && status.replayed_lsn >= written).await;
    // As a base backup leaves it.
    fs::write(second.agent.layout.pgdata.join(&path), "").unwrap();
    seal_all(&cluster, &[&second, &third], 2).await;
    first.terminate().await;
    claim(&cluster, &second, &[&third], 2, 1).await;
    wait_for(&second, "primary", |status| status.phase == Phase::Primary).await;
    assert_eq!(ask(&second, "SELECT count(*)::text FROM public.u").await, "0");
    third.terminate().await;
    second.terminate().await;
}

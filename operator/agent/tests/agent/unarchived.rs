//! WAL that a primary could not archive before it lost its role, while the replica has removed it already: once the store is back,
//! the archive gets all of it, by whichever way the former primary came back.

use std::fs;

use pgherd_agent::{actions::seal::seal, register_store::MemoryRegister};
use pgherd_core::{
    backup::ClusterLocation,
    instance::InstanceStatus,
    lsn::Lsn,
    register::{Handover, Term},
    timeline::TimelineId,
};
use pgherd_stream::wal::missing_segments;

use crate::support::{
    Cluster, Instance,
    archive::CLIENT,
    minio::{self, Minio},
    programs::ran_with_rewind,
    takeover::{
        bring_up, claim, first_register, seal_all, session, streams, wait_for, wait_released, wait_write, wake,
    },
};

const SEGMENT: u64 = 16 << 20;
const ROWS: &str = "INSERT INTO public.t SELECT generate_series(1, 1000)";

struct Scene {
    cluster: Cluster,
    minio: Minio,
    first: Instance,
    second: Instance,
}

/// The primary has segments that are not archived, since the store is away, and the replica has none of them any more.
async fn lose_the_store() -> Scene {
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    for (name, value) in [("min_wal_size", "32MB"), ("max_wal_size", "32MB"), ("wal_keep_size", "0")] {
        cluster.config.parameters.insert(name.into(), value.into());
    }
    let mut minio = Minio::start(cluster.root.path()).await;
    cluster.stand_in(CLIENT);
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    wait_write(&first, "CREATE TABLE public.t (id int)").await;
    minio.stop();
    fill(&first, 5).await;
    remove_old_wal(&first, &second).await;
    let held = segments(&second);
    assert!(held.iter().all(|name| name.as_str() > "000000010000000000000004"), "the replica has it still: {held:?}");
    Scene { cluster, minio, first, second }
}

async fn fill(primary: &Instance, segments: u32) {
    let open = session(primary, "app").await;
    for _ in 0..segments {
        open.execute(ROWS).await.unwrap();
        open.execute("SELECT pg_switch_wal()").await.unwrap();
    }
}

/// Each removes what it does not need by itself.
async fn remove_old_wal(primary: &Instance, standby: &Instance) {
    session(primary, "app").await.execute("CHECKPOINT").await.unwrap();
    let written = primary.agent.sample_now().await.unwrap().received;
    wait_for(standby, "up to date", |status| status.replayed_lsn >= written).await;
    session(standby, "app").await.execute("CHECKPOINT").await.unwrap();
}

fn segments(instance: &Instance) -> Vec<String> {
    let entries = fs::read_dir(instance.agent.layout.pgdata.join("pg_wal")).unwrap().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.len() == 24);
    names.sort();
    names
}

fn on_the_new_timeline(status: &InstanceStatus) -> bool {
    streams(status) && status.history.as_ref().is_some_and(|history| history.timeline == TimelineId(2))
}

/// The former primary follows; the store comes back after it has removed what a standby does not need.
async fn expect_everything(mut scene: Scene, source: &str) {
    let back = wait_for(&scene.first, "following", on_the_new_timeline).await;
    assert_eq!(back.source.unwrap().source, source);
    fill(&scene.second, 3).await;
    remove_old_wal(&scene.second, &scene.first).await;
    wait_for(&scene.first, "left with WAL of its own", |status| status.archive.left_over > 0).await;
    scene.minio.start_again().await;
    wait_for(&scene.first, "done", |status| status.archive.left_over == 0).await;
    assert!(!scene.first.agent.layout.kept_wal().exists());

    let status = scene.second.agent.board.status();
    let (history, system_id) = (status.history.unwrap(), status.system_id.unwrap());
    let fork = history.ancestors[0].switch_lsn.0;
    assert!(fork > 5 * SEGMENT, "{fork}");
    let location = ClusterLocation { store: scene.minio.config.clone(), cluster: "c".to_owned(), system_id };
    let (from, upto) = (Lsn(SEGMENT), Lsn(fork - fork % SEGMENT));
    let missing = missing_segments(&scene.minio.store().await, &location, &history, from, upto, SEGMENT).await;
    assert_eq!(missing.unwrap(), Vec::<String>::new());
    scene.first.terminate().await;
    scene.second.terminate().await;
}

/// The replica leads, and the former primary has a row of its own.
async fn diverge(scene: &Scene) {
    seal(&scene.second.agent, Term(2)).await.unwrap();
    let lost = format!("SET synchronous_commit = local; {ROWS}");
    session(&scene.first, "app").await.execute(&lost).await.unwrap();
    scene.cluster.register.edit(|register| register.seal_term = Term(2));
    wake(&[&scene.first, &scene.second]).await;
    wait_for(&scene.first, "stopped as primary", |status| !status.is_primary).await;
    claim(&scene.cluster, &scene.second, &[], 2, 0).await;
    wait_for(&scene.second, "primary", |status| status.is_primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_follows_as_it_is_archives_what_it_had() {
    if minio::ran_as_postgres("unarchived::a_former_primary_that_follows_as_it_is_archives_what_it_had") {
        return;
    }
    let scene = lose_the_store().await;
    scene.cluster.register.edit(|register| {
        register.handover = Some(Handover { target: Some("c-1".into()), reason: "switchover requested".into() });
    });
    wake(&[&scene.first]).await;
    wait_released(&scene.cluster).await;
    seal_all(&scene.cluster, &[&scene.second], 2).await;
    claim(&scene.cluster, &scene.second, &[&scene.first], 2, 1).await;
    expect_everything(scene, "initdb").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_is_rewound_archives_what_it_had() {
    if minio::ran_as_postgres("unarchived::a_former_primary_that_is_rewound_archives_what_it_had") {
        return;
    }
    let scene = lose_the_store().await;
    diverge(&scene).await;
    expect_everything(scene, "rewind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_is_built_anew_archives_what_it_had() {
    const NAME: &str = "unarchived::a_former_primary_that_is_built_anew_archives_what_it_had";
    // A pg_rewind that fails.
    if ran_with_rewind(NAME, "#!/bin/sh\nexit 1\n") {
        return;
    }
    let scene = lose_the_store().await;
    diverge(&scene).await;
    expect_everything(scene, "instance").await;
}

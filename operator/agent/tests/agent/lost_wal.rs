//! A replica whose slot lost its WAL: with an archive it catches up by itself, without one it is built anew, with a reason. So is one
//! whose own files are damaged.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{bring_up, first_register, session, streams, wait_for},
};
use pgherd_agent::register_store::MemoryRegister;

/// A cluster whose primary keeps no more WAL than it must.
fn small_wal() -> Cluster {
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    for (name, value) in [("min_wal_size", "32MB"), ("max_wal_size", "32MB"), ("wal_keep_size", "0")] {
        cluster.config.parameters.insert(name.into(), value.into());
    }
    cluster
}

/// The replica is away until its slot is invalid. Only meanwhile do slots keep next to nothing: a copy needs its WAL.
async fn lose_the_slot(cluster: &Cluster, first: &Instance, second: Instance) -> Instance {
    second.terminate().await;
    let open = session(first, "app").await;
    open.execute("SET synchronous_commit = local; CREATE TABLE public.t (id int)").await.unwrap();
    open.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await.unwrap();
    open.execute("SELECT pg_reload_conf()").await.unwrap();
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = 'pgherd_c_1'";
    let mut segments = 0;
    while !open.query(lost, &[]).await.unwrap()[0].get::<_, Option<bool>>(0).unwrap() {
        assert!(segments < 60, "the slot still has its WAL");
        segments += 1;
        open.execute("INSERT INTO public.t SELECT generate_series(1, 1000)").await.unwrap();
        open.execute("SELECT pg_switch_wal()").await.unwrap();
        open.execute("CHECKPOINT").await.unwrap();
    }
    open.execute("ALTER SYSTEM RESET max_slot_wal_keep_size").await.unwrap();
    open.execute("SELECT pg_reload_conf()").await.unwrap();
    cluster.start("c-1", "uid-1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_wal_is_gone_is_built_anew_and_says_why() {
    if ran_as_postgres("lost_wal::a_replica_whose_wal_is_gone_is_built_anew_and_says_why") {
        return;
    }
    let cluster = small_wal();
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    let member = second.agent.board.status().member;
    let second = lose_the_slot(&cluster, &first, second).await;
    let back = wait_for(&second, "built anew", |status| status.source.is_some() && streams(status)).await;
    let source = back.source.unwrap();
    assert!(source.reason.contains("got no WAL") && source.reason.contains("any more"), "{}", source.reason);
    assert_ne!(back.member, member);
    second.terminate().await;
    first.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_wal_is_in_the_archive_catches_up_as_it_is() {
    if ran_as_postgres("lost_wal::a_replica_whose_wal_is_in_the_archive_catches_up_as_it_is") {
        return;
    }
    let mut cluster = small_wal();
    let archive = cluster.root.path().join("archive");
    fs::create_dir(&archive).unwrap();
    let folder = archive.display();
    let text = format!(
        "#!/bin/sh\ncase $1 in archive-wal) exec cp \"$2\" \"{folder}/$3\";; esac\n[ -f \"{folder}/$2\" ] && exec cp \"{folder}/$2\" \"$3\"\nexit 1\n"
    );
    cluster.stand_in(&text);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    let member = second.agent.board.status().member;
    let second = lose_the_slot(&cluster, &first, second).await;
    let back = wait_for(&second, "streaming again", streams).await;
    assert_eq!((back.member, back.source), (member, None));
    second.terminate().await;
    first.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_recovery_fails_each_time_is_built_anew_once_and_says_why() {
    if ran_as_postgres("lost_wal::a_replica_whose_recovery_fails_each_time_is_built_anew_once_and_says_why") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    let open = session(&first, "app").await;
    open.execute("CREATE TABLE public.t (id int)").await.unwrap();
    let path: String = open.query("SELECT pg_relation_filepath('public.t')", &[]).await.unwrap()[0].get(0);
    let written = first.agent.sample_now().await.unwrap().received;
    wait_for(&second, "up to date", |status| status.replayed_lsn >= written).await;
    second.terminate().await;
    // As if its disk could not read it any more.
    let file = cluster.layout("c-1").pgdata.join(&path);
    fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap();
    open.execute("SET synchronous_commit = local; INSERT INTO public.t VALUES (1)").await.unwrap();
    let second = cluster.start("c-1", "uid-1");
    let back = wait_for(&second, "built anew", |status| status.source.is_some() && streams(status)).await;
    let reason = back.source.unwrap().reason;
    assert!(reason.starts_with("its recovery failed"), "{reason}");
    assert!(second.agent.layout.replaced_record().exists(), "a copy that fails as well would be replaced again");
    second.terminate().await;
    first.terminate().await;
}

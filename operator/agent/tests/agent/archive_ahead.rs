//! Segments are brought to the archive before PostgreSQL asks for them, and after it has stopped; they come back from it as
//! they were.

use std::{fs, time::Duration};

use crate::support::{
    Cluster, Instance,
    archive::{archive, ask, restore},
    minio::{self, Minio},
    takeover::{bring_up, first_register, session},
};
use pgherd_agent::{
    archive::{Answer, own_location},
    register_store::MemoryRegister,
};
use tokio::time::{Instant, sleep};

/// What PostgreSQL has marked as ready, oldest first.
fn ready(instance: &Instance) -> Vec<String> {
    let folder = instance.agent.layout.pgdata.join("pg_wal/archive_status");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
    names.sort();
    names
}

async fn write_segments(instance: &Instance, count: usize) {
    let open = session(instance, "app").await;
    open.execute("SET synchronous_commit = local; CREATE TABLE public.t (id int)").await.unwrap();
    for _ in 0..count {
        open.execute("INSERT INTO public.t SELECT generate_series(1, 1000)").await.unwrap();
        open.execute("SELECT pg_switch_wal()").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_segments_are_archived_before_they_are_asked_for_and_come_back_as_they_were() {
    const NAME: &str =
        "archive_ahead::the_next_segments_are_archived_before_they_are_asked_for_and_come_back_as_they_were";
    if minio::ran_as_postgres(NAME) {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    // PostgreSQL's own archive_command fails, so that whatever is in the archive was asked for here, or not at all.
    let primary = bring_up(&cluster, 1).await.pop().unwrap();
    write_segments(&primary, 7).await;
    let ready = ready(&primary);
    assert!(ready.len() >= 7, "{ready:?}");

    let location = own_location(&primary.agent).unwrap();
    let store = minio.store().await;
    let is_archived = async |name: &str| !store.list(&location.wal_key(name)).await.unwrap().is_empty();
    assert_eq!(ask(&primary, &archive(&ready[0])).await.unwrap(), Answer::Done);
    assert!(is_archived(&ready[0]).await);
    let end = Instant::now() + Duration::from_secs(60);
    for name in &ready[1..5] {
        while !is_archived(name).await {
            assert!(Instant::now() < end, "{name} was not brought ahead");
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(!is_archived(&ready[6]).await, "more is in memory than four segments");
    for name in &ready[1..] {
        assert_eq!(ask(&primary, &archive(name)).await.unwrap(), Answer::Done, "{name}");
    }

    let pg_wal = primary.agent.layout.pgdata.join("pg_wal");
    for name in ready.iter().chain(&ready[2..4]) {
        assert_eq!(ask(&primary, &restore(name)).await.unwrap(), Answer::Done, "{name}");
        let (came, was) = (fs::read(pg_wal.join("RECOVERYXLOG")).unwrap(), fs::read(pg_wal.join(name)).unwrap());
        assert!(came == was, "{name} came back as something else");
    }
    // What was not there when the segment before it was fetched is there once it was archived.
    // At a boundary the position counts to the segment before.
    let next = "SELECT pg_walfile_name(pg_current_wal_lsn() + 1)";
    let next = session(&primary, "app").await.query(next, &[]).await.unwrap();
    let next: String = next[0].get(0);
    assert_eq!(ask(&primary, &restore(&next)).await.unwrap(), Answer::Absent);
    write_more(&primary).await;
    assert_eq!(ask(&primary, &archive(&next)).await.unwrap(), Answer::Done);
    assert_eq!(ask(&primary, &restore(&next)).await.unwrap(), Answer::Done);
    primary.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_archives_what_postgresql_did_not() {
    const NAME: &str = "archive_ahead::a_pod_that_ends_archives_what_postgresql_did_not";
    if minio::ran_as_postgres(NAME) {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    // PostgreSQL's own archive_command fails.
    let primary = bring_up(&cluster, 1).await.pop().unwrap();
    write_segments(&primary, 2).await;
    let open = session(&primary, "app").await;
    open.execute("SET synchronous_commit = local; INSERT INTO public.t VALUES (1)").await.unwrap();
    let last = open.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[]).await.unwrap();
    let last: String = last[0].get(0);
    let waiting = ready(&primary);
    let location = own_location(&primary.agent).unwrap();
    primary.terminate().await;

    let store = minio.store().await;
    assert!(!waiting.is_empty() && !waiting.contains(&last), "{waiting:?} and {last}");
    for name in waiting.iter().chain([&last]) {
        assert!(!store.list(&location.wal_key(name)).await.unwrap().is_empty(), "{name} is not in the archive");
    }
}

async fn write_more(instance: &Instance) {
    let open = session(instance, "app").await;
    open.execute("SET synchronous_commit = local; INSERT INTO public.t VALUES (1)").await.unwrap();
    open.execute("SELECT pg_switch_wal()").await.unwrap();
}

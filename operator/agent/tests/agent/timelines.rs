//! A timeline that the archive knows and nobody follows, and what was archived of one after it was left.

use std::{fs, io, time::Duration};

use bytes::Bytes;
use pgherd_agent::{
    agent::RecoverySource,
    archive::{Answer, own_location},
    register_store::MemoryRegister,
};
use pgherd_core::{
    backup::ClusterLocation,
    instance::InstanceStatus,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::wal::{is_archived, push, segment_name};
use tokio::time::{Instant, sleep};

use crate::support::{
    Cluster, Instance,
    archive::{archive, ask, restore},
    minio::{self, Minio},
    takeover::{PATIENCE, bring_up, claim, first_register, seal_all, streams, wait_for, wait_write},
};

const SEGMENT: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_timeline_that_was_archived_and_lost_is_not_taken_again() {
    if minio::ran_as_postgres("timelines::the_number_of_a_timeline_that_was_archived_and_lost_is_not_taken_again") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 3).await;
    let (third, second, first) = (all.pop().unwrap(), all.pop().unwrap(), all.pop().unwrap());
    let system_id = first.agent.board.status().system_id.unwrap();
    let location = ClusterLocation { store: minio.config.clone(), cluster: "c".to_owned(), system_id };
    let store = minio.store().await;
    for lost in ["00000002.history", "00000003.history"] {
        store.put(&location.wal_key(lost), Bytes::from_static(b"1\t0/3000000\tlost\n")).await.unwrap();
    }
    seal_all(&cluster, &[&second, &third], 2).await;
    first.terminate().await;
    claim(&cluster, &second, &[&third], 2, 0).await;
    let status = wait_for(&second, "primary", |status| status.is_primary).await;
    let status = if status.history.as_ref().is_some_and(|history| history.timeline > TimelineId(1)) {
        status
    } else {
        wait_for(&second, "on a timeline of its own", |status| {
            status.history.as_ref().is_some_and(|history| history.timeline > TimelineId(1))
        })
        .await
    };
    let history = status.history.unwrap();
    assert_eq!((history.timeline, history.ancestors.len()), (TimelineId(4), 1), "{history:?}");
    assert_eq!(history.ancestors[0].timeline, TimelineId(1));
    assert_eq!(ask(&second, &archive("00000004.history")).await.unwrap(), Answer::Done);
    wait_write(&second, "CREATE TABLE public.t AS SELECT 1 AS n").await;
    let written = second.agent.board.status().received_lsn;
    // It is sent the histories of the numbers in between as well.
    let follows = |status: &InstanceStatus| streams(status) && status.replayed_lsn >= written;
    let status = wait_for(&third, "following the new timeline", follows).await;
    assert_eq!(status.history.unwrap().timeline, TimelineId(4));
    third.terminate().await;
    second.terminate().await;
}

/// Archives the segment in which a timeline was `left`, and the next one, as a primary does that has not heard of it; returns the first one
/// up to there.
async fn archive_on(instance: &Instance, minio: &Minio, left: Lsn, name: &str, next: &str) -> Vec<u8> {
    let (location, store) = (own_location(&instance.agent).unwrap(), minio.store().await);
    let mut content = fs::read(instance.agent.layout.pgdata.join("pg_wal").join(name)).unwrap();
    let scratch = tempfile::tempdir_in("/tmp").unwrap();
    let end = usize::try_from(left.0 % SEGMENT).unwrap();
    content[end..].fill(0);
    let before = content.clone();
    content[end..].fill(7);
    fs::write(scratch.path().join(name), &content).unwrap();
    push(&store, &location, &scratch.path().join(name), name).await.unwrap();
    let position = u64::from_le_bytes(content[8..16].try_into().unwrap()) + SEGMENT;
    content[8..16].copy_from_slice(&position.to_le_bytes());
    fs::write(scratch.path().join(next), &content).unwrap();
    push(&store, &location, &scratch.path().join(next), next).await.unwrap();
    before
}

/// Asks until the primary is not asked first any more.
async fn ask_archive(standby: &Instance, name: &str) -> Answer {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask(standby, &restore(name)).await.unwrap();
        if answer != Answer::Failed("the primary is asked first".to_owned()) {
            return answer;
        }
        assert!(Instant::now() < end, "the archive is never asked");
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the archive has of a segment. A standby without a primary tries by itself every half second, and removes before that what was
/// fetched: then it is asked for again.
async fn fetch_from_archive(standby: &Instance, name: &str) -> Vec<u8> {
    let fetched = standby.agent.layout.pgdata.join("pg_wal/RECOVERYXLOG");
    let end = Instant::now() + PATIENCE;
    loop {
        assert_eq!(ask_archive(standby, name).await, Answer::Done);
        match fs::read(&fetched) {
            Ok(content) => return content,
            Err(error) => assert!(error.kind() == io::ErrorKind::NotFound && Instant::now() < end, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_archived_of_a_timeline_after_it_was_left_reaches_no_follower() {
    if minio::ran_as_postgres("timelines::what_was_archived_of_a_timeline_after_it_was_left_reaches_no_follower") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 3).await;
    let (third, second, first) = (all.pop().unwrap(), all.pop().unwrap(), all.pop().unwrap());
    seal_all(&cluster, &[&second, &third], 2).await;
    first.terminate().await;
    claim(&cluster, &second, &[&third], 2, 0).await;
    let on_second = |status: &InstanceStatus| {
        streams(status) && status.history.as_ref().is_some_and(|history| history.timeline == TimelineId(2))
    };
    let history = wait_for(&third, "on the second timeline", on_second).await.history.unwrap();
    let left = history.ancestors[0].switch_lsn;
    let segment = |after: u64| segment_name(TimelineId(1), Lsn(left.0 + after * SEGMENT), SEGMENT);
    let (in_it, behind) = (segment(0), segment(1));
    let kept = archive_on(&third, &minio, left, &in_it, &behind).await;

    second.terminate().await;
    assert!(fetch_from_archive(&third, &in_it).await == kept, "it ends at {left}");
    assert_eq!(ask_archive(&third, &behind).await, Answer::Absent, "also where it was fetched ahead");

    // A recovery along the new timeline gets the same, one along the old one all of it.
    let location = own_location(&third.agent).unwrap();
    for (followed, answer) in [(history, Answer::Absent), (TimelineHistory::root(TimelineId(1)), Answer::Done)] {
        let source = RecoverySource { location: location.clone(), history: Some(followed) };
        third.agent.set_recovery_source(Some(source));
        assert_eq!(ask(&third, &restore(&behind)).await.unwrap(), answer);
    }
    third.agent.set_recovery_source(None);
    third.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_histories_of_all_timelines_before_come_to_the_archive_whoever_is_primary() {
    if minio::ran_as_postgres("timelines::the_histories_of_all_timelines_before_come_to_the_archive_whoever_is_primary")
    {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 3).await;
    let (third, second, first) = (all.pop().unwrap(), all.pop().unwrap(), all.pop().unwrap());
    seal_all(&cluster, &[&second, &third], 2).await;
    first.terminate().await;
    claim(&cluster, &second, &[&third], 2, 0).await;
    let on = |number| {
        move |status: &InstanceStatus| status.history.as_ref().is_some_and(|it| it.timeline == TimelineId(number))
    };
    wait_for(&third, "on the second timeline", |status| streams(status) && on(2)(status)).await;
    // As if the store had been away all the time that this one was primary.
    let (location, store) = (own_location(&second.agent).unwrap(), minio.store().await);
    second.terminate().await;
    store.delete(&location.wal_key("00000002.history")).await.unwrap();
    seal_all(&cluster, &[&third], 3).await;
    claim(&cluster, &third, &[], 3, 0).await;
    wait_for(&third, "primary on the third timeline", |status| status.is_primary && on(3)(status)).await;
    let end = Instant::now() + PATIENCE;
    for name in ["00000002.history", "00000003.history"] {
        while !is_archived(&store, &location, name).await.unwrap() {
            assert!(Instant::now() < end, "{name} does not come to the archive");
            sleep(Duration::from_millis(100)).await;
        }
    }
    third.terminate().await;
}

//! A timeline that the archive knows and nobody follows.

use bytes::Bytes;
use pgherd_agent::{archive::Answer, register_store::MemoryRegister};
use pgherd_core::{backup::ClusterLocation, instance::InstanceStatus, timeline::TimelineId};

use crate::support::{
    Cluster,
    archive::{archive, ask},
    minio::{self, Minio},
    takeover::{bring_up, claim, first_register, seal_all, streams, wait_for, wait_write},
};

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

//! The WAL archive: create-only, same bytes are fine, other bytes are not, and absent is only what the store calls absent.

use std::fs;

use bytes::Bytes;
use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    replication::ReplicationClient,
    wal::{FetchOutcome, PushOutcome, WalError, fetch, is_archived, missing_segments, push, segment_name},
};

use crate::{
    postgres::{Postgres, workspace},
    server::{Brand, Server},
};

on_each_server!(segments_are_archived_once_and_fetched_whole, what_the_archive_lacks_is_named,);

const SEGMENT: u64 = 1 << 20;

/// Writes into three segments and gives their names.
pub(crate) fn make_segments(server: &Postgres) -> Vec<String> {
    let make = |n: u32| {
        let name = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.sql(&format!("CREATE TABLE wal_{n} (id int)"));
        server.sql("SELECT pg_switch_wal()");
        name
    };
    (0..3).map(make).collect()
}

async fn segments_are_archived_once_and_fetched_whole(brand: Brand) {
    let dir = workspace();
    let (server, mut minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    let system = ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap();
    let location = ClusterLocation { system_id: system.system_id, ..minio.location() };
    let store = minio.store().await;
    let names = make_segments(&server);
    let file = |name: &str| server.data.join("pg_wal").join(name);

    let first = &names[0];
    assert!(!is_archived(&store, &location, first).await.unwrap());
    assert_eq!(push(&store, &location, &file(first), first).await.unwrap(), PushOutcome::Pushed);
    assert_eq!(push(&store, &location, &file(first), first).await.unwrap(), PushOutcome::AlreadyThere);
    assert!(is_archived(&store, &location, first).await.unwrap());

    let mut changed = fs::read(file(first)).unwrap();
    changed[5000] ^= 1;
    let other = dir.path().join("other");
    fs::write(&other, &changed).unwrap();
    assert!(matches!(push(&store, &location, &other, first).await, Err(WalError::WalConflict { .. })));
    assert!(matches!(push(&store, &location, &file(first), &names[1]).await, Err(WalError::Foreign { .. })));
    let stranger = ClusterLocation { system_id: "42".to_owned(), ..location.clone() };
    assert!(matches!(push(&store, &stranger, &file(first), first).await, Err(WalError::Foreign { .. })));
    assert!(matches!(push(&store, &location, &file(first), "../x").await, Err(WalError::Name(_))));

    let dest = dir.path().join("fetched");
    assert_eq!(fetch(&store, &location, first, &dest).await.unwrap(), FetchOutcome::Fetched);
    assert_eq!(fs::read(&dest).unwrap(), fs::read(file(first)).unwrap());
    let absent = dir.path().join("absent");
    assert_eq!(fetch(&store, &location, &names[1], &absent).await.unwrap(), FetchOutcome::Absent);
    assert!(!absent.exists());

    let history = dir.path().join("00000002.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    assert_eq!(push(&store, &location, &history, "00000002.history").await.unwrap(), PushOutcome::Pushed);
    assert_eq!(fetch(&store, &location, "00000002.history", &dest).await.unwrap(), FetchOutcome::Fetched);
    assert_eq!(fs::read(&dest).unwrap(), fs::read(&history).unwrap());

    // No answer is not "absent": recovery would end early.
    let mut elsewhere = minio.config.clone();
    elsewhere.bucket = "no-such-bucket".to_owned();
    let no_bucket = pgherd_stream::store::ObjectStore::connect(&elsewhere).await.unwrap();
    assert!(fetch(&no_bucket, &location, first, &dest).await.is_err());
    assert!(is_archived(&no_bucket, &location, first).await.is_err());
    minio.stop();
    assert!(matches!(fetch(&store, &location, first, &dest).await, Err(WalError::Store(_))));
}

async fn what_the_archive_lacks_is_named(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    let system = ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap();
    let location = ClusterLocation { system_id: system.system_id, ..minio.location() };
    let store = minio.store().await;
    let from = server.sql("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
    let names = make_segments(&server);
    assert_eq!(names[0], segment_name(TimelineId(1), from, SEGMENT));
    for name in [&names[0], &names[2]] {
        push(&store, &location, &server.data.join("pg_wal").join(name), name).await.unwrap();
    }
    let history = TimelineHistory::root(TimelineId(1));
    let to = Lsn((from.0 / SEGMENT + 3) * SEGMENT);
    let missing = missing_segments(&store, &location, &history, from, to, SEGMENT).await.unwrap();
    assert_eq!(missing, [names[1].clone()]);
    // An upload that came to nothing (wal-g#1578).
    store.put(&location.wal_key(&names[1]), Bytes::new()).await.unwrap();
    let missing = missing_segments(&store, &location, &history, from, to, SEGMENT).await.unwrap();
    assert_eq!(missing, [names[1].clone()], "an empty object is none");
    store.delete(&location.wal_key(&names[1])).await.unwrap();
    push(&store, &location, &server.data.join("pg_wal").join(&names[1]), &names[1]).await.unwrap();
    assert!(missing_segments(&store, &location, &history, from, to, SEGMENT).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_histories_of_real_promotions_come_back_with_or_without_their_digests() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (mut server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let system = ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap();
    let location = ClusterLocation { system_id: system.system_id, ..minio.location() };
    let store = minio.store().await;
    let names = ["00000002.history", "00000003.history", "00000004.history"];
    for name in names {
        server.sql("SELECT pg_create_restore_point('d\u{e9}j\u{e0} vu'), pg_switch_wal()");
        server.stop("fast");
        fs::write(server.data.join("standby.signal"), "").unwrap();
        server.start("");
        server.sql("SELECT pg_promote()");
        let file = server.data.join("pg_wal").join(name);
        assert_eq!(push(&store, &location, &file, name).await.unwrap(), PushOutcome::Pushed);
    }
    let assert_same = async || {
        for name in names {
            let dest = dir.path().join(name);
            assert_eq!(fetch(&store, &location, name, &dest).await.unwrap(), FetchOutcome::Fetched, "{name}");
            assert_eq!(fs::read(&dest).unwrap(), fs::read(server.data.join("pg_wal").join(name)).unwrap());
        }
    };
    assert_same().await;
    for name in names {
        let key = location.wal_key(name);
        assert!(store.head_note(&key, "pgherd-sha256").await.unwrap().unwrap().ends_with(&format!(":{name}")));
        store.put(&key, store.get(&key).await.unwrap().unwrap()).await.unwrap();
        assert_eq!(store.head_note(&key, "pgherd-sha256").await.unwrap(), None);
    }
    assert_same().await;
}

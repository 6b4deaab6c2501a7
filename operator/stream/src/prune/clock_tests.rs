//! A node whose clock is wrong, by the store's or in the ids of its backups.

use bytes::Bytes;
use jiff::SignedDuration;
use pgherd_core::{backup::BackupLocation, retention::RetentionPolicy};

use super::*;
use crate::{
    backup::{SILENT_AGE, SweepScope, sweep_abandoned},
    catalogue::resolve,
    store::fake::FakeStore,
};

/// A store with these backups, oldest first.
async fn store_with(ids: &[&str]) -> (FakeStore, ObjectStore) {
    let fake = FakeStore::start();
    let store = fake.connect().await;
    for (number, id) in (1..).zip(ids) {
        let record = format!(
            r#"{{"format":1,"id":"{id}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"{number}/1",
            "stopLsn":"{number}/2","startedAt":"2026-11-20T02:00:00Z","stoppedAt":"2026-11-20T02:01:00Z","archives":[],
            "manifestSha256":"","tarBytes":0,"storedBytes":0,"walSegmentBytes":16777216}}"#
        );
        store.put(&format!("{}{RECORD_NAME}", fake.location().backup_prefix(id)), record.into()).await.unwrap();
    }
    (fake, store)
}

fn keep_one() -> PruneOptions {
    PruneOptions {
        policy: RetentionPolicy { keep_last: Some(1), keep_for: None },
        pinned: BTreeSet::new(),
        doomed: BTreeSet::new(),
        damaged: BTreeSet::new(),
        now: Timestamp::now(),
    }
}

const FIRST: &str = "20261120T020000Z-00000001-1-1";
const SECOND: &str = "20261121T020000Z-00000001-2-1";
const THIRD: &str = "20261122T020000Z-00000001-3-1";

#[tokio::test]
async fn a_node_whose_clock_is_ahead_of_the_store_s_takes_no_living_reader_for_dead() {
    let (fake, store) = store_with(&[FIRST, SECOND, THIRD]).await;
    let location = fake.location();
    fake.set_clock(SignedDuration::from_hours(-1));
    store.put(&format!("{}/locks/{FIRST}.x.json", location.root()), Bytes::from_static(b"{}")).await.unwrap();
    let plan = plan_prune(&store, &location, &keep_one()).await.unwrap();
    assert_eq!(plan.held, [FIRST]);
    // A reader who comes after the plan is seen too.
    store.put(&format!("{}/locks/{SECOND}.y.json", location.root()), Bytes::from_static(b"{}")).await.unwrap();
    let done = apply_prune(&store, &location, &keep_one(), &plan).await.unwrap();
    assert_eq!((done.backups.len(), done.spared), (0, vec![SECOND.to_owned()]));
    fake.set_clock(SignedDuration::from_mins(-44));
    let plan = plan_prune(&store, &location, &keep_one()).await.unwrap();
    let done = apply_prune(&store, &location, &keep_one(), &plan).await.unwrap();
    assert_eq!(done.backups, [FIRST, SECOND], "a quarter of an hour of the store's has passed");
}

#[tokio::test]
async fn a_store_that_does_not_say_its_time_loses_nothing() {
    let (fake, store) = store_with(&[FIRST, SECOND]).await;
    fake.hide_time();
    let refused = plan_prune(&store, &fake.location(), &keep_one()).await.unwrap_err();
    assert!(matches!(refused, PruneError::Store(StoreError::Other { code, .. }) if code == "NoDate"));
}

#[tokio::test]
async fn a_node_whose_clock_is_ahead_of_the_store_s_sweeps_no_running_backup() {
    let (fake, store) = store_with(&[]).await;
    let location = fake.location();
    fake.set_clock(SignedDuration::from_hours(-1));
    let marker = Marker {
        id: FIRST.to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        archives: vec!["base".to_owned()],
        run: "r".to_owned(),
        owner: None,
        deleting: false,
    };
    let key = format!("{}{MARKER_NAME}", location.backup_prefix(FIRST));
    store.put(&key, marker.encode().unwrap()).await.unwrap();
    let scope = SweepScope { own_id: SECOND, owner: None, silent_age: SILENT_AGE };
    assert_eq!(sweep_abandoned(&store, &location, &scope).await.unwrap(), [""; 0]);
    fake.set_clock(SignedDuration::from_mins(-44));
    assert_eq!(sweep_abandoned(&store, &location, &scope).await.unwrap(), [FIRST]);
}

#[tokio::test]
async fn a_backup_dated_a_year_ahead_is_not_the_newest() {
    const AHEAD: &str = "20271121T020000Z-00000001-2-1";
    let (fake, store) = store_with(&[FIRST, AHEAD, THIRD]).await;
    let newest = BackupLocation { cluster: fake.location(), backup_id: String::new() };
    assert_eq!(resolve(&store, &newest).await.unwrap().1.id, THIRD);
    let plan = plan_prune(&store, &fake.location(), &keep_one()).await.unwrap();
    let going: Vec<&str> = plan.backups.delete.iter().map(|verdict| verdict.id.as_str()).collect();
    assert_eq!(going, [FIRST, AHEAD]);
}

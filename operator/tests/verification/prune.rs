//! The Job of retention: what it deletes, what it refuses, and what it says.

use jiff::Timestamp;
use pgherd::jobs::prune::{
    PruneJobError,
    config::{PolicyConfig, PruneJobConfig},
    prune,
};
use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{catalogue::list_backups, wal::survey_archive};

use crate::{
    archive, is_done,
    postgres::{Postgres, workspace},
    server::Server,
    take,
};

fn config(location: &ClusterLocation, keep_last: Option<u32>) -> PruneJobConfig {
    PruneJobConfig {
        location: location.clone(),
        policy: keep_last.map(|count| PolicyConfig { keep_last: Some(count), keep_for_seconds: None }),
        pinned: vec![],
        doomed: vec![],
        damaged: vec![],
        known: vec![],
        ran_for: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_deletes_by_its_policy_and_says_what_goes_next() {
    if is_done("prune::retention_deletes_by_its_policy_and_says_what_goes_next") {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let store = minio.store().await;
    let (mut location, mut ids, mut wal) = (minio.location(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let (backup, archived) = take(&server, &store, location).await;
        location = backup.cluster;
        ids.push(backup.backup_id);
        wal.push(archived.last().unwrap().clone());
        // An id has seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    let present = async || -> Vec<String> {
        list_backups(&store, &location).await.unwrap().into_iter().map(|record| record.id).collect()
    };

    // A store that lacks what Kubernetes knows is not the right one.
    let mut stranger = config(&location, Some(1));
    stranger.known = vec![ids[0].clone(), "20991122T020000Z-00000001-0-3000028".to_owned()];
    let refused = prune(&stranger, Timestamp::now()).await.unwrap_err();
    assert!(matches!(refused, PruneJobError::NewestIsMissing(id) if id.starts_with("2099")));
    assert_eq!(present().await, ids);

    // The first was made by hand; two good ones of the schedule's stay, and the damaged fourth, as a good one of its age would.
    let mut asked = config(&location, Some(2));
    (asked.pinned, asked.damaged, asked.known) = (vec![ids[0].clone()], vec![ids[3].clone()], ids.clone());
    let done = prune(&asked, Timestamp::now()).await.unwrap();
    let expected = vec![ids[1].clone()];
    assert_eq!((done.kept, &done.deleted, &done.gone), (4, &expected, &expected));
    assert_eq!(done.next, [ids[2].clone(), ids[3].clone()]);
    assert!(done.bytes_freed > 0 && done.next_at.is_none());

    // Without the pin it goes, and the WAL before the oldest that stays.
    asked.pinned.clear();
    let done = prune(&asked, Timestamp::now()).await.unwrap();
    assert_eq!((done.deleted, present().await), (vec![ids[0].clone()], ids[2..].to_vec()));
    assert!(done.deleted_wal >= 2 && done.gone.len() == 2, "{} WAL files", done.deleted_wal);
    assert!(store.head(&location.wal_key(&wal[1])).await.unwrap().is_none());
    assert!(store.head(&location.wal_key(&wal[2])).await.unwrap().is_some());

    // One backup by its id: the newest stays, with the reason; the older one goes.
    let mut one = config(&location, None);
    one.doomed = vec![ids[4].clone()];
    let kept = prune(&one, Timestamp::now()).await.unwrap();
    assert!(kept.refused.unwrap().contains("newest") && kept.deleted.is_empty());
    one.doomed = vec![ids[2].clone()];
    let gone = prune(&one, Timestamp::now()).await.unwrap();
    assert_eq!((gone.refused, gone.deleted), (None, vec![ids[2].clone()]));
    assert_eq!(present().await, ids[3..]);
    let again = prune(&one, Timestamp::now()).await.unwrap();
    assert_eq!((again.refused, again.deleted_count), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_restored_is_found_with_its_gaps() {
    if is_done("prune::what_can_be_restored_is_found_with_its_gaps") {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let store = minio.store().await;
    let history = TimelineHistory::root(TimelineId(1));
    let (backup, _) = take(&server, &store, minio.location()).await;
    let location = backup.cluster;
    server.sql("CREATE TABLE filler AS SELECT generate_series(1, 60000) AS id");
    // The WAL up to here is archived; what is written after it is not.
    let archived = archive(&server, &store, &location).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    take(&server, &store, location.clone()).await;
    let end: Lsn = server.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    server.sql("CREATE TABLE later AS SELECT generate_series(1, 60000) AS id");
    let written: Lsn = server.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();

    let survey = survey_archive(&store, &location, &history, written).await.unwrap().unwrap();
    assert_eq!((survey.oldest.id.as_str(), survey.backups, survey.gaps.len()), (backup.backup_id.as_str(), 2, 0));
    assert_eq!(survey.latest, Some(Lsn(end.0 >> 20 << 20)));
    let lost = &archived[archived.len() - 3];
    store.delete(&location.wal_key(lost)).await.unwrap();
    let survey = survey_archive(&store, &location, &history, written).await.unwrap().unwrap();
    assert_eq!((survey.gaps, survey.latest), (vec![lost.clone()], Some(Lsn(end.0 >> 20 << 20))));
    let elsewhere = ClusterLocation { cluster: "other".to_owned(), ..location };
    assert_eq!(survey_archive(&store, &elsewhere, &history, written).await.unwrap(), None);
}

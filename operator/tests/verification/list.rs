//! `pgherd list-backups`: what is in a bucket, whatever is wrong with some of it.

use pgherd::jobs::standalone::{Listed, list_into};
use pgherd_core::backup::ClusterLocation;
use pgherd_stream::store::ObjectStore;
use serde_json::Value;

use crate::server::Server;

/// What is printed, what is told of it, and how much that was.
async fn list(store: &ObjectStore, location: &ClusterLocation) -> Result<(Vec<String>, String, Listed), String> {
    let (mut out, mut problems) = (Vec::new(), Vec::new());
    let listed = list_into(store, location, &mut out, &mut problems).await.map_err(|error| error.to_string())?;
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        format!("{}/{}/{}", line["cluster"], line["systemId"], line["id"]).replace('"', "")
    };
    let lines = String::from_utf8(out).unwrap().lines().map(line).collect();
    Ok((lines, String::from_utf8(problems).unwrap(), listed))
}

async fn put_backup(store: &ObjectStore, location: &ClusterLocation, id: &str, position: u32) {
    let record = format!(
        r#"{{"format":1,"id":"{id}","cluster":"x","systemId":"{}","serverVersion":170000,"timeline":1,"startLsn":"{position}/1",
        "stopLsn":"{position}/2","startedAt":"","stoppedAt":"","archives":[],"manifestSha256":"","tarBytes":0,"storedBytes":0,
        "walSegmentBytes":16777216}}"#,
        location.system_id
    );
    store.put(&format!("{}backup.json", location.backup_prefix(id)), record.into()).await.unwrap();
}

fn at(server: &Server, cluster: &str, system_id: &str) -> ClusterLocation {
    ClusterLocation { cluster: cluster.to_owned(), system_id: system_id.to_owned(), ..server.location() }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_in_a_bucket_is_listed_and_what_is_damaged_is_named() {
    if std::env::var("PGHERD_TEST_WITHOUT_POSTGRES").is_ok_and(|value| value == "1") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_plain(dir.path()).await;
    let store = server.store().await;
    let anything = at(&server, "", "");
    assert!(list(&store, &anything).await.unwrap_err().contains("no complete backup in s3://backups/pre/fix"));

    put_backup(&store, &at(&server, "shop", "7"), "a", 2).await;
    put_backup(&store, &at(&server, "shop", "7"), "b", 1).await;
    put_backup(&store, &at(&server, "shop", "8"), "c", 1).await;
    put_backup(&store, &at(&server, "web", "9"), "d", 1).await;
    store.put(&format!("{}/wal/00000002.history", at(&server, "new", "5").root()), "x".into()).await.unwrap();
    let (lines, problems, listed) = list(&store, &anything).await.unwrap();
    assert_eq!(lines, ["shop/7/b", "shop/7/a", "shop/8/c", "web/9/d"], "of a system the newest is last");
    assert_eq!(problems, "pgherd: pre/fix/new/5 holds no complete backup\n");
    assert_eq!(listed, Listed { backups: 4, unreadable: 0 });
    assert_eq!(list(&store, &at(&server, "shop", "")).await.unwrap().0, ["shop/7/b", "shop/7/a", "shop/8/c"]);
    assert_eq!(list(&store, &at(&server, "", "9")).await.unwrap().0, ["web/9/d"]);

    let damaged = format!("{}backup.json", at(&server, "shop", "7").backup_prefix("a"));
    store.put(&damaged, "{".into()).await.unwrap();
    let (lines, problems, listed) = list(&store, &at(&server, "shop", "7")).await.unwrap();
    assert_eq!((lines, listed), (vec!["shop/7/b".to_owned()], Listed { backups: 1, unreadable: 1 }));
    assert!(problems.contains(&damaged), "{problems}");
    assert!(list(&store, &at(&server, "nobody", "")).await.unwrap_err().contains("no cluster \"nobody\""));
}

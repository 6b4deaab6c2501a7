//! Which of a cluster's backups is the newest, and which are looked at.

use std::sync::Arc;

use pgherd_crds::Backup;
use serde_json::{Value, json};

use super::{decide::KnownState, ground::Ground, observe::describe_backup};
use crate::controllers::{
    backup::tests::location,
    postgres_cluster::{
        test_support::{MINIMAL, cluster},
        validate::ValidatedStore,
    },
};

/// A completed Backup of the schedule `s`, named after the position of its end.
fn backup(number: u32, id: &str, status: Value) -> Backup {
    let mut shown = json!({
        "phase": "Completed", "id": id, "destination": location().destination(id), "timeline": 1, "stopLsn": format!("{number}/1"),
        "restorable": true, "pitrReady": true
    });
    shown.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "pgherd.dev/v1alpha1", "kind": "Backup", "spec": {"clusterRef": {"name": "shop"}}, "status": shown,
        "metadata": {"name": format!("b{number}"), "labels": {"pgherd.dev/schedule": "s"}, "creationTimestamp": "2026-11-22T02:00:00Z"}
    }))
    .unwrap()
}

fn ground(backups: Vec<Backup>) -> Ground {
    let store = ValidatedStore {
        config: location().store,
        credentials_secret: "minio".to_owned(),
        ca_secret: None,
        identity_secret: None,
    };
    Ground {
        namespace: "web".to_owned(),
        cluster: Arc::new(cluster(MINIMAL)),
        store,
        location: location(),
        backups: backups.into_iter().map(Arc::new).collect(),
    }
}

#[test]
fn a_backup_dated_a_year_ahead_is_not_the_newest() {
    let ahead = "20271122T020000Z-00000001-2-1";
    let ids =
        ["20261120T020000Z-00000001-1-1", ahead, "20261122T020000Z-00000001-3-1", "20261121T020000Z-00000002-0-1"];
    let mut last = backup(0, ids[3], json!({"timeline": 2}));
    last.metadata.name = Some("b4".to_owned());
    let ground =
        ground(vec![last, backup(2, ids[1], json!({})), backup(1, ids[0], json!({})), backup(3, ids[2], json!({}))]);
    assert_eq!(ground.list_known(), ids, "a restore in place went back, and on to the next timeline");
    assert_eq!(ground.newest_of("s").as_deref(), Some(ids[3]));
    assert_eq!(ground.newest_to_verify().unwrap().metadata.name.as_deref(), Some("b4"));
}

#[test]
fn a_condemned_backup_is_not_the_newest_and_not_forgotten() {
    let pruned =
        json!({"type": "Ready", "status": "False", "reason": "Pruned", "message": "", "lastTransitionTime": ""});
    let gone = backup(3, "c", json!({"restorable": false, "conditions": [pruned]}));
    let ground = ground(vec![backup(1, "a", json!({})), backup(2, "b", json!({"restorable": false})), gone]);
    assert_eq!(ground.newest_to_verify().unwrap().metadata.name.as_deref(), Some("b1"));
    assert_eq!(ground.newest_condemned().unwrap().metadata.name.as_deref(), Some("b2"));
}

#[test]
fn a_backup_that_says_it_was_complete_in_a_year_is_no_longer_under_way() {
    let completed = json!({"type": "Completed", "status": "True", "reason": "Completed", "message": "",
        "lastTransitionTime": "2026-11-22T02:05:00Z"});
    let ahead = backup(1, "x", json!({"completedAt": "2027-11-22T02:04:00Z", "conditions": [completed]}));
    let state = describe_backup(&ahead, "s").unwrap().state;
    assert_eq!(state, KnownState::Completed("2026-11-22T02:05:00Z".parse().unwrap()));
}

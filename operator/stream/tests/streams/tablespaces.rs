//! A backup with a tablespace comes back: in place below pg_tblspc, or where the user says; and is refused when nobody says.

use std::{collections::BTreeMap, fs};

use pgherd_core::backup::BackupLocation;
use pgherd_stream::restore::{RestoreError, RestoreProgress, RestoreSettings, TablespacePlaces, restore_backup_with};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, hand_over, workspace},
    server::Server,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_comes_back_in_place_or_where_it_is_told_to() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let place = server.make_tablespace(dir.path());
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
    let (outcome, _) = back_up(&server, minio.location()).await;
    assert_eq!(outcome.record.archives.len(), 2);
    drop(server);
    fs::rename(&place, dir.path().join("space.old")).unwrap();
    let store = minio.store().await;
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let restore = async |name: &str, places: TablespacePlaces| {
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        let settings = RestoreSettings { places, combine: None };
        restore_backup_with(&store, &location, &dir.path().join(name), &settings, sender, CancellationToken::new())
            .await
    };
    let refused = restore("refused", TablespacePlaces::Refuse).await;
    assert!(matches!(refused, Err(RestoreError::Tablespaces(names)) if names[0].starts_with(&oid)));
    assert!(!dir.path().join("refused").exists());
    let relative = TablespacePlaces::At(BTreeMap::from([(oid.clone(), "relative".into())]));
    assert!(matches!(restore("relative", relative).await, Err(RestoreError::TablespacePlace(_))));

    let moved = dir.path().join("moved");
    let at = TablespacePlaces::At(BTreeMap::from([(oid.clone(), moved.clone())]));
    for (name, places) in [("in_place", TablespacePlaces::InPlace), ("mapped", at)] {
        restore(name, places).await.unwrap();
        if moved.exists() {
            hand_over(&moved);
        }
        let restored = Postgres::on(dir.path(), name);
        assert_eq!(restored.sql("SELECT count(*), sum(id) FROM there"), "50000|1250025000", "{name}");
        assert_eq!(restored.sql("SELECT pg_relation_filepath('there') LIKE 'pg_tblspc/%'"), "t");
        restored.sql("INSERT INTO there VALUES (0); CHECKPOINT");
    }
    assert!(!place.exists(), "the source's own place is left alone");
}

//! What a recovery begins with is found in the store, and what it lacks is named before anything is written.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation},
    instance::RecoveryTarget,
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_stream::{
    proof::{ProofError, plan_recovery, read_history},
    restore::{RestoreProgress, restore_backup},
    store::ObjectStore,
    wal::{FetchOutcome, fetch_along, push},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, hand_over, program, run, workspace},
    server::{Brand, Server},
};

on_each_server!(the_backup_before_the_target_is_found_and_what_is_missing_is_named);

const SEGMENT: u64 = 1 << 20;
const NOW: &str = r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;

/// A database with a store, and what was archived from it.
struct Archived {
    server: Postgres,
    store: ObjectStore,
    location: ClusterLocation,
}

impl Archived {
    /// Ends the segment that is being written, and archives all that are complete.
    async fn archive(&self) {
        self.server.sql("SELECT pg_logical_emit_message(true, 'x', 'y')");
        self.server.sql("SELECT pg_switch_wal()");
        let complete = "SELECT string_agg(name, ' ') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND name < \
                        pg_walfile_name(pg_current_wal_insert_lsn())";
        for name in self.server.sql(complete).split_whitespace() {
            self.push(name).await;
        }
    }

    async fn push(&self, name: &str) {
        push(&self.store, &self.location, &self.server.data.join("pg_wal").join(name), name).await.unwrap();
    }

    async fn back_up(&mut self) -> String {
        let (outcome, _) = back_up(&self.server, self.location.clone()).await;
        self.location = outcome.location;
        self.archive().await;
        // An id has seconds, and so have the times of a backup.
        tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
        outcome.record.id
    }

    /// Where the last record of a segment begins, as PostgreSQL sees it.
    fn last_record(&self, name: &str) -> Lsn {
        let printed = program("pg_waldump").arg(self.server.data.join("pg_wal").join(name)).output().unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        let (_, lsn) = printed.lines().last().unwrap().split_once("lsn: ").unwrap();
        lsn.split_once(',').unwrap().0.parse().unwrap()
    }

    /// The segment that is written, and where it begins.
    fn current(&self) -> (String, Lsn) {
        let name = self.server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let lsn = self.server.sql("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
        (name, Lsn(lsn.0 / SEGMENT * SEGMENT))
    }

    async fn plan(&self, id: &str, target: RecoveryTarget) -> Result<(String, Option<TimelineId>), ProofError> {
        let unnamed = ClusterLocation { system_id: String::new(), ..self.location.clone() };
        let from = BackupLocation { cluster: unnamed, backup_id: id.to_owned() };
        let (location, record, history) = plan_recovery(&self.store, &from, &target, false, Timestamp::now()).await?;
        assert_eq!((&location.backup_id, &location.cluster), (&record.id, &self.location));
        Ok((record.id, history.map(|history| history.timeline)))
    }
}

async fn the_backup_before_the_target_is_found_and_what_is_missing_is_named(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
    let mut db = Archived { server, store: minio.store().await, location: minio.location() };
    let too_early = db.server.sql(NOW);
    let first = db.back_up().await;
    let between = db.server.sql(NOW);
    let inside = db.server.sql("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
    db.archive().await;
    let second = db.back_up().await;
    let time = |text: &str| RecoveryTarget::Time(text.to_owned());
    let one = Some(TimelineId(1));

    assert_eq!(db.plan("", RecoveryTarget::Latest).await.unwrap(), (second.clone(), one));
    assert_eq!(db.plan("", time(&between)).await.unwrap(), (first.clone(), one));
    assert_eq!(db.plan("", RecoveryTarget::Lsn(inside)).await.unwrap(), (first.clone(), one));
    assert_eq!(db.plan(&first, RecoveryTarget::Latest).await.unwrap(), (first.clone(), one));
    assert_eq!(db.plan("", RecoveryTarget::Immediate).await.unwrap(), (second.clone(), None));
    assert!(matches!(db.plan("", time(&too_early)).await, Err(ProofError::TooEarly { .. })));
    assert!(matches!(db.plan(&second, time(&between)).await, Err(ProofError::AfterTarget { .. })));
    assert!(matches!(db.plan("", time("2100-01-01T00:00:00Z")).await, Err(ProofError::Future(_))));
    assert!(matches!(db.plan("", RecoveryTarget::Lsn(Lsn(1 << 40))).await, Err(ProofError::Ahead { .. })));
    assert!(matches!(db.plan("20200101T000000Z-1-0", RecoveryTarget::Latest).await, Err(ProofError::Catalogue(_))));

    // No segment is full of records: what is behind the last one is not reached.
    let (name, begin) = db.current();
    db.archive().await;
    let (last, border) = (db.last_record(&name), Lsn(begin.0 + SEGMENT));
    assert!(last > begin && last.0 < border.0 - 8);
    assert_eq!(db.plan("", RecoveryTarget::Lsn(last)).await.unwrap(), (second.clone(), one));
    for behind in [Lsn(last.0 + 1), Lsn(border.0 - 1), border] {
        let refused = db.plan("", RecoveryTarget::Lsn(behind)).await;
        let Err(ProofError::NoRecord { reachable, .. }) = refused else { panic!("{behind}: {refused:?}") };
        assert_eq!(reachable, Some(last), "{behind}");
    }

    // A hole behind the newest backup: everything before it can be reached, and it says up to where that is.
    let (before, _) = db.current();
    db.archive().await;
    let (lost, _) = db.current();
    db.archive().await;
    db.archive().await;
    db.store.delete(&db.location.wal_key(&lost)).await.unwrap();
    let Err(ProofError::Missing { names, reachable: Some(end) }) = db.plan("", RecoveryTarget::Latest).await else {
        panic!("a hole was not seen")
    };
    assert_eq!(names, std::slice::from_ref(&lost));
    assert_eq!(end, db.last_record(&before));
    assert_eq!(db.plan("", RecoveryTarget::Lsn(end)).await.unwrap(), (second.clone(), one));
    assert_eq!(db.plan("", time(&between)).await.unwrap(), (first.clone(), one));
    assert_eq!(db.plan("", RecoveryTarget::Immediate).await.unwrap(), (second.clone(), None));
    db.push(&lost).await;

    // After a promotion the new timeline is followed, and its history is needed.
    db.server.stop("fast");
    fs::write(db.server.data.join("standby.signal"), "").unwrap();
    db.server.start("");
    db.server.sql("SELECT pg_promote()");
    db.push("00000002.history").await;
    let two = Some(TimelineId(2));
    assert_eq!(db.plan("", RecoveryTarget::Latest).await.unwrap(), (second.clone(), two), "before it has WAL");
    db.archive().await;
    assert_eq!(db.plan("", RecoveryTarget::Latest).await.unwrap(), (second.clone(), two));
    assert_eq!(db.plan("", time(&between)).await.unwrap(), (first, two));
    db.store.delete(&db.location.wal_key("00000002.history")).await.unwrap();
    let Err(ProofError::Missing { names, .. }) = db.plan("", RecoveryTarget::Latest).await else {
        panic!("a missing history was not seen")
    };
    assert_eq!(names, ["00000002.history"]);
    assert_eq!(db.plan("", RecoveryTarget::Immediate).await.unwrap(), (second, None));
}

/// A primary that was left in the middle of a segment ends it all the same, and archives it; its successor's own is still open.
async fn leave_behind(db: &mut Archived, dir: &Path) -> Lsn {
    db.server.sql("CREATE TABLE steps (what text)");
    db.archive().await;
    db.server.sql("INSERT INTO steps VALUES ('before the fork')");
    db.server.stop("fast");
    run(Command::new("cp").arg("-a").arg(&db.server.data).arg(dir.join("successor")));
    fs::write(dir.join("successor/standby.signal"), "").unwrap();
    let successor = Postgres::on(dir, "successor");
    successor.sql("SELECT pg_promote()");
    let history = successor.data.join("pg_wal/00000002.history");
    push(&db.store, &db.location, &history, "00000002.history").await.unwrap();
    db.server.start("");
    db.server.sql("INSERT INTO steps VALUES ('behind the fork')");
    db.archive().await;
    db.server.sql("INSERT INTO steps VALUES ('a segment behind the fork')");
    db.archive().await;
    let history = read_history(&db.store, &db.location, TimelineId(2)).await.unwrap();
    history.ancestors[0].switch_lsn
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_primary_archived_after_it_was_left_behind_is_not_recovered() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(Brand::Minio, dir.path()).await);
    let mut db = Archived { server, store: minio.store().await, location: minio.location() };
    let id = db.back_up().await;
    let fork = leave_behind(&mut db, dir.path()).await;
    let (planned, timeline) = db.plan("", RecoveryTarget::Latest).await.unwrap();
    assert_eq!((&planned, timeline), (&id, Some(TimelineId(2))));

    // What restore_command would be given, file by file.
    let history = read_history(&db.store, &db.location, TimelineId(2)).await.unwrap();
    let fetched = dir.path().join("fetched");
    fs::create_dir(&fetched).unwrap();
    let mut absent = Vec::new();
    for (key, _) in db.store.list(&format!("{}/wal/", db.location.root())).await.unwrap() {
        let name = key.rsplit('/').next().unwrap().trim_end_matches(".zst").to_owned();
        let outcome = fetch_along(&db.store, &db.location, &history, &name, &fetched.join(&name)).await.unwrap();
        absent.extend((outcome == FetchOutcome::Absent).then_some(name));
    }
    assert_eq!(absent.len(), 1, "the segment that begins behind the fork: {absent:?}");
    let script = dir.path().join("fetch-wal");
    fs::write(&script, format!("#!/bin/sh\nexec cp '{}'/\"$1\" \"$2\"\n", fetched.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    hand_over(&fetched);

    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let location = BackupLocation { cluster: db.location.clone(), backup_id: id };
    let target = dir.path().join("restored");
    restore_backup(&db.store, &location, &target, sender, CancellationToken::new()).await.unwrap();
    let settings = format!("restore_command = '{} %f %p'\nrecovery_target_timeline = 2\n", script.display());
    fs::write(target.join("postgresql.auto.conf"), settings).unwrap();
    fs::write(target.join("recovery.signal"), "").unwrap();
    let restored = Postgres::on(dir.path(), "restored");
    crate::wait_until("recovery ends", async || restored.sql("SELECT pg_is_in_recovery()") == "f").await;
    assert_eq!(restored.sql("SELECT string_agg(what, ', ') FROM steps"), "before the fork");
    let left = fs::read_to_string(restored.data.join("pg_wal/00000003.history")).unwrap();
    assert!(left.contains(&format!("2\t{fork}\t")), "everything up to the fork was replayed: {left}");
}

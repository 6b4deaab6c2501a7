//! Incremental backups against a server that speaks the protocol of PostgreSQL 17: which kind a backup becomes and why, that a
//! chain comes back or names what it lacks, and that retention never breaks one. What PostgreSQL and its pg_combinebackup make
//! of it is for the end-to-end tests: here a script stands for the program.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jiff::{SignedDuration, Timestamp};
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation, INCREMENTAL_FORMAT},
    chain::{ChainError, ParentChoice},
    retention::RetentionPolicy,
};
use pgherd_stream::{
    backup::{BackupKind, BackupOptions, BackupOutcome, BackupProgress, IncrementalOptions, run_backup},
    prune::{PruneOptions, PruneOutcome, PrunePlan, apply_prune, plan_prune},
    restore::{RestoreError, RestoreOutcome, RestoreProgress, RestoreSettings, restore_backup_with, verify_backup},
    store::ObjectStore,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    fake_server::{Content, FakeServer, Incrementals, SYSTEM_ID},
    postgres::workspace,
    process::connect,
    server::Server,
};

/// Says that it is of PostgreSQL 17 and hands on the newest member as the result.
const COMBINES: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "pg_combinebackup (PostgreSQL) 17.6"; exit; fi
while [ "$1" != -o ]; do newest=$1; test -e "$1/global/pg_control" || exit 3; shift; done
cp -R "$newest" "$2"
"#;

struct Scene {
    dir: TempDir,
    server: FakeServer,
    _minio: Server,
    store: ObjectStore,
    location: ClusterLocation,
}

impl Scene {
    async fn start(incrementals: Incrementals) -> Self {
        let dir = workspace();
        let server = FakeServer::start_with(dir.path(), Content::Rows, 2, incrementals);
        let minio = Server::start_plain(dir.path()).await;
        let store = minio.store().await;
        let location = ClusterLocation { system_id: SYSTEM_ID.to_owned(), ..minio.location() };
        Self { dir, server, _minio: minio, store, location }
    }

    async fn back_up(&self, parent: ParentChoice) -> BackupOutcome {
        // Ids tell seconds apart, and in a chain which one is the newest.
        let second = Timestamp::now().as_second();
        crate::wait_until("the next second", async || Timestamp::now().as_second() > second).await;
        let (sender, _receiver) = watch::channel(BackupProgress::default());
        let sockets = self.server.sockets.display().to_string();
        let mut options = BackupOptions::new(connect(sockets, self.server.port), self.location.clone());
        options.incremental = Some(IncrementalOptions { parent, max_chain: 3, damaged: Vec::new() });
        run_backup(options, sender, CancellationToken::new()).await.unwrap()
    }

    async fn chain(&self, length: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..length {
            ids.push(self.back_up(ParentChoice::Newest).await.record.id);
        }
        ids
    }

    fn program(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("pg_combinebackup");
        // By another process: what this one has open for writing, a program that it starts meanwhile has open as well.
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        path
    }

    fn at(&self, id: &str) -> BackupLocation {
        BackupLocation { cluster: self.location.clone(), backup_id: id.to_owned() }
    }

    async fn restore(&self, id: &str, target: &Path, combine: Option<PathBuf>) -> Result<RestoreOutcome, RestoreError> {
        let (sender, receiver) = watch::channel(RestoreProgress::default());
        let settings = RestoreSettings { combine, ..RestoreSettings::default() };
        let cancel = CancellationToken::new();
        let outcome = restore_backup_with(&self.store, &self.at(id), target, &settings, sender, cancel).await?;
        let progress = receiver.borrow().clone();
        assert_eq!(Some(progress.bytes_done), progress.bytes_total, "of the whole chain");
        Ok(outcome)
    }

    async fn plan(&self, keep_last: u32, doomed: &[&str]) -> (PruneOptions, PrunePlan) {
        let options = PruneOptions {
            policy: RetentionPolicy { keep_last: Some(keep_last), keep_for: None },
            pinned: BTreeSet::new(),
            doomed: doomed.iter().map(|id| (*id).to_owned()).collect(),
            damaged: BTreeSet::new(),
            now: Timestamp::now() + SignedDuration::from_secs(1),
        };
        let plan = plan_prune(&self.store, &self.location, &options).await.unwrap();
        (options, plan)
    }

    async fn prune(&self, keep_last: u32, doomed: &[&str]) -> PruneOutcome {
        let (options, plan) = self.plan(keep_last, doomed).await;
        apply_prune(&self.store, &self.location, &options, &plan).await.unwrap()
    }

    async fn locks(&self) -> usize {
        self.store.list(&format!("{}/locks/", self.location.root())).await.unwrap().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_grows_to_its_limit_and_comes_back() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::start(Incrementals::Made).await;
    let first = scene.back_up(ParentChoice::Newest).await;
    assert_eq!(first.kind, BackupKind::Full(Some("there is no earlier backup".to_owned())));
    let second = scene.back_up(ParentChoice::Newest).await;
    let expected = BackupKind::Incremental { parent: first.record.id.clone(), chain_length: 2 };
    assert_eq!((second.kind, second.record.format), (expected, INCREMENTAL_FORMAT));
    let key = format!("{}backup_manifest", scene.location.backup_prefix(&first.record.id));
    let manifest = scene.store.get(&key).await.unwrap().unwrap();
    assert_eq!(*scene.server.manifests.lock().unwrap(), [manifest.to_vec()], "the server was told the parent's");
    let third = scene.back_up(ParentChoice::Newest).await;
    assert!(matches!(third.kind, BackupKind::Incremental { chain_length: 3, .. }), "{:?}", third.kind);
    let fourth = scene.back_up(ParentChoice::Newest).await;
    assert!(matches!(&fourth.kind, BackupKind::Full(Some(why)) if why.contains("limit")), "{:?}", fourth.kind);
    assert_eq!(scene.locks().await, 0, "nobody needs the parents any more");

    let (id, target) = (&third.record.id, scene.dir.path().join("pgdata"));
    let outcome = scene.restore(id, &target, Some(scene.program(COMBINES))).await.unwrap();
    assert_eq!(&outcome.record.id, id);
    assert!(target.join("global/pg_control").exists() && target.join("base/5/INCREMENTAL.16384").exists());
    assert!(!scene.dir.path().join(".pgdata.pgherd-chain").exists(), "the scratch directory is gone");
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let verified = verify_backup(&scene.store, &scene.at(id), sender, CancellationToken::new()).await.unwrap();
    assert_eq!(verified.files, 3 * 3, "of all members");
    assert_eq!(scene.locks().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_or_the_store_refuses_becomes_a_full_backup_in_the_same_run() {
    if crate::without_real_parts() {
        return;
    }
    let why = "WAL summaries are required on timeline 1 from 0/1 to 0/2, but no summaries exist";
    let scene = Scene::start(Incrementals::Refused(why)).await;
    let first = scene.back_up(ParentChoice::Newest).await;
    let second = scene.back_up(ParentChoice::Newest).await;
    assert_eq!(second.kind, BackupKind::Full(Some(format!("the server says: {why}"))));
    assert_eq!((second.record.parent, scene.locks().await), (None, 0));
    let key = format!("{}backup_manifest", scene.location.backup_prefix(&first.record.id));
    scene.store.put(&key, "{}".into()).await.unwrap();
    let third = scene.back_up(ParentChoice::Id(first.record.id)).await;
    assert!(matches!(&third.kind, BackupKind::Full(Some(why)) if why.contains("is not the one of the record")));
    scene.store.delete(&key).await.unwrap();
    let fourth = scene.back_up(ParentChoice::Id("nonsense".to_owned())).await;
    assert_eq!(fourth.kind, BackupKind::Full(Some("there is no backup nonsense".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_cannot_come_back_says_why_and_leaves_nothing() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::start(Incrementals::Made).await;
    let ids = scene.chain(3).await;
    let target = scene.dir.path().join("pgdata");
    let refused = scene.restore(&ids[2], &target, None).await;
    assert!(matches!(refused, Err(RestoreError::NoCombine(id)) if id == ids[2]));
    let old = scene.program("#!/bin/sh\necho 'pg_combinebackup (PostgreSQL) 18.1'\n");
    let refused = scene.restore(&ids[2], &target, Some(old)).await;
    assert!(matches!(refused, Err(RestoreError::CombineVersion { expected: 17, .. })));
    let fails = COMBINES.replace("cp -R", "echo 'no room' >&2; exit 1;");
    let failed = scene.restore(&ids[2], &target, Some(scene.program(&fails))).await;
    assert!(matches!(failed, Err(RestoreError::Combine { printed, .. }) if printed == "no room"));
    for harm in [
        "rm \"$2/base/5/INCREMENTAL.16384\"",
        "printf x >>\"$2/global/pg_control\"",
        "rm $2/pg_wal/*",
        "touch \"$2/more\"",
    ] {
        let harms = format!("{COMBINES}{harm}\n");
        let damaged = scene.restore(&ids[2], &target, Some(scene.program(&harms))).await;
        assert!(matches!(damaged, Err(RestoreError::Manifest(_) | RestoreError::Inconsistent(_))), "{harm}");
        assert!(!target.exists() && !scene.dir.path().join(".pgdata.pgherd-chain").exists(), "{harm}");
    }

    let key = format!("{}backup.json", scene.location.backup_prefix(&ids[0]));
    let record = scene.store.get(&key).await.unwrap().unwrap();
    scene.store.delete(&key).await.unwrap();
    let broken = scene.restore(&ids[2], &target, Some(scene.program(COMBINES))).await;
    let missing = ChainError::Missing { child: ids[1].clone(), parent: ids[0].clone() };
    assert!(matches!(broken, Err(RestoreError::Chain(error)) if error == missing));
    assert!(!target.exists() && scene.locks().await == 0);
    let next = scene.back_up(ParentChoice::Newest).await;
    assert!(matches!(&next.kind, BackupKind::Full(Some(why)) if why.contains(&ids[0])), "{:?}", next.kind);
    scene.store.put(&key, record).await.unwrap();
    scene.restore(&ids[2], &target, Some(scene.program(COMBINES))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_never_breaks_a_chain() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::start(Incrementals::Made).await;
    let old = scene.chain(3).await;
    let (_, plan) = scene.plan(1, &[&old[0]]).await;
    let why = plan.backups.keep.iter().find(|verdict| verdict.id == old[0]).map(|verdict| verdict.why.clone());
    assert!(why.is_some_and(|why| why.contains(&old[2])), "{:?}", plan.backups);
    assert_eq!(scene.prune(1, &[&old[0]]).await, PruneOutcome::default());
    let full = scene.back_up(ParentChoice::Newest).await.record.id;

    // The plan is made, and then somebody makes an incremental backup of what is to go.
    let (options, plan) = scene.plan(1, &[]).await;
    let doomed: Vec<&str> = plan.backups.delete.iter().map(|verdict| verdict.id.as_str()).collect();
    assert_eq!(doomed, [&old[2], &old[1], &old[0]], "the youngest first");
    let child = scene.back_up(ParentChoice::Id(old[1].clone())).await;
    assert!(matches!(child.kind, BackupKind::Incremental { chain_length: 3, .. }));
    let done = apply_prune(&scene.store, &scene.location, &options, &plan).await.unwrap();
    assert_eq!(done.backups, [old[2].clone()]);
    assert_eq!(done.spared, [old[1].clone(), old[0].clone()]);
    let target = scene.dir.path().join("pgdata");
    scene.restore(&child.record.id, &target, Some(scene.program(COMBINES))).await.unwrap();

    // The newest one, made of them, keeps them; once there is a newer one they go together.
    assert_eq!(scene.prune(1, &[]).await.backups, [full]);
    scene.back_up(ParentChoice::Id("none".to_owned())).await;
    assert_eq!(scene.prune(1, &[]).await.backups, [child.record.id, old[1].clone(), old[0].clone()]);
}

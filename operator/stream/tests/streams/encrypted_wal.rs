//! The WAL archive with encryption: begun, changed and ended at any segment; create-only under both names; nothing plain.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation},
    lsn::Lsn,
    retention::RetentionPolicy,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    encryption::KeyError,
    prune::{PruneOptions, apply_prune, plan_prune},
    replication::ReplicationClient,
    restore::{RestoreProgress, restore_backup},
    store::ObjectStore,
    wal::{FetchOutcome, PushOutcome, WalError, fetch, is_archived, missing_segments, push, push_divergent},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    encryption::{MARKER, Pair, find_plain, with_keys},
    faults::chain,
    postgres::{Postgres, hand_over, run, workspace},
    server::{Brand, Server},
};

on_each_server!(
    encryption_begins_changes_and_ends_at_any_segment_and_a_name_is_taken_once,
    without_its_digest_an_encrypted_segment_is_compared_by_decrypting_it_or_not_at_all,
    a_point_in_time_is_reached_through_plain_and_encrypted_wal,
    retention_needs_no_key_and_takes_both_kinds_of_objects,
);

const SEGMENT: u64 = 1 << 20;

struct Scene {
    dir: tempfile::TempDir,
    server: Postgres,
    minio: Server,
    store: ObjectStore,
    plain: ClusterLocation,
}

impl Scene {
    async fn set(brand: Brand) -> Self {
        let dir = workspace();
        let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start(brand, dir.path()).await);
        let system = ReplicationClient::connect(&server.connect()).await.unwrap().identify_system().await.unwrap();
        let plain = ClusterLocation { system_id: system.system_id, ..minio.location() };
        let store = minio.store().await;
        Self { dir, server, minio, store, plain }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.server.data.join("pg_wal").join(name)
    }

    /// Writes into a segment, ends it, and gives its name.
    fn write_segment(&self) -> String {
        self.server.sql(&format!("SELECT pg_logical_emit_message(false, 'x', '{MARKER}')"));
        self.server.sql("SELECT pg_walfile_name(pg_switch_wal() - 1)")
    }

    async fn push(&self, location: &ClusterLocation, name: &str) -> Result<PushOutcome, WalError> {
        push(&self.store, location, &self.file(name), name).await
    }

    /// The same segment with one byte changed.
    async fn push_other(&self, location: &ClusterLocation, name: &str) -> Result<PushOutcome, WalError> {
        let mut changed = fs::read(self.file(name)).unwrap();
        changed[5000] ^= 1;
        let other = self.dir.path().join("other");
        fs::write(&other, &changed).unwrap();
        push(&self.store, location, &other, name).await
    }

    async fn assert_fetched(&self, location: &ClusterLocation, name: &str) {
        let dest = self.dir.path().join("fetched");
        assert_eq!(fetch(&self.store, location, name, &dest).await.unwrap(), FetchOutcome::Fetched, "{name}");
        assert_eq!(fs::read(&dest).unwrap(), fs::read(self.file(name)).unwrap(), "{name}");
        fs::remove_file(&dest).unwrap();
    }
}

async fn encryption_begins_changes_and_ends_at_any_segment_and_a_name_is_taken_once(brand: Brand) {
    let scene = Scene::set(brand).await;
    let (old, new) = (Pair::make(scene.dir.path(), "old"), Pair::make(scene.dir.path(), "new"));
    let modes = [scene.plain.clone(), with_keys(&scene.plain, &[&old], None), with_keys(&scene.plain, &[&new], None)];
    let from = scene.server.sql("SELECT pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap();
    let mut names = Vec::new();
    for mode in [&modes[0], &modes[1], &modes[2], &modes[0]] {
        let name = scene.write_segment();
        assert!(!is_archived(&scene.store, mode, &name).await.unwrap());
        assert_eq!(scene.push(mode, &name).await.unwrap(), PushOutcome::Pushed);
        names.push(name);
    }
    // Whatever is configured by now: the same bytes are fine and others never, and no second object appears.
    let before = scene.store.list(&scene.plain.root()).await.unwrap();
    for mode in &modes {
        for name in &names {
            assert_eq!(scene.push(mode, name).await.unwrap(), PushOutcome::AlreadyThere, "{name}");
            let other = scene.push_other(mode, name).await;
            assert!(matches!(&other, Err(WalError::WalConflict { key }) if key.contains(name.as_str())), "{other:?}");
            assert!(is_archived(&scene.store, mode, name).await.unwrap());
        }
    }
    assert_eq!(scene.store.list(&scene.plain.root()).await.unwrap(), before);
    let sealed: Vec<bool> = before.iter().map(|(key, _)| key.ends_with(".zst.age")).collect();
    assert_eq!(sealed, [false, true, true, false]);

    let both = scene.dir.path().join("both");
    fs::write(&both, [&old.file, &new.file].map(|file| fs::read_to_string(file).unwrap()).concat()).unwrap();
    for location in [with_keys(&scene.plain, &[], Some(&both)), with_keys(&scene.plain, &[&new], Some(&both))] {
        for name in &names {
            scene.assert_fetched(&location, name).await;
        }
    }
    let (absent, dest) = (scene.write_segment(), scene.dir.path().join("absent"));
    assert_eq!(fetch(&scene.store, &modes[1], &absent, &dest).await.unwrap(), FetchOutcome::Absent);
    let to = Lsn((from.0 / SEGMENT + 5) * SEGMENT);
    let history = TimelineHistory::root(TimelineId(1));
    let missing = missing_segments(&scene.store, &scene.plain, &history, from, to, SEGMENT).await.unwrap();
    assert_eq!(missing, [absent], "plain or encrypted, an archived segment is no gap");

    // A missing or wrong key is no "absent": a recovery must not end there.
    let error = fetch(&scene.store, &modes[1], &names[1], &dest).await.unwrap_err();
    assert!(matches!(error, WalError::Key(KeyError::NoIdentity { .. })), "{error:?}");
    let error =
        fetch(&scene.store, &with_keys(&scene.plain, &[], Some(&old.file)), &names[2], &dest).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains(&names[2]) && text.contains(old.file.to_str().unwrap()), "{text}");
    let error = scene.push(&with_keys(&scene.plain, &[&new], Some(&old.file)), &names[0]).await.unwrap_err();
    assert!(matches!(error, WalError::Key(KeyError::Unpaired { .. })), "{error:?}");
    assert!(!dest.exists());
}

async fn without_its_digest_an_encrypted_segment_is_compared_by_decrypting_it_or_not_at_all(brand: Brand) {
    let scene = Scene::set(brand).await;
    let pair = Pair::make(scene.dir.path(), "identity");
    let (writes, reads) =
        (with_keys(&scene.plain, &[&pair], None), with_keys(&scene.plain, &[&pair], Some(&pair.file)));
    let name = scene.write_segment();
    scene.push(&writes, &name).await.unwrap();
    let key = scene.plain.sealed_wal_key(&name).unwrap();
    let digest = scene.store.head_note(&key, "pgherd-digest").await.unwrap().unwrap();
    assert_eq!(digest.len(), 32 + 1 + 64, "{digest}");
    // A copy of a bucket may lose what stands beside the objects.
    let good = scene.store.get(&key).await.unwrap().unwrap();
    scene.store.put(&key, good.clone()).await.unwrap();
    assert!(matches!(scene.push(&writes, &name).await, Err(WalError::Unproven { .. })));
    assert_eq!(scene.push(&reads, &name).await.unwrap(), PushOutcome::AlreadyThere);
    assert!(matches!(scene.push_other(&reads, &name).await, Err(WalError::WalConflict { .. })));
    let mut flipped = good.to_vec();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    scene.store.put(&key, Bytes::from(flipped)).await.unwrap();
    let dest = scene.dir.path().join("fetched");
    let text = chain(&fetch(&scene.store, &reads, &name, &dest).await.unwrap_err());
    assert!(text.contains(&key) && text.contains("damaged"), "{text}");
    assert!(!dest.exists());

    // What somebody encrypted by hand is read as well.
    let (segment, object) = (scene.dir.path().join("segment.zst"), scene.dir.path().join("segment.zst.age"));
    run(Command::new("zstd").args(["-q", "-f", "-o"]).arg(&segment).arg(scene.file(&name)));
    run(Command::new("age").arg("-r").arg(&pair.recipient).arg("-o").arg(&object).arg(&segment));
    scene.store.put(&key, Bytes::from(fs::read(&object).unwrap())).await.unwrap();
    scene.assert_fetched(&reads, &name).await;

    // A branch that was left is kept encrypted as well; a history is not: it holds no rows.
    let prefix = format!("{}/divergent/1-m/", scene.plain.root());
    push_divergent(&scene.store, &writes, &scene.file(&name), &name, &prefix).await.unwrap();
    let kept = scene.store.list(&prefix).await.unwrap();
    assert_eq!(kept.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), [format!("{prefix}{name}.zst.age")]);
    let history = scene.dir.path().join("00000002.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    for outcome in [PushOutcome::Pushed, PushOutcome::AlreadyThere] {
        assert_eq!(push(&scene.store, &writes, &history, "00000002.history").await.unwrap(), outcome);
    }
    let plain = scene.store.get(&scene.plain.wal_key("00000002.history")).await.unwrap().unwrap();
    assert_eq!(plain, fs::read(&history).unwrap());
    assert_eq!(find_plain(&scene.store, &scene.plain.root()).await, [""; 0]);
}

/// What docs/backup-by-hand.md gives as restore_command, on a copy of the bucket in a folder.
fn write_script(scene: &Scene, copy: &Path, identity: &Path) -> PathBuf {
    let text = format!(
        "#!/bin/bash\nset -euo pipefail\nwal={}\nobject=$wal/${{1:0:8}}/${{1:8:8}}/$1.zst\ncase $1 in\n  *.history) cat \"$wal/$1\" >\"$2\" ;;\n  *) if [ -e \"$object.age\" ]; then age -d -i {} \"$object.age\"; else cat \"$object\"; fi | zstd -dcq >\"$2\" ;;\nesac\n",
        copy.display(),
        identity.display()
    );
    let script = scene.dir.path().join("fetch-wal");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

async fn copy_wal(scene: &Scene, copy: &Path) {
    let root = format!("{}/wal/", scene.plain.root());
    for (key, _) in scene.store.list(&root).await.unwrap() {
        let path = copy.join(key.strip_prefix(&root).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, scene.store.get(&key).await.unwrap().unwrap()).unwrap();
    }
}

async fn a_point_in_time_is_reached_through_plain_and_encrypted_wal(brand: Brand) {
    let scene = Scene::set(brand).await;
    let pair = Pair::make(scene.dir.path(), "identity");
    let sealed = with_keys(&scene.plain, &[&pair], Some(&pair.file));
    scene.server.sql("CREATE TABLE steps (n int)");
    let (outcome, _) = back_up(&scene.server, sealed.clone()).await;
    let mut segments = vec![scene.write_segment()];
    for step in 1..=4 {
        scene.server.sql(&format!("INSERT INTO steps VALUES ({step})"));
        scene.server.sql(&format!("SELECT pg_create_restore_point('after_{step}')"));
        segments.push(scene.write_segment());
    }
    let first = outcome.record.start_lsn.0 / SEGMENT;
    let earlier = fs::read_dir(scene.server.data.join("pg_wal")).unwrap().flatten();
    let mut names: Vec<String> = earlier.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| {
        name.len() == 24 && *name <= segments[4] && u64::from_str_radix(&name[16..], 16).unwrap() >= first
    });
    names.sort();
    for (number, name) in names.iter().enumerate() {
        let location = if number % 2 == 0 { &sealed } else { &scene.plain };
        scene.push(location, name).await.unwrap();
    }
    let location = BackupLocation { cluster: sealed, backup_id: outcome.record.id };
    let (target, copy) = (scene.dir.path().join("restored"), scene.dir.path().join("copy"));
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    restore_backup(&scene.store, &location, &target, sender, CancellationToken::new()).await.unwrap();
    copy_wal(&scene, &copy).await;
    fs::set_permissions(&pair.file, fs::Permissions::from_mode(0o644)).unwrap();
    hand_over(&copy);
    let script = write_script(&scene, &copy, &pair.file);
    let settings = format!(
        "restore_command = '{} %f %p'\nrecovery_target_name = 'after_2'\nrecovery_target_action = 'promote'\n",
        script.display()
    );
    fs::write(target.join("postgresql.auto.conf"), settings).unwrap();
    fs::write(target.join("recovery.signal"), "").unwrap();
    let restored = Postgres::on(scene.dir.path(), "restored");
    crate::wait_until("recovery ends", async || restored.sql("SELECT pg_is_in_recovery()") == "f").await;
    assert_eq!(restored.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM steps"), "1,2");
}

async fn retention_needs_no_key_and_takes_both_kinds_of_objects(brand: Brand) {
    let scene = Scene::set(brand).await;
    let pair = Pair::make(scene.dir.path(), "identity");
    let sealed = with_keys(&scene.plain, &[&pair], None);
    let mut taken = Vec::new();
    for location in [&sealed, &scene.plain, &sealed] {
        let outcome = back_up(&scene.server, location.clone()).await.0;
        let name = scene.write_segment();
        scene.push(location, &name).await.unwrap();
        taken.push((outcome.record.id, name));
        // An id has seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    let policy = RetentionPolicy { keep_last: Some(1), keep_for: None };
    let options =
        PruneOptions { policy, pinned: [].into(), doomed: [].into(), damaged: [].into(), now: jiff::Timestamp::now() };
    let plan = plan_prune(&scene.store, &scene.plain, &options).await.unwrap();
    let done = apply_prune(&scene.store, &scene.plain, &options, &plan).await.unwrap();
    assert_eq!(done.backups, [taken[0].0.clone(), taken[1].0.clone()]);
    for (id, name) in &taken[..2] {
        assert_eq!(scene.store.list(&scene.plain.backup_prefix(id)).await.unwrap(), []);
        assert!(!is_archived(&scene.store, &scene.plain, name).await.unwrap(), "{name}");
    }
    assert!(is_archived(&scene.store, &scene.plain, &taken[2].1).await.unwrap());
    let location =
        BackupLocation { cluster: with_keys(&scene.plain, &[], Some(&pair.file)), backup_id: taken[2].0.clone() };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let target = scene.dir.path().join("restored");
    restore_backup(&scene.store, &location, &target, sender, CancellationToken::new()).await.unwrap();
    assert_eq!(scene.minio.open_uploads(), 0);
}

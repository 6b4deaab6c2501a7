//! Damage in the store: a flipped bit, a cut, another object's bytes, in each object of a real backup and archive, plain and
//! encrypted. Each is found by the object's name, and nothing of it comes to where PostgreSQL would read it.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_stream::{
    restore::{RestoreProgress, restore_backup},
    store::ObjectStore,
    wal::{FetchOutcome, fetch, push},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    encryption::{Pair, with_keys},
    faults::chain,
    postgres::{Postgres, workspace},
    server::Server,
};

const NOTE: &str = "pgherd-sha256";
const SECOND: &str = "1\t0/3000060\tno recovery target specified\n";
const THIRD: &str = "1\t0/3000060\tno recovery target specified\n\n2\t0/50000A0\tno recovery target specified\n";

/// What reads an object.
#[derive(Clone, Debug)]
enum Reader {
    Restore(String),
    Fetch(String),
}

struct Scene {
    dir: tempfile::TempDir,
    server: Postgres,
    _minio: Server,
    store: ObjectStore,
    cluster: ClusterLocation,
    /// Two of each kind: key and reader.
    pairs: Vec<[(String, Reader); 2]>,
}

impl Scene {
    async fn set(encrypted: bool) -> Self {
        let dir = workspace();
        let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
        let store = minio.store().await;
        let mut cluster = minio.location();
        if encrypted {
            let pair = Pair::make(dir.path(), "identity");
            cluster = with_keys(&cluster, &[&pair], Some(&pair.file));
        }
        let mut scene = Self { dir, server, _minio: minio, store, cluster, pairs: Vec::new() };
        let first = scene.take().await;
        scene.server.sql("CREATE TABLE more AS SELECT generate_series(1, 30000) AS id");
        // An id has seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let second = scene.take().await;
        scene.pairs = first.into_iter().zip(second).map(|(first, second)| [first, second]).collect();
        let mut histories = Vec::new();
        for (name, content) in [("00000002.history", SECOND), ("00000003.history", THIRD)] {
            fs::write(scene.source(name), content).unwrap();
            push(&scene.store, &scene.cluster, &scene.source(name), name).await.unwrap();
            histories.push((scene.cluster.wal_key(name), Reader::Fetch(name.to_owned())));
        }
        scene.pairs.push(histories.try_into().unwrap());
        scene
    }

    /// A backup and a segment: their objects.
    async fn take(&mut self) -> Vec<(String, Reader)> {
        let (outcome, _) = back_up(&self.server, self.cluster.clone()).await;
        self.cluster = outcome.location;
        let name = self.server.sql("SELECT pg_walfile_name(pg_switch_wal() - 1)");
        // The server keeps it for no longer than it needs it.
        fs::copy(self.server.data.join("pg_wal").join(&name), self.source(&name)).unwrap();
        push(&self.store, &self.cluster, &self.source(&name), &name).await.unwrap();
        let keys = self.store.list(&self.cluster.backup_prefix(&outcome.record.id)).await.unwrap();
        let mut objects: Vec<_> =
            keys.into_iter().map(|(key, _)| (key, Reader::Restore(outcome.record.id.clone()))).collect();
        assert_eq!(objects.len(), 4, "record, manifest, data, index");
        let sealed = self.cluster.store.encryption.is_some();
        let key = if sealed { self.cluster.sealed_wal_key(&name).unwrap() } else { self.cluster.wal_key(&name) };
        objects.push((key, Reader::Fetch(name)));
        objects
    }

    fn source(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads what the object belongs to as a recovery does. On an error nothing is left that PostgreSQL would take.
    async fn read(&self, reader: &Reader) -> Result<(), String> {
        let target = self.dir.path().join("target");
        match reader {
            Reader::Restore(id) => {
                let location = BackupLocation { cluster: self.cluster.clone(), backup_id: id.clone() };
                let (sender, _receiver) = watch::channel(RestoreProgress::default());
                let result = restore_backup(&self.store, &location, &target, sender, CancellationToken::new()).await;
                assert_eq!(target.join("global/pg_control").exists(), result.is_ok());
                let _ = fs::remove_dir_all(&target);
                result.map(|_| ()).map_err(|error| chain(&error))
            }
            Reader::Fetch(name) => {
                let result = fetch(&self.store, &self.cluster, name, &target).await;
                assert_eq!(target.exists(), result.is_ok());
                if let Ok(outcome) = &result {
                    assert_eq!(*outcome, FetchOutcome::Fetched);
                    assert_eq!(fs::read(&target).unwrap(), fs::read(self.source(name)).unwrap(), "{name}");
                    fs::remove_file(&target).unwrap();
                }
                result.map(|_| ()).map_err(|error| chain(&error))
            }
        }
    }

    /// Replaces an object's bytes, and nothing of what the store keeps beside them.
    async fn replace(&self, key: &str, bytes: Bytes, note: Option<&str>) {
        self.store.delete(key).await.unwrap();
        self.store.put_if_absent_noted(key, bytes, note.map(|note| (NOTE, note))).await.unwrap();
    }

    async fn assert_found(&self, what: &str, (key, reader): &(String, Reader), bytes: Bytes, note: Option<&str>) {
        self.replace(key, bytes, note).await;
        let name = key.rsplit('/').next().unwrap();
        let name = name.strip_suffix(".age").unwrap_or(name);
        // A segment is known by the name that PostgreSQL asked for.
        let name = name.strip_suffix(".zst").filter(|name| name.len() == 24).unwrap_or(name);
        let Err(text) = self.read(reader).await else { panic!("{key}, {what}: not found") };
        assert!(text.contains(name), "{key}, {what}: {text}");
    }
}

/// First, middle, last, and two anywhere.
fn choose_positions(length: usize, seed: &mut u64) -> Vec<usize> {
    let mut next = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        usize::try_from(*seed % length as u64).unwrap()
    };
    vec![0, length / 2, length - 1, next(), next()]
}

/// The size of the window, in the head of an object's first zstd frame (RFC 8878, 3.1.1.1.2): with another one the same bytes are
/// decoded.
fn only_says_how_much_memory(key: &str, at: usize) -> bool {
    key.contains(".zst") && !key.ends_with(".age") && at == 5
}

async fn damage_each(encrypted: bool) {
    let scene = Scene::set(encrypted).await;
    let mut seed = match std::env::var("PGHERD_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap(),
    };
    println!("PGHERD_TEST_SEED={seed}");
    for [object, other] in &scene.pairs {
        let (key, reader) = object;
        let good = scene.store.get(key).await.unwrap().unwrap();
        let note = scene.store.head_note(key, NOTE).await.unwrap();
        let positions = choose_positions(good.len(), &mut seed);
        for at in positions.into_iter().filter(|at| !only_says_how_much_memory(key, *at)) {
            let mut flipped = good.to_vec();
            // In the head of a zstd frame there is a bit that means nothing; this one is not it.
            flipped[at] ^= 1;
            scene.assert_found(&format!("byte {at} flipped"), object, flipped.into(), note.as_deref()).await;
        }
        for length in [0, good.len() / 2, good.len() - 1] {
            scene.assert_found(&format!("cut to {length}"), object, good.slice(..length), note.as_deref()).await;
        }
        let others = scene.store.get(&other.0).await.unwrap().unwrap();
        let others_note = scene.store.head_note(&other.0, NOTE).await.unwrap();
        scene.assert_found("another's bytes", object, others, others_note.as_deref()).await;
        scene.replace(key, good, note.as_deref()).await;
        scene.read(reader).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_plain_object_is_found_by_its_name() {
    if !crate::without_real_parts() {
        damage_each(false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_encrypted_object_is_found_by_its_name() {
    if !crate::without_real_parts() {
        damage_each(true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_lost_its_digest_is_judged_by_its_form_and_by_its_parents() {
    if crate::without_real_parts() {
        return;
    }
    let scene = Scene::set(false).await;
    let [(parent, _), third] = scene.pairs.last().unwrap();
    let (key, reader) = third;
    scene.replace(key, THIRD.into(), None).await;
    scene.read(reader).await.unwrap();
    // All numbers but the position at which the last timeline was left, which nothing else tells.
    let [numbers, last] = [0..9, THIRD.rfind("2\t").unwrap()..THIRD.rfind("2\t").unwrap() + 1];
    for at in numbers.chain(last) {
        for bit in 0..8 {
            let mut flipped = THIRD.as_bytes().to_vec();
            flipped[at] ^= 1 << bit;
            // Another white space is the same to PostgreSQL.
            let is_space = |text: &[u8]| char::from(text[at]).is_whitespace();
            let same = is_space(&flipped) && is_space(THIRD.as_bytes());
            if !same {
                scene.assert_found(&format!("bit {bit} of byte {at}"), third, flipped.into(), None).await;
            }
        }
    }
    // A parent that is gone cannot be asked; one that is damaged is named.
    scene.replace(key, THIRD.into(), None).await;
    scene.replace(parent, SECOND.replace('6', "x").into(), None).await;
    let text = scene.read(reader).await.unwrap_err();
    assert!(text.contains("00000002.history"), "{text}");
    scene.store.delete(parent).await.unwrap();
    scene.read(reader).await.unwrap();
}

//! What comes from a server or a store is not to be trusted: no panic, no memory without bound, no path out of the data
//! directory, whatever the bytes are.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use bytes::Bytes;
use pgherd_core::backup::{BackupLocation, BackupRecord};
use pgherd_stream::{
    base_backup::{BaseBackup, BaseBackupEvent, BaseBackupOptions},
    catalogue::render_checksum,
    index::BackupIndex,
    manifest::Manifest,
    replication::ReplicationClient,
    restore::{RestoreError, RestoreProgress, restore_backup},
    store::ObjectStore,
    tar::{TarKind, TarPiece, TarScanner, validate_path},
    wal::WalName,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, workspace},
    process::connect,
    server::Server,
};

/// What a real server says: to the start of a session, and to BASE_BACKUP (its first and last bytes).
fn capture(server: &Postgres) -> (Vec<u8>, Vec<u8>) {
    let mut stream = UnixStream::connect(server.sockets.join(format!(".s.PGSQL.{}", server.port))).unwrap();
    let body = b"\0\x03\0\0user\0postgres\0replication\0true\0\0";
    stream.write_all(&u32::try_from(body.len() + 4).unwrap().to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let greeting = read_to_ready(&mut stream);
    let sql = b"BASE_BACKUP (LABEL 'x', CHECKPOINT 'fast', WAL true, WAIT false, MANIFEST 'yes')\0";
    stream.write_all(b"Q").unwrap();
    stream.write_all(&u32::try_from(sql.len() + 4).unwrap().to_be_bytes()).unwrap();
    stream.write_all(sql).unwrap();
    let backup = read_to_ready(&mut stream);
    let ends = [&backup[..300_000], &backup[backup.len() - 200_000..]].concat();
    (greeting, ends)
}

fn read_to_ready(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut body).unwrap();
        all.extend_from_slice(&head);
        all.extend_from_slice(&body);
        if head[0] == b'Z' {
            return all;
        }
    }
}

/// A server that says what it is told to, whatever it is asked.
fn replay(folder: &Path, port: u16, greeting: Vec<u8>, answer: Vec<u8>) {
    let path = folder.join(format!(".s.PGSQL.{port}"));
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut ignored = [0; 4096];
        let _ = stream.read(&mut ignored);
        let _ = stream.write_all(&greeting);
        let _ = stream.read(&mut ignored);
        let _ = stream.write_all(&answer);
    });
}

async fn read_replayed(folder: &Path, port: u16) -> Result<(), String> {
    let options = connect(folder.to_str().unwrap().to_owned(), port);
    let client = ReplicationClient::connect(&options).await.map_err(|error| error.to_string())?;
    let options = BaseBackupOptions {
        label: "x".to_owned(),
        fast_checkpoint: true,
        max_rate: None,
        manifest: true,
        incremental: false,
    };
    let mut backup = BaseBackup::start(client, &options).await.map_err(|error| error.to_string())?;
    let (mut scanner, mut manifest) = (TarScanner::new(), Vec::new());
    loop {
        match backup.next().await.map_err(|error| error.to_string())? {
            BaseBackupEvent::Data(data) => {
                let mut input = &data[..];
                while let Some(piece) = scanner.next(&mut input).map_err(|error| error.to_string())? {
                    if let TarPiece::Entry(entry) = piece {
                        validate_path(&entry.path).unwrap();
                    }
                }
            }
            BaseBackupEvent::Manifest(data) => manifest.extend_from_slice(&data),
            BaseBackupEvent::End { .. } => {
                return Manifest::parse(&manifest).map(|_| ()).map_err(|error| error.to_string());
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_capture_with_changed_bytes_is_an_error_and_never_a_panic() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let server = Postgres::create(dir.path(), "primary", 1);
    let (greeting, backup) = capture(&server);
    let mut runner = TestRunner::new(Config::default());
    let change = (any::<prop::sample::Index>(), any::<u8>());
    // Half of them in the first kilobytes, where the structure is.
    let changes = (prop::collection::vec(change, 1..6), any::<bool>(), any::<prop::sample::Index>(), any::<bool>());
    // `make fuzz` raises it.
    for case in 0..Config::default().cases {
        let (changes, early, cut, cut_it) = changes.new_tree(&mut runner).unwrap().current();
        let mut changed = backup.clone();
        let range = if early { 3000 } else { changed.len() };
        for (at, byte) in &changes {
            let at = at.index(range);
            changed[at] = *byte;
        }
        if cut_it {
            changed.truncate(cut.index(changed.len()));
        }
        let port = 6000 + u16::try_from(case % 50_000).unwrap();
        replay(&server.sockets, port, greeting.clone(), changed);
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), read_replayed(&server.sockets, port)).await;
        // The middle is missing, so that no archive of it can be whole.
        assert!(read.expect("it ends").is_err(), "{changes:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_index_and_no_manifest(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = BackupIndex::decode(&bytes);
        let _ = BackupIndex::decode(&zstd::bulk::compress(&bytes, 1).unwrap());
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn json_of_the_right_form_with_arbitrary_values_is_read_or_refused(path in "\\PC{0,40}", numbers in prop::array::uniform6(any::<u64>())) {
        let [size, offset, mode, crc, stored, decoded] = numbers;
        let path = serde_json::Value::from(path);
        let text = format!(
            r#"{{"format":1,"archives":[{{"name":"base","segments":[[[{stored},{decoded}]]],"entries":[{{"path":{path},"kind":"file","mode":{mode},"size":{size},"offset":{offset},"crc32c":{crc}}}]}}]}}"#
        );
        let _ = BackupIndex::decode(&zstd::bulk::compress(text.as_bytes(), 1).unwrap());
    }

    #[test]
    fn a_path_that_is_accepted_stays_inside(path in "[./a-z\\\\\0~]{0,24}") {
        if validate_path(&path).is_ok() {
            let root = Path::new("/data");
            let joined = root.join(&path);
            prop_assert!(joined.starts_with(root) && joined != root);
            prop_assert!(joined.components().all(|part| part != std::path::Component::ParentDir));
        }
    }

    #[test]
    fn a_wal_name_that_is_accepted_is_no_path(name in "[0-9A-F./a-z]{0,44}") {
        if WalName::parse(&name).is_ok() {
            prop_assert!(!name.contains('/') && !name.contains(".."));
        }
    }
}

async fn put_index(store: &ObjectStore, prefix: &str, record: &BackupRecord, index: &BackupIndex) {
    let encoded = index.encode().unwrap();
    let mut record = record.clone();
    record.index_sha256 = Some(Sha256::digest(&encoded).iter().map(|byte| format!("{byte:02x}")).collect());
    record.checksum = Some(render_checksum(&record).unwrap());
    store.put(&format!("{prefix}index.json.zst"), Bytes::from(encoded)).await.unwrap();
    store.put(&format!("{prefix}backup.json"), Bytes::from(serde_json::to_vec(&record).unwrap())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_hostile_names_writes_nothing() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let (outcome, _) = back_up(&server, minio.location()).await;
    let store = minio.store().await;
    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let location = BackupLocation { cluster: outcome.location.clone(), backup_id: outcome.record.id.clone() };
    let good = BackupIndex::decode(&store.get(&format!("{prefix}index.json.zst")).await.unwrap().unwrap()).unwrap();
    let restore = async |name: &str, index: BackupIndex| {
        put_index(&store, &prefix, &outcome.record, &index).await;
        let target = dir.path().join(name);
        let (sender, _receiver) = watch::channel(RestoreProgress::default());
        let result = restore_backup(&store, &location, &target, sender, CancellationToken::new()).await;
        (result, target)
    };
    let file = good.archives[0].entries.iter().position(|entry| entry.path == "PG_VERSION").unwrap();
    let escape = dir.path().join("escaped");
    for (number, path) in
        ["../escaped", escape.to_str().unwrap(), "base/../../escaped", "", "a//b"].into_iter().enumerate()
    {
        let mut index = good.clone();
        index.archives[0].entries[file].path = path.to_owned();
        let (result, target) = restore(&format!("path{number}"), index).await;
        assert!(matches!(result, Err(RestoreError::Tar(_))), "{path}: {result:?}");
        assert!(!target.exists() && !escape.exists(), "not a byte before all is checked");
    }
    let mut index = good.clone();
    index.archives[0].entries[file].kind = TarKind::Symlink("/etc".to_owned());
    assert!(matches!(restore("link", index).await.0, Err(RestoreError::Symlink(_))));
    let mut index = good.clone();
    index.archives[0].entries[file].size = u64::MAX;
    assert!(matches!(restore("size", index).await.0, Err(RestoreError::Inconsistent(_))));
    let mut index = good.clone();
    index.archives[0].name = "../base".to_owned();
    assert!(matches!(restore("name", index).await.0, Err(RestoreError::Inconsistent(_))));
    let mut index = good.clone();
    index.archives[0].segments[0][0].1 = u32::MAX;
    assert!(restore("frame", index).await.0.is_err());
    restore("good", good).await.0.unwrap();
}

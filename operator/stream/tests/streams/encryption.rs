//! Encrypted backups: they come back by pgherd and by `age` alone, the store never sees plain data, and a missing or wrong key is
//! told before a byte is written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pgherd_core::backup::{BackupLocation, ClusterLocation, EncryptionConfig};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupProgress, run_backup},
    catalogue::list_backups,
    encryption::KeyError,
    restore::{RestoreError, RestoreProgress, RestoreSettings, TablespacePlaces, restore_backup_with, verify_backup},
    store::ObjectStore,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    faults::chain,
    postgres::{Postgres, run, verify, workspace},
    server::{Brand, Server},
};

on_each_server!(an_encrypted_backup_comes_back_by_pgherd_and_by_age_alone_and_the_store_never_sees_plain_data);

/// What no object may show.
pub(crate) const MARKER: &str = "pgherd-marker-9f2c41d7-nobody-else-writes-this";

/// A pair of age's own making: the recipient, and the file of the identity.
pub(crate) struct Pair {
    pub(crate) recipient: String,
    pub(crate) file: PathBuf,
}

impl Pair {
    /// By the `age-keygen` that users have (Debian's package `age`; e2e/deps.sh installs it).
    pub(crate) fn make(folder: &Path, name: &str) -> Self {
        let file = folder.join(name);
        run(Command::new("age-keygen").arg("-o").arg(&file));
        let shown = run(Command::new("age-keygen").arg("-y").arg(&file));
        Self { recipient: String::from_utf8(shown.stdout).unwrap().trim().to_owned(), file }
    }
}

/// The same place with these keys.
pub(crate) fn with_keys(location: &ClusterLocation, recipients: &[&Pair], identity: Option<&Path>) -> ClusterLocation {
    let mut location = location.clone();
    location.store.encryption = Some(EncryptionConfig {
        recipients: recipients.iter().map(|pair| pair.recipient.clone()).collect(),
        identity_file: identity.map(|path| path.display().to_string()),
    });
    location
}

async fn restore_to(location: &BackupLocation, target: &Path, places: &TablespacePlaces) -> Result<u64, RestoreError> {
    let store = ObjectStore::connect(&location.cluster.store).await.unwrap();
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let settings = RestoreSettings { places: places.clone(), combine: None };
    let outcome = restore_backup_with(&store, location, target, &settings, sender, CancellationToken::new()).await?;
    Ok(outcome.files)
}

async fn read_through(location: &BackupLocation) -> Result<u64, RestoreError> {
    let store = ObjectStore::connect(&location.cluster.store).await.unwrap();
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    Ok(verify_backup(&store, location, sender, CancellationToken::new()).await?.files)
}

/// `age -d` of an object, then `zstd -d`, as docs/backup-by-hand.md says.
pub(crate) fn open_by_hand(identity: &Path, object: &Path, zstd: bool) -> Vec<u8> {
    let mut age = Command::new("age");
    age.arg("-d").arg("-i").arg(identity).arg(object);
    if !zstd {
        return run(&mut age).stdout;
    }
    let mut age = age.stdout(Stdio::piped()).spawn().unwrap();
    let plain = run(Command::new("zstd").args(["-dcq"]).stdin(age.stdout.take().unwrap())).stdout;
    assert!(age.wait().unwrap().success());
    plain
}

pub(crate) async fn restore_by_hand(store: &ObjectStore, prefix: &str, identity: &Path, target: &Path) {
    fs::create_dir(target).unwrap();
    let object = target.with_extension("object");
    let mut tar = Vec::new();
    for (key, _) in store.list(&format!("{prefix}base.tar.zst.")).await.unwrap() {
        fs::write(&object, store.get(&key).await.unwrap().unwrap()).unwrap();
        tar.extend(open_by_hand(identity, &object, true));
    }
    fs::write(target.with_extension("tar"), tar).unwrap();
    run(Command::new("tar").arg("-xf").arg(target.with_extension("tar")).arg("-C").arg(target));
    fs::write(&object, store.get(&format!("{prefix}backup_manifest.age")).await.unwrap().unwrap()).unwrap();
    fs::write(target.join("backup_manifest"), open_by_hand(identity, &object, false)).unwrap();
    run(Command::new("chmod").arg("0700").arg(target));
}

/// Every object that shows the marker, or that anybody can decode; those that are meant to be readable are not looked at.
pub(crate) async fn find_plain(store: &ObjectStore, root: &str) -> Vec<String> {
    let mut plain = Vec::new();
    let shows = |bytes: &[u8]| bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
    for (key, _) in store.list(&format!("{root}/")).await.unwrap() {
        let bytes = store.get(&key).await.unwrap().unwrap();
        let decoded = zstd::decode_all(&bytes[..]);
        let readable = key.ends_with("/backup.json") || key.ends_with(".history");
        let sealed = key.ends_with(".age") && bytes.starts_with(b"age-encryption.org/v1\n-> X25519 ");
        if shows(&bytes) || decoded.is_ok_and(|plain| shows(&plain) || !readable) || !(sealed || readable) {
            plain.push(key);
        }
    }
    plain
}

async fn an_encrypted_backup_comes_back_by_pgherd_and_by_age_alone_and_the_store_never_sees_plain_data(brand: Brand) {
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start(brand, dir.path()).await);
    server.fill(2);
    // More than one part, and so more than a hundred chunks.
    server.fill_with_noise(8_000);
    server.sql(&format!("CREATE TABLE secret AS SELECT n, '{MARKER}' AS t FROM generate_series(1, 5000) n"));
    let (pair, offline) = (Pair::make(dir.path(), "identity"), Pair::make(dir.path(), "offline"));
    // A Job that makes a backup has no identity.
    let (outcome, _) = back_up(&server, with_keys(&minio.location(), &[&pair, &offline], None)).await;
    let (store, record) = (minio.store().await, outcome.record);
    let prefix = outcome.location.backup_prefix(&record.id);
    let present = store.list(&prefix).await.unwrap();
    let names: Vec<_> = present.iter().map(|(key, _)| key.trim_start_matches(&prefix)).collect();
    assert_eq!(names, ["backup.json", "backup_manifest.age", "base.tar.zst.0000.age", "index.json.zst.age"]);
    assert!(record.stored_bytes > 15 << 20, "{}", record.stored_bytes);
    assert!(present.iter().any(|(_, size)| record.archives[0].segments == [*size]), "the record has the stored size");
    let readable =
        String::from_utf8(store.get(&format!("{prefix}backup.json")).await.unwrap().unwrap().to_vec()).unwrap();
    assert!(readable.contains("\"method\": \"age\"") && readable.contains(&pair.recipient), "{readable}");
    assert_eq!(
        list_backups(&store, &outcome.location).await.unwrap(),
        std::slice::from_ref(&record),
        "it is listed without a key"
    );
    assert_eq!(find_plain(&store, &outcome.location.root()).await, [""; 0]);

    let rows = |server: &Postgres| server.sql(&format!("SELECT count(*) FROM secret WHERE t = '{MARKER}'"));
    for (name, identity) in [("restored", &pair.file), ("by_the_other", &offline.file)] {
        let cluster = with_keys(&outcome.location, &[], Some(identity));
        let location = BackupLocation { cluster, backup_id: record.id.clone() };
        let files = restore_to(&location, &dir.path().join(name), &TablespacePlaces::Refuse).await.unwrap();
        assert_eq!(read_through(&location).await.unwrap(), files);
        verify(&dir.path().join(name));
        assert_eq!(rows(&Postgres::on(dir.path(), name)), "5000", "{name}");
    }
    restore_by_hand(&store, &prefix, &pair.file, &dir.path().join("by_hand")).await;
    verify(&dir.path().join("by_hand"));
    assert_eq!(rows(&Postgres::on(dir.path(), "by_hand")), "5000");

    // The look for plain data can find some: a plain backup beside it shows the marker.
    let (plain, _) = back_up(&server, minio.location()).await;
    let found = find_plain(&store, &plain.location.root()).await;
    assert!(found.iter().any(|key| key.contains(&plain.record.id) && key.ends_with("base.tar.zst.0000")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_missing_key_is_told_before_a_byte_is_written() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let (pair, stranger) = (Pair::make(dir.path(), "identity"), Pair::make(dir.path(), "stranger"));
    let (outcome, _) = back_up(&server, with_keys(&minio.location(), &[&pair], None)).await;
    let mut no_config = outcome.location.clone();
    no_config.store.encryption = None;
    let absent = dir.path().join("absent");
    fs::write(dir.path().join("password"), "hunter2\n").unwrap();
    let with = |file: &Path| with_keys(&outcome.location, &[], Some(file));
    for (what, cluster, told) in [
        ("no keys at all", no_config, vec![pair.recipient.as_str(), "no identity file"]),
        ("recipients only", with_keys(&outcome.location, &[&pair], None), vec![&pair.recipient, "no identity file"]),
        ("no such file", with(&absent), vec![absent.to_str().unwrap()]),
        ("no identity in it", with(&dir.path().join("password")), vec!["line 1"]),
        (
            "another's",
            with(&stranger.file),
            vec![&pair.recipient, &stranger.recipient, stranger.file.to_str().unwrap()],
        ),
    ] {
        let location = BackupLocation { cluster, backup_id: outcome.record.id.clone() };
        let target = dir.path().join("target");
        let restored = restore_to(&location, &target, &TablespacePlaces::Refuse).await.unwrap_err();
        for error in [restored, read_through(&location).await.unwrap_err()] {
            assert!(matches!(error, RestoreError::Key(_)), "{what}: {error:?}");
            let text = chain(&error);
            assert!(told.iter().all(|part| text.contains(part)) && !text.contains("hunter2"), "{what}: {text}");
        }
        assert!(!target.exists(), "{what}");
    }
    let (sender, _receiver) = watch::channel(BackupProgress::default());
    let unreadable = with_keys(&outcome.location, &[&pair], Some(&stranger.file));
    let options = BackupOptions::new(server.connect(), unreadable);
    let error = run_backup(options, sender, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::Key(KeyError::Unpaired { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_can_change_and_encryption_can_end_and_each_backup_keeps_its_own_mode() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.make_tablespace(dir.path());
    let (old, new) = (Pair::make(dir.path(), "old"), Pair::make(dir.path(), "new"));
    let plain = minio.location();
    let mut ids = Vec::new();
    for location in [plain.clone(), with_keys(&plain, &[&old], None), with_keys(&plain, &[&new], None), plain.clone()] {
        ids.push(back_up(&server, location).await.0);
        // An id has seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    let both = dir.path().join("both");
    fs::write(&both, [&old.file, &new.file].map(|file| fs::read_to_string(file).unwrap()).concat()).unwrap();
    for (identity, opens) in [
        (None, [true, false, false, true]),
        (Some(&old.file), [true, true, false, true]),
        (Some(&new.file), [true, false, true, true]),
        (Some(&both), [true, true, true, true]),
    ] {
        for (outcome, opens) in ids.iter().zip(opens) {
            let cluster = with_keys(&outcome.location, &[], identity.map(PathBuf::as_path));
            let location = BackupLocation { cluster, backup_id: outcome.record.id.clone() };
            assert_eq!(read_through(&location).await.is_ok(), opens, "{identity:?} {:?}", outcome.record.encryption);
        }
    }
    let newest = ids.swap_remove(2);
    let cluster = with_keys(&newest.location, &[], Some(&both));
    let location = BackupLocation { cluster, backup_id: newest.record.id };
    assert_eq!(newest.record.archives.len(), 2);
    drop(server);
    restore_to(&location, &dir.path().join("restored"), &TablespacePlaces::InPlace).await.unwrap();
    let restored = Postgres::on(dir.path(), "restored");
    assert_eq!(restored.sql("SELECT count(*), sum(id) FROM there"), "50000|1250025000");
}

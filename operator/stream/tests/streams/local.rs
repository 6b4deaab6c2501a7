//! Backups from the files of the data directory: the same as those that the server sends, and they come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use pgherd_core::backup::{BackupLocation, ClusterLocation, LOCAL_METHOD};
use pgherd_stream::{
    backup::{BackupError, BackupOptions, BackupOutcome, BackupProgress, run_backup},
    clone::clone_from_instance,
    index::BackupIndex,
    local::{DEFAULT_READERS, LocalOptions, find_socket},
    manifest::Manifest,
    restore::{RestoreProgress, RestoreSettings, TablespacePlaces, restore_backup_with, verify_backup},
    store::ObjectStore,
    tar::TarKind,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, run, workspace},
    server::Server,
};

/// The options of a backup from the server's own data directory.
pub(crate) fn local_options(server: &Postgres, location: ClusterLocation) -> BackupOptions {
    let mut options = BackupOptions::new(server.connect(), location);
    options.local = Some(LocalOptions { data: server.data.clone(), readers: DEFAULT_READERS });
    options
}

pub(crate) async fn back_up_with(options: BackupOptions) -> Result<(BackupOutcome, BackupProgress), BackupError> {
    let (sender, receiver) = watch::channel(BackupProgress::default());
    let outcome = run_backup(options, sender, CancellationToken::new()).await?;
    let progress = receiver.borrow().clone();
    Ok((outcome, progress))
}

pub(crate) async fn restore(store: &ObjectStore, outcome: &BackupOutcome, target: &Path) {
    let location = BackupLocation { cluster: outcome.location.clone(), backup_id: outcome.record.id.clone() };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    verify_backup(store, &location, sender, CancellationToken::new()).await.unwrap();
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let settings = RestoreSettings { places: TablespacePlaces::InPlace, combine: None };
    restore_backup_with(store, &location, target, &settings, sender, CancellationToken::new()).await.unwrap();
}

/// What a backup consists of: path in the archive and below the data directory, kind, permission bits; and what the manifest
/// lists. With the WAL under one name.
struct Contents {
    members: BTreeSet<(String, String, String)>,
    manifest: BTreeSet<String>,
    sums: BTreeMap<String, (u64, u32)>,
}

async fn read_contents(store: &ObjectStore, outcome: &BackupOutcome) -> Contents {
    let prefix = outcome.location.backup_prefix(&outcome.record.id);
    let read = async |name: &str| store.get(&format!("{prefix}{name}")).await.unwrap().unwrap();
    let index = BackupIndex::decode(&read("index.json.zst").await).unwrap();
    let manifest = Manifest::parse(&read("backup_manifest").await).unwrap();
    let plain = |path: &str| {
        let segment = |part: &str| part.len() >= 24 && part.starts_with("0000000");
        let parts = path.split('/').map(|part| if segment(part) { "segment" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let (mut members, mut sums) = (BTreeSet::new(), BTreeMap::new());
    for archive in &index.archives {
        for entry in &archive.entries {
            let kind = format!("{:?} {:o}", entry.kind, entry.mode);
            members.insert((archive.name.clone(), plain(&entry.path), kind));
            if entry.kind == TarKind::File {
                sums.insert(format!("{}/{}", archive.name, entry.path), (entry.size, entry.crc32c));
            }
        }
    }
    Contents { members, manifest: manifest.files.iter().map(|file| plain(&file.path)).collect(), sums }
}

/// A server with everything that is treated in a way of its own.
fn make_special(server: &Postgres, dir: &Path) {
    server.make_tablespace(dir);
    server.sql("ALTER SYSTEM SET allow_in_place_tablespaces = on");
    server.sql("SELECT pg_reload_conf()");
    server.sql("CREATE TABLESPACE inplace LOCATION ''");
    server.sql("CREATE TABLE inside TABLESPACE inplace AS SELECT generate_series(1, 1000) AS id");
    for place in ["", "TABLESPACE space"] {
        let name = if place.is_empty() { "unlogged" } else { "unlogged_there" };
        server.sql(&format!("CREATE UNLOGGED TABLE {name} (id int PRIMARY KEY, t text) {place}"));
        server.sql(&format!("INSERT INTO {name} SELECT n, repeat('x', 3000) FROM generate_series(1, 100) n"));
        server.sql(&format!("VACUUM {name}"));
    }
    let data = &server.data;
    fs::create_dir(data.join("empty")).unwrap();
    fs::create_dir_all(data.join("base/pgsql_tmp")).unwrap();
    for (path, text) in [
        ("base/pgsql_tmp/pgsql_tmp1.0", "x"),
        ("pgsql_tmp77", "x"),
        ("global/pg_internal.init.5", "x"),
        ("backup_label.old", "old"),
        ("backup_manifest", "of an earlier restore"),
        ("postgresql.auto.conf.tmp", "x"),
        ("pg_notify/left", "x"),
        ("nothing", ""),
        (&format!("base/5/t3_{}", 70_000), "of a temporary table"),
    ] {
        fs::write(data.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", data.join("link")).unwrap();
    crate::postgres::hand_over(data);
    server.sql("CHECKPOINT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_backup_holds_what_a_streamed_one_holds() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    server.fill(3);
    make_special(&server, dir.path());
    let store = minio.store().await;
    let (streamed, _) = back_up(&server, minio.location()).await;
    let (local, progress) = back_up_with(local_options(&server, minio.location())).await.unwrap();
    assert_eq!(local.record.method.as_deref(), Some(LOCAL_METHOD));
    assert_eq!((&streamed.record.method, local.record.format), (&None, streamed.record.format));
    assert_eq!(progress.bytes_done, local.record.tar_bytes);
    assert!(progress.bytes_total.unwrap().abs_diff(local.record.tar_bytes) < 34 << 20, "all but the WAL is estimated");
    assert!(local.bounded_bytes > streamed.bounded_bytes);

    let (expected, mut found) = (read_contents(&store, &streamed).await, read_contents(&store, &local).await);
    // PostgreSQL 15 forgets tablespaces that are folders in pg_tblspc; here they are read as 16 and later do it.
    let own = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'inplace'");
    let forgotten = streamed.record.archives.iter().all(|archive| archive.name != own);
    assert_eq!(forgotten, streamed.record.server_version < 160_000);
    if forgotten {
        assert!(found.members.iter().any(|(archive, ..)| *archive == own));
        found.members.retain(|(archive, ..)| *archive != own);
        found.manifest.retain(|path| !path.starts_with(&format!("pg_tblspc/{own}/")));
        found.sums.retain(|path, _| !path.starts_with(&format!("{own}/")));
    }
    assert_eq!(found.members.difference(&expected.members).collect::<Vec<_>>(), [] as [&(String, String, String); 0]);
    assert_eq!(expected.members.difference(&found.members).collect::<Vec<_>>(), [] as [&(String, String, String); 0]);
    assert_eq!(found.manifest, expected.manifest);
    let of_tables = |sums: &BTreeMap<String, (u64, u32)>| {
        let mut sums = sums.clone();
        sums.retain(|path, _| path.starts_with("base/base/") || !path.starts_with("base/"));
        sums
    };
    assert_eq!(of_tables(&found.sums), of_tables(&expected.sums), "nobody wrote between the two");
    let archives = |outcome: &BackupOutcome| {
        let archives = outcome.record.archives.iter().filter(|archive| !forgotten || archive.name != own);
        archives.map(|archive| (archive.name.clone(), archive.tablespace_path.clone())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(archives(&local), archives(&streamed));
    assert!(local.record.archives.len() >= 2 && local.record.archives.last().unwrap().name == "base");
    let idle = "SELECT (SELECT count(*) FROM pg_replication_slots), pg_is_in_recovery(), \
                (SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%backup_stop%' AND pid <> pg_backend_pid())";
    crate::wait_until("slot and session are gone", async || server.sql(idle) == "0|f|0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_backup_under_writes_comes_back_and_the_server_s_programs_verify_it() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    server.fill(4);
    make_special(&server, dir.path());
    server.sql("CREATE TABLE doomed AS SELECT n, repeat('y', 500) FROM generate_series(1, 40000) n");
    server.sql("CREATE TABLE shrinking AS SELECT n, repeat('z', 500) FROM generate_series(1, 40000) n");
    let (sender, mut progress) = watch::channel(BackupProgress::default());
    let mut options = local_options(&server, minio.location());
    (options.max_rate, options.levels) = (Some(24 << 10), crate::process::fixed(1));
    let began = std::time::Instant::now();
    let running = tokio::spawn(run_backup(options, sender, CancellationToken::new()));
    progress.wait_for(|progress| progress.bytes_done > 0).await.unwrap();
    let mut writes = server
        .client("pgbench")
        .args(["-T", "4", "-c", "2", "-n"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Files vanish and shrink, pages change, while they are read.
    server.sql("DROP TABLE doomed");
    server.sql("DELETE FROM shrinking WHERE n > 1000");
    server.sql("VACUUM shrinking");
    server.sql("TRUNCATE unlogged");
    server.sql("CHECKPOINT");
    server.sql("CREATE TABLE later AS SELECT generate_series(1, 1000) AS id");
    assert!(writes.wait().unwrap().success());
    assert!(!running.is_finished(), "it went on while the server wrote");
    let outcome = running.await.unwrap().unwrap();
    let least = outcome.record.tar_bytes as f64 / f64::from(24 << 20) * 0.9;
    assert!(began.elapsed().as_secs_f64() > least, "{:?} for {} bytes", began.elapsed(), outcome.record.tar_bytes);

    let target = dir.path().join("restored");
    restore(&minio.store().await, &outcome, &target).await;
    crate::postgres::hand_over(&target);
    // Where tablespaces are put in place, these two are the restore's own.
    let changed = ["-i", "tablespace_map", "-i", "postgresql.auto.conf"];
    run(crate::postgres::program("pg_verifybackup").args(changed).arg(&target));
    let restored = Postgres::on(dir.path(), "restored");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), \
                (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history), \
                (SELECT count(*) > 100 FROM pgbench_history)";
    assert_eq!(restored.sql(sums), "t|t|t", "each transaction is there as a whole or not at all");
    assert_eq!(restored.sql("SELECT to_regclass('doomed') IS NULL, (SELECT count(*) FROM shrinking)"), "t|1000");
    assert_eq!(restored.sql("SELECT count(*) FROM later"), "1000");
    assert_eq!(restored.sql("SELECT count(*), sum(id) FROM there"), "50000|1250025000");
    assert_eq!(restored.sql("SELECT count(*), sum(id) FROM inside"), "1000|500500");
    assert_eq!(restored.sql("SELECT (SELECT count(*) FROM unlogged), (SELECT count(*) FROM unlogged_there)"), "0|0");
    run(restored.client("pg_amcheck").args(["--install-missing", "-d", "postgres"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_backup_of_a_standby_comes_back_and_the_folder_must_be_the_server_s() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    server.fill(2);
    let standby = make_standby(&server, dir.path()).await;
    server.sql("CREATE TABLE later AS SELECT generate_series(1, 1000) AS id");
    crate::wait_until("the standby follows", async || standby.sql("SELECT to_regclass('later') IS NOT NULL") == "t")
        .await;
    assert_eq!(find_socket(&standby.data).unwrap(), (standby.sockets.to_str().unwrap().to_owned(), standby.port));

    let mut mistaken = local_options(&standby, minio.location());
    mistaken.connect = server.connect();
    let error = back_up_with(mistaken).await.unwrap_err();
    assert!(format!("{error:?}").contains("lacks the replication slot"), "{error:?}");
    let mut absent = local_options(&standby, minio.location());
    absent.local = Some(LocalOptions { data: dir.path().join("nowhere"), readers: 1 });
    let error = back_up_with(absent).await.unwrap_err();
    assert!(format!("{error:?}").contains("nowhere"), "{error:?}");

    let (outcome, _) = back_up_with(local_options(&standby, minio.location())).await.unwrap();
    restore(&minio.store().await, &outcome, &dir.path().join("restored")).await;
    let restored = dir.path().join("restored");
    fs::remove_file(restored.join("standby.signal")).unwrap();
    crate::postgres::hand_over(&restored);
    run(crate::postgres::program("pg_verifybackup").args(["-i", "standby.signal"]).arg(&restored));
    fs::write(restored.join("postgresql.auto.conf"), "").unwrap();
    let restored = Postgres::on(dir.path(), "restored");
    assert_eq!(
        restored.sql("SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM later)"),
        "200000|1000"
    );
}

/// A standby that follows by streaming.
pub(crate) async fn make_standby(server: &Postgres, parent: &Path) -> Postgres {
    let target = parent.join("standby");
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    clone_from_instance(server.connect(), &target, sender, CancellationToken::new()).await.unwrap();
    fs::write(target.join("standby.signal"), "").unwrap();
    let conninfo = format!("host={} port={} user=postgres", server.sockets.display(), server.port);
    fs::write(target.join("postgresql.auto.conf"), format!("primary_conninfo = '{conninfo}'\n")).unwrap();
    Postgres::on(parent, "standby")
}

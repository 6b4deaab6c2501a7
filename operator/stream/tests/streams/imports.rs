//! What `pg_basebackup -Ft` wrote into a bucket by hand is imported, in each form, and refused where it is not whole.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use pgherd_stream::{
    import::{ImportOutcome, import_archive},
    restore::{INCOMPLETE_MARKER, RestoreError, RestoreProgress},
    store::ObjectStore,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    postgres::{Postgres, program, workspace},
    server::Server,
};

/// `pg_basebackup -D - -Ft`, as it would go into a pipe.
fn take(server: &Postgres, more: &[&str]) -> Vec<u8> {
    let output = program("pg_basebackup")
        .args(["-D", "-", "-Ft", "-c", "fast", "-U", "postgres", "-p", &server.port.to_string(), "-h"])
        .arg(&server.sockets)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn pipe(program: &str, input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).args(["-1", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

async fn import(store: &ObjectStore, bytes: Vec<u8>, target: &Path) -> Result<ImportOutcome, RestoreError> {
    let key = "by-hand/base.tar";
    store.put(key, Bytes::from(bytes)).await.unwrap();
    let (sender, receiver) = watch::channel(RestoreProgress::default());
    let outcome = import_archive(store, key, target, sender, CancellationToken::new()).await?;
    let progress = receiver.borrow();
    assert_eq!(Some(progress.bytes_done), progress.bytes_total);
    Ok(outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_pg_basebackup_is_imported_in_each_form() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    server.fill(2);
    let rows = server.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts");
    let store = minio.store().await;
    // As a standby's, which the import must not stay.
    let plain = take(&server, &["-X", "fetch", "-R"]);
    let forms = [
        ("plain", plain.clone(), true),
        ("gzip", take(&server, &["-X", "fetch", "-z"]), true),
        ("gzip-of-two", [pipe("gzip", &plain[..70_000]), pipe("gzip", &plain[70_000..])].concat(), true),
        ("zstd", pipe("zstd", &plain), true),
        ("unchecked", take(&server, &["-X", "fetch", "--no-manifest"]), false),
    ];
    for (name, bytes, verified) in forms {
        let outcome = import(&store, bytes, &dir.path().join(name)).await.unwrap();
        assert_eq!(outcome.verified, verified, "{name}");
        assert!(!dir.path().join(name).join("standby.signal").exists(), "{name}");
        assert!(!dir.path().join(name).join(INCOMPLETE_MARKER).exists(), "{name}");
        let imported = Postgres::on(dir.path(), name);
        assert_eq!(imported.sql("SELECT pg_is_in_recovery()"), "f", "{name}");
        assert_eq!(imported.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts"), rows, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_whole_is_refused_and_leaves_nothing_that_starts() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    server.fill(1);
    let store = minio.store().await;
    let whole = take(&server, &["-X", "fetch"]);
    let zipped = pipe("gzip", &whole);
    let at = whole.windows(8).rposition(|window| window == b"PGDMP\0\0\0").unwrap_or(whole.len() / 3);
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let cases = [
        ("flipped", flipped(&whole, at), "CRC32C"),
        ("flipped-gzip", flipped(&zipped, zipped.len() / 2), ""),
        ("half", half(&whole), "ends early"),
        ("half-gzip", half(&zipped), "decompressing"),
        ("half-zstd", half(&pipe("zstd", &whole)), "decompressing"),
        ("no-wal", take(&server, &["-X", "none"]), "holds no WAL"),
        ("lz4", vec![0x04, 0x22, 0x4D, 0x18, 0, 0, 0, 0], "lz4"),
        ("text", b"hello".repeat(1000), "tar header"),
        ("empty", Vec::new(), "ends early"),
    ];
    for (name, bytes, expected) in cases {
        let target = dir.path().join(name);
        let error = import(&store, bytes, &target).await.unwrap_err();
        let mut chain = vec![error.to_string()];
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            chain.push(cause.to_string());
            source = cause.source();
        }
        let text = chain.join(": ");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!target.join("global/pg_control").exists(), "{name}");
    }
    let missing = watch::channel(RestoreProgress::default()).0;
    let none =
        import_archive(&store, "by-hand/none", &dir.path().join("none"), missing, CancellationToken::new()).await;
    assert!(matches!(none, Err(RestoreError::MissingObject(key)) if key == "by-hand/none"));
    assert!(!dir.path().join("none").exists());
}

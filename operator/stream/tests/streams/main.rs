//! The streams of pgherd against a real PostgreSQL and a real MinIO: backup, restore, copy, WAL archive, errors.
//!
//! PostgreSQL's programs come from `PGHERD_PG_BIN` or the newest `/usr/lib/postgresql/*/bin`; MinIO from `PGHERD_MINIO`,
//! `~/.cache/pgherd/bin-*/minio` or the PATH. Without them the tests fail, unless `PGHERD_TEST_WITHOUT_POSTGRES=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backups;
mod connections;
mod encrypted_wal;
mod encryption;
mod failures;
mod fake_server;
mod faults;
mod hostile;
mod imports;
mod incremental;
mod killed;
mod measure;
mod memory;
mod minio;
mod postgres;
mod process;
mod proxy;
mod retention;
mod stores;
mod tablespaces;
mod wal_archive;

/// True when the tests that need PostgreSQL and MinIO are switched off by hand.
fn without_real_parts() -> bool {
    let off = std::env::var("PGHERD_TEST_WITHOUT_POSTGRES").is_ok_and(|value| value == "1");
    if off {
        eprintln!("not run: PGHERD_TEST_WITHOUT_POSTGRES=1");
    }
    off
}

/// Waits until `check` is true; fails the test after a minute.
async fn wait_until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !check().await {
        assert!(std::time::Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

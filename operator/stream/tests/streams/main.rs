//! The streams of pgherd against a real PostgreSQL and real S3 servers: backup, restore, copy, WAL archive, errors.
//!
//! PostgreSQL's programs come from `PGHERD_PG_BIN` or the newest `/usr/lib/postgresql/*/bin`; MinIO and versitygw from
//! `PGHERD_MINIO` and `PGHERD_VERSITYGW`, `~/.cache/pgherd/bin-*/` or the PATH. Without them the tests fail, unless `PGHERD_TEST_WITHOUT_POSTGRES=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Makes a test of each named function for each brand.
macro_rules! on_each_server {
    ($($test:ident),+ $(,)?) => {
        on_each_server!(@module on_minio, Minio, $($test),+);
        on_each_server!(@module on_versity, Versity, $($test),+);
    };
    (@module $module:ident, $brand:ident, $($test:ident),+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if !crate::without_real_parts() {
                    super::$test(crate::server::Brand::$brand).await;
                }
            })+
        }
    };
}

mod backups;
mod connections;
mod damage;
mod encrypted_wal;
mod encryption;
mod failures;
mod fake_server;
mod faults;
mod hostile;
mod imports;
mod incremental;
mod killed;
mod levels;
mod local;
mod local_failures;
mod meanwhile;
mod measure;
mod memory;
mod mutations;
mod objects;
mod postgres;
mod process;
mod proxy;
mod recovery_plans;
mod retention;
mod server;
mod stores;
mod tablespaces;
mod virtual_hosted;
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

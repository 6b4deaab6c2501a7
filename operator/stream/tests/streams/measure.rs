//! Figures, not a check: throughput and peak memory of a backup and a restore. Run alone, in a process of its own:
//! `cargo test -p pgherd-stream --test streams measure -- --ignored --nocapture`.

use std::time::Instant;

use pgherd_core::backup::BackupLocation;
use pgherd_stream::{
    backup::observe_peak_rss,
    restore::{RestoreProgress, restore_backup},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backups::back_up,
    postgres::{Postgres, verify, workspace},
    server::Server,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn measure_a_backup_and_a_restore() {
    let scale = std::env::var("PGHERD_MEASURE_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 16), Server::start_plain(dir.path()).await);
    match std::env::var("PGHERD_MEASURE_NOISE") {
        Ok(_) => server.fill_with_noise(scale * 8000),
        Err(_) => server.fill(scale),
    }
    let idle = observe_peak_rss().unwrap_or(0);
    let (outcome, _) = back_up(&server, minio.location()).await;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "backup: {:.0} MB tar, {:.0} MB stored, {:.1} s, {:.0} MB/s, peak RSS {:.1} MB (before {:.1} MB), bound of buffers {:.1} MB",
        megabytes(outcome.record.tar_bytes),
        megabytes(outcome.record.stored_bytes),
        outcome.seconds,
        megabytes(outcome.record.tar_bytes) / outcome.seconds,
        megabytes(outcome.peak_rss_bytes.unwrap_or(0)),
        megabytes(idle),
        megabytes(outcome.bounded_bytes),
    );
    let store = minio.store().await;
    let location = BackupLocation { cluster: outcome.location, backup_id: outcome.record.id };
    let (sender, _receiver) = watch::channel(RestoreProgress::default());
    let target = dir.path().join("restored");
    let began = Instant::now();
    let restored = restore_backup(&store, &location, &target, sender, CancellationToken::new()).await.unwrap();
    println!(
        "restore: {:.0} MB, {:.1} s, {:.0} MB/s, peak RSS of both {:.1} MB",
        megabytes(restored.bytes),
        restored.seconds,
        megabytes(restored.bytes) / began.elapsed().as_secs_f64(),
        megabytes(observe_peak_rss().unwrap_or(0)),
    );
    verify(&target);
}

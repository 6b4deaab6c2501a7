//! Peak memory, in a process of its own, with the default settings: below 64 MiB whatever the size and the content.

use std::path::Path;

use pgherd_core::{
    backup::{BackupLocation, ClusterLocation},
    compression::LevelBounds,
};
use pgherd_stream::local::DEFAULT_READERS;

use crate::{
    encryption::{Pair, with_keys},
    fake_server::{Content, FakeServer, SYSTEM_ID},
    postgres::{Postgres, workspace},
    process::{Errand, Findings, Process},
    server::Server,
};

const LIMIT: u64 = 64 << 20;

async fn measure(content: Content, megabytes: usize, restore: bool, encrypted: bool, level: Option<i32>) {
    let dir = workspace();
    let (server, minio) = (FakeServer::start(dir.path(), content, megabytes), Server::start_plain(dir.path()).await);
    let mut location = ClusterLocation { system_id: SYSTEM_ID.to_owned(), ..minio.location() };
    if encrypted {
        let pair = Pair::make(dir.path(), "identity");
        location = with_keys(&location, &[&pair], Some(&pair.file));
    }
    let sockets = server.sockets.to_str().unwrap().to_owned();
    let errand = Errand::Backup {
        sockets,
        port: server.port,
        location: location.clone(),
        owner: None,
        slow: false,
        level,
        local: None,
    };
    let backup = Process::start(&errand).finish().await;
    report("backup", content, &backup);
    assert!(backup.tar_bytes > (megabytes as u64) << 20);
    if restore {
        let location = BackupLocation { cluster: location, backup_id: backup.id.clone() };
        let errand = Errand::Verify { location };
        report("verify", content, &Process::start(&errand).finish().await);
    }
}

fn report(what: &str, content: Content, found: &Findings) {
    let gigabytes = found.tar_bytes as f64 / 1e9;
    println!(
        "{what} of {content:?}: {:.2} GB tar, {:.2} GB stored, {:.0} MB/s, {:.1} CPU s/GB, peak RSS {:.1} MiB",
        gigabytes,
        found.stored_bytes as f64 / 1e9,
        gigabytes * 1e3 / found.seconds,
        found.cpu_seconds / gigabytes,
        found.peak_rss_bytes as f64 / f64::from(1 << 20),
    );
    assert_eq!(found.error, None);
    assert!(found.peak_rss_bytes < LIMIT, "{what} of {content:?}: {} bytes at the peak", found.peak_rss_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_that_does_not_compress_passes_through_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        measure(Content::Noise, 1000, true, false, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_rows_passes_through_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        measure(Content::Rows, 1000, true, false, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_gigabyte_passes_through_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        measure(Content::Noise, 1000, true, true, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_level_of_the_defaults_takes_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        for content in [Content::Noise, Content::Halves] {
            measure(content, 600, false, true, Some(LevelBounds::default().highest())).await;
        }
    }
}

/// Fills a server, and has a process of its own make backups: streamed where `readers` is 0, else from its files.
async fn measure_files(noise: bool, megabytes: u32, rounds: &[usize]) {
    let dir = workspace();
    let server = Postgres::create(dir.path(), "primary", 16);
    if noise {
        server.fill_with_noise(megabytes * 500)
    } else {
        server.fill(megabytes / 15)
    }
    measure_rounds(dir.path(), &server, rounds).await;
}

async fn measure_rounds(dir: &Path, server: &Postgres, rounds: &[usize]) {
    let minio = Server::start_plain(dir).await;
    for readers in rounds {
        let mut errand = Errand::backup(server, minio.location());
        let Errand::Backup { local, .. } = &mut errand else { panic!() };
        *local = Some((server.data.clone(), *readers)).filter(|_| *readers > 0);
        let before = server.cpu_seconds();
        let found = Process::start(&errand).finish().await;
        let gigabytes = found.tar_bytes as f64 / 1e9;
        println!(
            "{readers} readers: {gigabytes:.2} GB tar, {:.2} GB stored, {:.0} MB/s, CPU s/GB: {:.2} and {:.2} of the server, peak RSS {:.1} MiB",
            found.stored_bytes as f64 / 1e9,
            gigabytes * 1e3 / found.seconds,
            found.cpu_seconds / gigabytes,
            (server.cpu_seconds() - before) / gigabytes,
            found.peak_rss_bytes as f64 / f64::from(1 << 20),
        );
        assert_eq!(found.error, None);
        assert!(found.peak_rss_bytes < LIMIT, "{} bytes at the peak", found.peak_rss_bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_within_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        measure_files(true, 300, &[DEFAULT_READERS]).await;
    }
}

/// Many files of no size: what is told of each is all there is.
async fn measure_many(files: u32) {
    let dir = workspace();
    let server = Postgres::create(dir.path(), "primary", 16);
    for number in 0..files {
        let folder = server.data.join("base/5").join(format!("many{}", number / 10_000));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join((16_384 + number * 3).to_string()), number.to_string()).unwrap();
    }
    measure_rounds(dir.path(), &server, &[0, DEFAULT_READERS]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_files_pass_through_less_than_64_mebibytes() {
    if !crate::without_real_parts() {
        measure_many(100_000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes 500,000 files"]
async fn five_hundred_thousand_files_pass_through_less_than_64_mebibytes() {
    measure_many(500_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn measure_files_beside_a_stream() {
    for noise in [false, true] {
        measure_files(noise, if noise { 500 } else { 1000 }, &[0, 1, 2, 3, 0, 1, 2, 3]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "moves 40 GB"]
async fn twenty_gigabytes_pass_through_less_than_64_mebibytes() {
    for content in [Content::Rows, Content::Noise] {
        measure(content, 20_000, false, false, None).await;
    }
}

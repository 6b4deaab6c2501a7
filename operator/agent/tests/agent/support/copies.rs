//! Copies of a running server, as somebody makes them by hand.

use std::{fs, path::Path, process::Command};

use super::{Instance, takeover::session};

/// A copy of the data directory, made in the folder `root`, with all WAL from its begin to its end, as a tar; `meanwhile` is done once the
/// files are copied, and gets the copy's folder.
pub async fn copy_as_tar(source: &Instance, root: &Path, meanwhile: impl AsyncFnOnce(&Path)) -> Vec<u8> {
    let (data, copy) = (&source.agent.layout.pgdata, root.join("copy"));
    let backup = session(source, "postgres").await;
    backup.query("SELECT pg_backup_start('test', true)::text", &[]).await.unwrap();
    assert!(Command::new("cp").arg("-a").args([data, &copy]).status().unwrap().success());
    meanwhile(&copy).await;
    let label: String = backup.query("SELECT labelfile FROM pg_backup_stop(false)", &[]).await.unwrap()[0].get(0);
    fs::write(copy.join("backup_label"), label).unwrap();
    for name in ["pg_wal", "postmaster.pid", "pgherd.json"] {
        let place = copy.join(name);
        let _ = if place.is_dir() { fs::remove_dir_all(place) } else { fs::remove_file(place) };
    }
    assert!(Command::new("cp").arg("-a").args([data.join("pg_wal"), copy.join("pg_wal")]).status().unwrap().success());
    let tar = Command::new("tar").arg("-C").arg(&copy).args(["-cf", "-", "."]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

//! Copies of a running server, as somebody makes them by hand.

use std::{fs, path::Path, process::Command};

use super::{Instance, takeover::session};

/// A copy of the data directory, made in the folder `root`, with all WAL from its begin to its end, as a tar; `meanwhile` is done once the
/// files are copied, and gets the copy's folder.
pub async fn copy_as_tar(source: &Instance, root: &Path, meanwhile: impl AsyncFnOnce(&Path)) -> Vec<u8> {
    let (data, copy) = (&source.agent.layout.pgdata, root.join("copy"));
    let backup = session(source, "postgres").await;
    backup.query("SELECT pg_backup_start('test', true)::text", &[]).await.unwrap();
    fs::create_dir_all(&copy).unwrap();
    // A file may go or change while it is copied: the WAL puts that right, and tar says so with 1.
    let script = r#"tar -C "$0" --exclude=./pg_wal -cf - . | tar -C "$1" -xf -; s=("${PIPESTATUS[@]}"); ((s[0] < 2 && s[1] == 0))"#;
    assert!(Command::new("bash").arg("-c").arg(script).args([data, &copy]).status().unwrap().success());
    meanwhile(&copy).await;
    let label: String = backup.query("SELECT labelfile FROM pg_backup_stop(false)", &[]).await.unwrap()[0].get(0);
    fs::write(copy.join("backup_label"), label).unwrap();
    for name in ["postmaster.pid", "pgherd.json"] {
        let _ = fs::remove_file(copy.join(name));
    }
    // The archiver renames its marks meanwhile; a copy needs none.
    fs::create_dir_all(copy.join("pg_wal/archive_status")).unwrap();
    for file in fs::read_dir(data.join("pg_wal")).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), copy.join("pg_wal").join(file.file_name())).unwrap();
        }
    }
    let tar = Command::new("tar").arg("-C").arg(&copy).args(["-cf", "-", "."]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

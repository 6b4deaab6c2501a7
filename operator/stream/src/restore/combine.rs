//! `pg_combinebackup`, which PostgreSQL brings for its incremental backups, and the check of what it made. It copies and syncs;
//! it does not check what it reads, which was checked before, nor read again what it wrote, which is done here.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use pgherd_core::backup::BackupRecord;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{RestoreError, writers::Writer};
use crate::{
    backup::MANIFEST_NAME,
    manifest::{Manifest, SeenFile, is_wal},
};

/// Read at once.
const BUFFER: usize = 1 << 20;
/// So much of what the program printed is told.
const LAST_CHARS: usize = 600;

/// The program must be of the backups' major version.
pub(super) async fn validate_version(program: &Path, expected: u32, writer: Writer) -> Result<(), RestoreError> {
    let mut command = Command::new(program);
    command.arg("--version");
    let printed = run_program(program, command, writer).await?;
    if parse_major(&printed) == Some(expected) {
        return Ok(());
    }
    let found = printed.trim().to_owned();
    Err(RestoreError::CombineVersion { program: program.to_owned(), found, expected })
}

/// `17` of `pg_combinebackup (PostgreSQL) 17.6 (Debian 17.6-1.pgdg12+1)`.
fn parse_major(printed: &str) -> Option<u32> {
    let version = printed.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Combines the folders, the full backup first, into a new one.
pub(super) async fn run(
    program: &Path,
    folders: &[PathBuf],
    output: &Path,
    writer: Writer,
) -> Result<(), RestoreError> {
    let mut command = Command::new(program);
    command.args(folders).arg("-o").arg(output);
    run_program(program, command, writer).await.map(|_| ())
}

/// In a task of its own, which the writer is a part of: when it has to stop, the program is killed and waited for.
async fn run_program(program: &Path, mut command: Command, writer: Writer) -> Result<String, RestoreError> {
    let failed = |source| RestoreError::File { what: "running", path: program.to_owned(), source };
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let running = tokio::spawn(async move {
        let output = tokio::select! {
            output = await_output(&mut child) => Some(output),
            () = writer.stopped() => None,
        };
        if output.is_none() {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
        output
    });
    let Some(output) = running.await? else { return Err(RestoreError::Cancelled) };
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let printed = lines.join("; ").chars().take(LAST_CHARS).collect();
    Err(RestoreError::Combine { program: program.to_owned(), status: output.status.to_string(), printed })
}

async fn await_output(child: &mut Child) -> io::Result<Output> {
    let (stdout, stderr) = (read_pipe(child.stdout.take()), read_pipe(child.stderr.take()));
    let (stdout, stderr, status) = tokio::try_join!(stdout, stderr, child.wait())?;
    Ok(Output { status, stdout, stderr })
}

async fn read_pipe(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut printed = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut printed).await?;
    }
    Ok(printed)
}

/// Checks every file of the result against the manifest that came with it, and its WAL against that of the newest member.
/// Returns the number of files and their bytes.
pub(super) fn verify(combined: &Path, newest: &Path, record: &BackupRecord) -> Result<(u64, u64), RestoreError> {
    let path = combined.join(MANIFEST_NAME);
    let text = fs::read(&path).map_err(|source| RestoreError::File { what: "reading", path, source })?;
    let manifest = Manifest::parse(&text)?;
    manifest.validate_wal(record.timeline, record.start_lsn, record.stop_lsn)?;
    let mut seen = HashMap::new();
    read_tree(combined, "", &mut seen)?;
    seen.remove(MANIFEST_NAME);
    manifest.compare(&seen)?;
    let mut brought = HashMap::new();
    read_tree(newest, "pg_wal/", &mut brought)?;
    let differs = brought.iter().find(|(path, file)| seen.get(path.as_str()) != Some(file));
    if let Some((path, _)) = differs {
        return Err(RestoreError::Inconsistent(format!("{path} is not what the newest backup has")));
    }
    let wal = seen.keys().filter(|path| is_wal(path)).count();
    if wal != brought.len() {
        return Err(RestoreError::Inconsistent("there is WAL that the newest backup does not have".to_owned()));
    }
    Ok((seen.len() as u64, seen.values().map(|file| file.size).sum()))
}

/// Size and checksum of every file below `root/folder`; `folder` is empty or ends with a slash.
fn read_tree(root: &Path, folder: &str, seen: &mut HashMap<String, SeenFile>) -> Result<(), RestoreError> {
    let path = root.join(folder);
    let failed = |what| {
        let path = path.clone();
        move |source| RestoreError::File { what, path, source }
    };
    for entry in fs::read_dir(&path).map_err(failed("listing"))? {
        let entry = entry.map_err(failed("listing"))?;
        let kind = entry.file_type().map_err(failed("looking at"))?;
        let name = format!("{folder}{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            read_tree(root, &format!("{name}/"), seen)?;
        } else if kind.is_file() {
            let path = entry.path();
            let file = read_file(&path).map_err(|source| RestoreError::File { what: "reading", path, source })?;
            seen.insert(name, file);
        } else {
            return Err(RestoreError::Symlink(name));
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> io::Result<SeenFile> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; BUFFER]);
    let mut seen = SeenFile { size: 0, crc32c: 0 };
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(seen);
        }
        seen.size += length as u64;
        seen.crc32c = crc32c::crc32c_append(seen.crc32c, buffer.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_as_the_program_prints_it() {
        assert_eq!(parse_major("pg_combinebackup (PostgreSQL) 17.6 (Debian 17.6-1.pgdg12+1)\n"), Some(17));
        assert_eq!(parse_major("pg_combinebackup (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("bash: no such file"), None);
    }
}

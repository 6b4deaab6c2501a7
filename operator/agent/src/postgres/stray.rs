//! Finds PostgreSQL's processes by their working directory, which is PGDATA for every one of them. Used where no handle
//! exists: by the supervisor, and to remove what a crashed postmaster left. Reads /proc only.

use std::{fs, path::Path};

use nix::unistd::Pid;

/// Every process whose working directory is `pgdata` and whose name is `postgres`.
#[must_use]
pub fn processes(pgdata: &Path) -> Vec<Pid> {
    let pgdata = fs::canonicalize(pgdata).unwrap_or_else(|_| pgdata.to_owned());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_postgres(*pid) && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == pgdata))
        .map(Pid::from_raw)
        .collect()
}

/// The titles of these processes, as `ps` shows them.
#[must_use]
pub fn titles(pgdata: &Path) -> Vec<String> {
    let read = |pid: Pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    processes(pgdata).into_iter().map(|pid| String::from_utf8_lossy(&read(pid)).into_owned()).collect()
}

/// The postmaster that `postmaster.pid` names, if it is a live PostgreSQL process of this data directory.
#[must_use]
pub fn postmaster(pgdata: &Path) -> Option<Pid> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    (pid > 1 && is_postgres(pid)).then_some(Pid::from_raw(pid))
}

/// A zombie is no process any more: it holds nothing and only waits to be reaped.
fn is_postgres(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((before, after)) = stat.rsplit_once(')') else { return false };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    name == "postgres" && !after.trim_start().starts_with(['Z', 'X'])
}

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

/// Those of these processes that are of a kind, such as `archiver` or `walsender`, by their titles as `ps` shows them.
#[must_use]
pub fn of_kind(pgdata: &Path, kind: &str) -> Vec<Pid> {
    let title = |pid: &Pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    processes(pgdata).into_iter().filter(|pid| is_of_kind(&String::from_utf8_lossy(&title(pid)), kind)).collect()
}

/// A title is `postgres: <cluster_name>: <kind> ...`, and a cluster may be called like a kind.
fn is_of_kind(title: &str, kind: &str) -> bool {
    let rest = title.strip_prefix("postgres: ").and_then(|rest| rest.split_once(": "));
    rest.is_some_and(|(_, rest)| rest.starts_with(kind))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_kind_and_not_by_the_name_of_its_cluster() {
        assert!(is_of_kind("postgres: shop: archiver archiving 00000001000000000000000A", "archiver"));
        assert!(is_of_kind("postgres: walsender: archiver ", "archiver"));
        assert!(!is_of_kind("postgres: walsender: archiver ", "walsender"));
        assert!(!is_of_kind("/usr/lib/postgresql/15/bin/postgres -D /data", "postgres"));
    }
}

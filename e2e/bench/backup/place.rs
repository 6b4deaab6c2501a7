//! Where all of it runs: a root file system with the programs, the folder `/work` in it, and a control group for each side,
//! whose CPU time and memory are read there. Runs programs, measures nothing by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use pgherd_e2e::Result;
use tokio::process::Command;

/// User and group of all programs inside.
const USER: &str = "--userspec=999:999";
const PATH: &str = "/work/bin:/usr/local/bin:/usr/lib/postgresql/17/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/bin";

/// Whose CPU time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The tool that is measured, with all its children.
    Client,
    /// PostgreSQL, with its walsenders and its archive_command.
    Postgres,
    /// MinIO.
    Store,
    /// Clients that load PostgreSQL, and the harness's own look at things.
    Other,
}

impl Side {
    const ALL: [Self; 4] = [Self::Client, Self::Postgres, Self::Store, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Postgres => "postgres",
            Self::Store => "store",
            Self::Other => "other",
        }
    }
}

/// The place.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    root: PathBuf,
    groups: PathBuf,
}

impl Place {
    /// Makes the control groups below `groups`, which is one of the hierarchy that accounts for CPU time.
    pub(crate) fn new(root: &Path, groups: &Path) -> Result<Self> {
        for side in Side::ALL {
            fs::create_dir_all(groups.join(side.name()))?;
        }
        Ok(Self { root: root.to_owned(), groups: groups.to_owned() })
    }

    /// The path of a file of `/work`, for this process.
    pub(crate) fn work(&self, path: &str) -> PathBuf {
        self.root.join("work").join(path)
    }

    /// Why a program is not here, if set-up said so.
    pub(crate) fn absent(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join("absent").join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// A program inside, as the user postgres, on a side's account. It becomes the process that is started: whoever kills that
    /// kills it.
    pub(crate) fn command(&self, side: Side, program: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$1" && shift && exec "$@""#, "sh"]);
        command.arg(self.groups.join(side.name()).join("cgroup.procs"));
        command.args(["chroot", USER]).arg(&self.root).args(program);
        command.env_clear().env("PATH", PATH).env("HOME", "/work/home").env("LANG", "C.UTF-8");
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a program to its end and returns what it printed.
    pub(crate) async fn run(&self, side: Side, program: &[&str]) -> Result<String> {
        let output = self.command(side, program).stderr(Stdio::piped()).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {}: {}", program.join(" "), output.status, last_lines(&said)).into())
    }

    /// CPU seconds that a side's processes have used since the start, those that have ended among them.
    pub(crate) fn cpu_seconds(&self, side: Side) -> Result<f64> {
        let group = self.groups.join(side.name());
        if let Ok(nanoseconds) = fs::read_to_string(group.join("cpuacct.usage")) {
            return Ok(nanoseconds.trim().parse::<f64>()? / 1e9);
        }
        let text = fs::read_to_string(group.join("cpu.stat"))?;
        let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(microseconds.ok_or("cpu.stat has no usage_usec")?.trim().parse::<f64>()? / 1e6)
    }

    /// The sum of what a side's processes hold in memory now, in bytes. A page that two of them share counts twice.
    pub(crate) fn resident_bytes(&self, side: Side) -> Result<u64> {
        let processes = fs::read_to_string(self.groups.join(side.name()).join("cgroup.procs"))?;
        // A process that has ended since holds nothing.
        let statuses = processes.lines().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
        Ok(statuses.filter_map(|status| resident_kilobytes(&status)).sum::<u64>() * 1024)
    }
}

fn resident_kilobytes(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The end of what a program said, on one line.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel_s_text() {
        assert_eq!(resident_kilobytes("Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t    1234 kB\n"), Some(1234));
        assert_eq!(resident_kilobytes("Name:\tkthread\n"), None);
    }

    #[test]
    fn an_error_shows_the_end() {
        assert_eq!(last_lines("a\n\nb\nc \nd\n"), "b | c | d");
        assert_eq!(last_lines(""), "");
    }
}

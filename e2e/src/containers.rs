//! The containers of pods as the machine of the nodes sees them: which process is what, and signals to them. Only on the
//! embedded Kubernetes, whose containers are processes of this machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{Result, kubectl::run};

/// What a process of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PID 1 of the container, which holds the fencing deadline.
    Supervisor,
    /// The agent.
    Agent,
    /// PostgreSQL's first process.
    Postmaster,
    /// A child of it: a session, the WAL receiver and so on.
    Backend,
    /// Anything else.
    Other,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id on this machine.
    pub pid: u32,
    /// What it is.
    pub kind: Kind,
    /// Its command line, or what PostgreSQL shows instead.
    pub title: String,
}

/// The main container of a pod of pgherd: an instance or an operator.
#[derive(Clone, Debug)]
pub struct Container {
    /// The pod.
    pub pod: String,
    /// Its UID: a pod made again under the same name is another one.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// The folder in each cgroup hierarchy, relative to its mount.
    pub cgroup: PathBuf,
    /// PID 1 and all others.
    pub processes: Vec<Process>,
    /// A process that holds the pod's network namespace as long as the pod lives, whatever its containers do.
    pub sandbox: u32,
}

struct Found {
    pid: u32,
    node: String,
    uid: String,
    cgroup: PathBuf,
    title: String,
    first: bool,
}

/// All containers of a namespace that run a part of pgherd.
///
/// # Errors
/// /proc can't be read.
pub fn observe(namespace: &str) -> Result<Vec<Container>> {
    let mut pods: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while it is looked at is gone.
        if let Some(found) = look(pid) {
            pods.entry(found.uid.clone()).or_default().push(found);
        }
    }
    Ok(pods.into_values().filter_map(|found| assemble(&found, namespace)).collect())
}

fn look(pid: u32) -> Option<Found> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let cgroups = fs::read_to_string(folder.join("cgroup")).ok()?;
    let cgroup =
        cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.contains("/kubepods/"))?;
    let mut parts = cgroup.split('/').filter(|part| !part.is_empty());
    let node = parts.next()?.to_string();
    let uid = parts.find_map(|part| part.strip_prefix("pod"))?.to_string();
    let title = fs::read(folder.join("cmdline")).ok()?;
    let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_string();
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let first = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last() == Some("1");
    Some(Found { pid, node, uid, cgroup: cgroup.trim_start_matches('/').into(), title, first })
}

fn assemble(found: &[Found], namespace: &str) -> Option<Container> {
    let main =
        found.iter().find(|process| process.first && process.title.contains("pgherd") && is_ours(&process.title))?;
    let environment = environment(main.pid)?;
    if environment.get("POD_NAMESPACE").map(String::as_str) != Some(namespace) {
        return None;
    }
    let sandbox = found.iter().find(|process| process.first && process.title.contains("pause")).unwrap_or(main).pid;
    let processes = found.iter().filter(|process| process.cgroup == main.cgroup).map(|process| Process {
        pid: process.pid,
        kind: kind_of(&process.title, process.first),
        title: process.title.clone(),
    });
    Some(Container {
        pod: environment.get("POD_NAME")?.clone(),
        uid: main.uid.clone(),
        namespace: namespace.to_string(),
        node: main.node.clone(),
        cgroup: main.cgroup.clone(),
        processes: processes.collect(),
        sandbox,
    })
}

fn is_ours(title: &str) -> bool {
    let mut words = title.split(' ');
    let program = words.next().unwrap_or_default();
    program.ends_with("pgherd") && matches!(words.next(), Some("agent" | "operator"))
}

fn environment(pid: u32) -> Option<BTreeMap<String, String>> {
    let text = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Some(
        text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    )
}

fn kind_of(title: &str, first: bool) -> Kind {
    let program = title.split(' ').next().unwrap_or_default();
    if first {
        Kind::Supervisor
    } else if title.contains("agent-main") {
        Kind::Agent
    } else if title.starts_with("postgres:") {
        Kind::Backend
    } else if program.ends_with("/postgres") || program == "postgres" {
        Kind::Postmaster
    } else {
        Kind::Other
    }
}

impl Container {
    /// Lets the container take no more than so many bytes beyond what it has now.
    ///
    /// # Errors
    /// The control group can't be read or written.
    pub fn limit_memory(&self, room: u64) -> Result<MemoryLimit> {
        let folder = self.cgroup_in("memory");
        let [used, limit, _] = memory_files(&folder);
        let (before, kills_before) = (fs::read_to_string(&limit)?, oom_kills(&folder)?);
        let used: u64 = fs::read_to_string(used)?.trim().parse()?;
        fs::write(&limit, (used + room).to_string()).map_err(|error| format!("{}: {error}", limit.display()))?;
        Ok(MemoryLimit { folder, before, kills_before })
    }

    /// The processes of these kinds.
    #[must_use]
    pub fn pids(&self, kinds: &[Kind]) -> Vec<u32> {
        self.processes.iter().filter(|process| kinds.contains(&process.kind)).map(|process| process.pid).collect()
    }

    /// Sends a signal, such as `KILL`, to all processes of these kinds.
    ///
    /// # Errors
    /// There is none, or none could be signalled.
    pub async fn signal(&self, signal: &str, kinds: &[Kind]) -> Result<()> {
        let pids = self.pids(kinds);
        if pids.is_empty() {
            return Err(format!("{} has no {kinds:?} among {:?}", self.pod, self.processes).into());
        }
        send(signal, &pids).await
    }

    /// The folder of the container in one hierarchy of control groups, such as `freezer`.
    #[must_use]
    pub fn cgroup_in(&self, hierarchy: &str) -> PathBuf {
        let mounted = Path::new("/sys/fs/cgroup");
        if mounted.join("cgroup.controllers").exists() {
            mounted.join(&self.cgroup)
        } else {
            mounted.join(hierarchy).join(&self.cgroup)
        }
    }

    /// Freezes all processes of the container, or lets them go on.
    ///
    /// # Errors
    /// The control group can't be written.
    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        let folder = self.cgroup_in("freezer");
        let (file, word) = match (folder.join("freezer.state").exists(), frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        fs::write(folder.join(file), word).map_err(|error| format!("{}: {error}", folder.join(file).display()).into())
    }

    /// Limits the container to a share of one processor, in percent; None lifts the limit.
    ///
    /// # Errors
    /// The control group can't be written.
    pub fn limit_cpu(&self, percent: Option<u32>) -> Result<()> {
        let folder = self.cgroup_in("cpu");
        let old = folder.join("cpu.cfs_quota_us");
        if old.exists() {
            let quota = percent.map_or_else(|| "-1".to_string(), |percent| (percent * 1_000).to_string());
            fs::write(&old, quota).map_err(|error| format!("{}: {error}", old.display()))?;
        } else {
            let quota = percent.map_or_else(|| "max".to_string(), |percent| (percent * 1_000).to_string());
            fs::write(folder.join("cpu.max"), format!("{quota} 100000"))?;
        }
        Ok(())
    }
}

/// A limit of memory that is in force until [`MemoryLimit::lift`].
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
    before: String,
    kills_before: u64,
}

/// The files of a control group: what is used, the limit, and the counter of kills.
fn memory_files(folder: &Path) -> [PathBuf; 3] {
    let names = match folder.join("memory.max").exists() {
        true => ["memory.current", "memory.max", "memory.events"],
        false => ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"],
    };
    names.map(|name| folder.join(name))
}

fn oom_kills(folder: &Path) -> Result<u64> {
    let [.., events] = memory_files(folder);
    let text = fs::read_to_string(events)?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(count.ok_or("the kernel counts no kills")?.trim().parse()?)
}

impl MemoryLimit {
    /// As it was before.
    ///
    /// # Errors
    /// The control group can't be written.
    pub fn lift(&self) -> Result<()> {
        let [_, limit, _] = memory_files(&self.folder);
        fs::write(limit, self.before.trim()).map_err(Into::into)
    }

    /// How many processes the kernel has killed since the limit began.
    ///
    /// # Errors
    /// The control group can't be read.
    pub fn kills(&self) -> Result<u64> {
        Ok(oom_kills(&self.folder)?.saturating_sub(self.kills_before))
    }
}

/// Sends a signal to processes of this machine.
///
/// # Errors
/// None of them could be signalled.
pub async fn send(signal: &str, pids: &[u32]) -> Result<()> {
    let signal = format!("-{signal}");
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut arguments = vec![signal.as_str()];
    arguments.extend(pids.iter().map(String::as_str));
    run("kill", &arguments, None).await.map(drop)
}

/// The container of a pod that runs now; the newest if an old one of the same name still does.
///
/// # Errors
/// There is none.
pub fn of_pod(namespace: &str, pod: &str) -> Result<Container> {
    let mut all: Vec<_> = observe(namespace)?.into_iter().filter(|container| container.pod == pod).collect();
    all.sort_by_key(|container| container.sandbox);
    all.pop().ok_or_else(|| format!("no container of {namespace}/{pod} runs on this machine").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart_by_what_they_show() {
        assert_eq!(kind_of("/run/pgherd/bin/pgherd agent", true), Kind::Supervisor);
        assert_eq!(kind_of("pgherd agent-main", false), Kind::Agent);
        assert_eq!(
            kind_of("/usr/lib/postgresql/17/bin/postgres -D /var/lib/pgherd/data/pgdata", false),
            Kind::Postmaster
        );
        assert_eq!(kind_of("postgres: walwriter", false), Kind::Backend);
        assert_eq!(kind_of("sh -c true", false), Kind::Other);
        assert!(is_ours("/run/pgherd/bin/pgherd agent") && is_ours("/usr/bin/pgherd operator --image=x"));
        assert!(!is_ours("/usr/bin/pgherd-e2e writer") && !is_ours("/pause"));
    }
}

//! A client in each instance's own network namespace that asks ten times a second whether it takes writes, whatever is cut
//! around it. What it heard is kept by pod UID: a pod made again under the same name is another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

use crate::{
    Result, containers,
    overlap::{Look, last_acknowledged, measure_overlap},
};

/// How often new containers are looked for.
const RESCAN: Duration = Duration::from_millis(300);

type Heard = Arc<Mutex<BTreeMap<String, Vec<Look>>>>;

/// The running clients; they end with this.
pub struct Probes {
    heard: Heard,
    task: JoinHandle<()>,
}

/// Where the clients find what they need.
#[derive(Clone)]
pub struct ProbeFiles {
    /// `pgherd-e2e`, built for this machine.
    pub program: String,
    /// Folder with `username`, `password`, `dbname` and `ca.crt`.
    pub secrets: PathBuf,
}

impl Probes {
    /// Starts a client for each instance of a cluster, and for each that comes.
    #[must_use]
    pub fn start(namespace: &str, cluster: &str, files: &ProbeFiles) -> Self {
        let heard = Heard::default();
        let task = tokio::spawn(watch(namespace.into(), cluster.into(), files.clone(), Arc::clone(&heard)));
        Self { heard, task }
    }

    /// What was heard so far, by `<pod>/<uid>`.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<String, Vec<Look>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For how long two instances acknowledged writes at once, in milliseconds.
    #[must_use]
    pub fn overlap_ms(&self) -> i64 {
        measure_overlap(&self.heard())
    }

    /// When an instance of this name acknowledged last since a point in time (both in milliseconds since the Unix epoch).
    #[must_use]
    pub fn last_acknowledged(&self, pod: &str, since_ms: i64) -> Option<i64> {
        let prefix = format!("{pod}/");
        let heard = self.heard();
        let of_pod = heard.iter().filter(|(name, _)| name.starts_with(&prefix));
        of_pod.filter_map(|(_, looks)| last_acknowledged(looks, since_ms)).max()
    }

    /// Every row that a client was promised: the name of its pod and its number.
    #[must_use]
    pub fn promised(&self) -> BTreeSet<(String, i64)> {
        let heard = self.heard();
        let rows =
            heard.iter().flat_map(|(name, looks)| looks.iter().filter_map(|look| Some((name.clone(), look.row?))));
        rows.collect()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(namespace: String, cluster: String, files: ProbeFiles, heard: Heard) {
    let mut running: BTreeMap<String, (Child, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let found = containers::observe(&namespace).unwrap_or_default();
        let of_cluster = |pod: &str| pgherd_crds::names::ordinal(&cluster, pod).is_some();
        let alive: BTreeSet<&str> = found.iter().map(|container| container.uid.as_str()).collect();
        running.retain(|uid, _| alive.contains(uid.as_str()));
        for container in found.iter().filter(|container| of_cluster(&container.pod)) {
            if running.contains_key(&container.uid) {
                continue;
            }
            let name = format!("{}/{}", container.pod, container.uid);
            let host = pgherd_crds::names::pod_host(&cluster, &namespace, &container.pod);
            if let Ok(child) = start(&files, container.sandbox, &host, &name) {
                running.insert(container.uid.clone(), follow(child, name, Arc::clone(&heard)));
            }
        }
        tokio::time::sleep(RESCAN).await;
    }
}

fn start(files: &ProbeFiles, sandbox: u32, host: &str, name: &str) -> Result<Child> {
    let path = |name: &str| Path::new(&files.secrets).join(name).to_string_lossy().into_owned();
    let child = Command::new("nsenter")
        .arg(format!("--net=/proc/{sandbox}/ns/net"))
        .args([&files.program, "probe", "--host", host, "--address", "127.0.0.1", "--name", name])
        .args(["--credentials", &files.secrets.to_string_lossy(), "--ca", &path("ca.crt")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

fn follow(mut child: Child, name: String, heard: Heard) -> (Child, JoinHandle<()>) {
    let output = child.stdout.take();
    let task = tokio::spawn(async move {
        let Some(output) = output else { return };
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(look) = serde_json::from_str::<Look>(&line) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.entry(name.clone()).or_default().push(look);
            }
        }
    });
    (child, task)
}

//! What happens to the API server of the embedded Kubernetes: stopped, killed, slow, and answers that are wrong. Whatever a fault does, the API server is
//! back and as fast as before when it ends.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::process::{Child, Command};

use crate::{
    Result, containers,
    kubectl::{run, script},
    wait::{Look, until},
};

/// The network namespace of the control plane.
const NETWORK: &str = "kcp";
/// The table of filters; nobody else uses this name.
const TABLE: [&str; 2] = ["inet", "e2e_faults"];
/// Addresses of pods: nodes and their kubelets go on as before.
const PODS: &str = "10.244.0.0/16";

fn state_folder() -> PathBuf {
    std::env::var("PGHERD_CLUSTER_DIR").unwrap_or_else(|_| "/var/lib/pgherd-cluster".into()).into()
}

fn pid_file() -> PathBuf {
    state_folder().join("run/apiserver.pid")
}

/// The API server's process on this machine.
///
/// # Errors
/// It is not a process of this machine.
pub fn api_server() -> Result<u32> {
    let text = std::fs::read_to_string(pid_file())?;
    let pid = text.split_whitespace().next().ok_or("the API server's pid file is empty")?;
    Ok(pid.parse()?)
}

/// Waits until the API server answers.
///
/// # Errors
/// It did not in time.
pub async fn wait_api() -> Result<()> {
    until("the API server", Duration::from_secs(120), async || {
        let answer = run("kubectl", &["get", "--raw", "/readyz", "--request-timeout=3s"], None).await?;
        Ok(if answer.trim() == "ok" { Look::Done(()) } else { Look::NotYet(answer) })
    })
    .await
}

/// Stops the API server (SIGSTOP: connections stay open and nobody answers), does the work, and lets it go on whatever came
/// of the work.
///
/// # Errors
/// The process can't be signalled, it does not come back, or the work's error.
pub async fn while_stopped<T>(work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let pid = [api_server()?];
    containers::send("STOP", &pid).await?;
    let outcome = work().await;
    containers::send("CONT", &pid).await?;
    wait_api().await?;
    outcome
}

/// Kills the API server (connections are refused), does the work, and starts it again whatever came of the work.
///
/// # Errors
/// As [`while_stopped`].
pub async fn while_killed<T>(work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    containers::send("KILL", &[api_server()?]).await?;
    let outcome = work().await;
    script("cluster.sh", &["up"]).await?;
    wait_api().await?;
    outcome
}

/// Puts everything right that an interrupted fault may have left.
pub async fn heal() {
    if let Ok(pid) = api_server() {
        drop(containers::send("CONT", &[pid]).await);
    }
    forget_filters().await;
}

async fn forget_filters() {
    let delete = [&["netns", "exec", NETWORK, "nft", "delete", "table"], &TABLE[..]].concat();
    drop(run("ip", &delete, None).await);
}

/// Makes every request of a pod to the API server arrive later by `delay`, does the work, and takes the detour away.
///
/// # Errors
/// The detour can't be made, or the work's error.
pub async fn while_slow<T>(program: &str, delay: Duration, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let delay = delay.as_millis().to_string();
    while_detoured(program, &["slow-proxy", "--delay-ms", &delay], work).await
}

/// What befalls the requests of pods to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Of eight answers one is 500 and one 429; watches go on.
    Errors,
    /// Watches say nothing, and end with 410 after a while.
    StuckWatches,
    /// What is asked for with GET is answered as the first time.
    StaleReads,
}

/// Whose requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whose<'a> {
    /// Of these addresses of pods; of all if there are none.
    pub from: &'a [String],
    /// Those whose path has this text.
    pub within: &'a str,
}

/// Lets trouble befall requests while the work is done. The number of requests that it befell, and what the work gave.
///
/// # Errors
/// As [`while_slow`]; or nothing was befallen.
pub async fn while_troubled<T>(
    program: &str,
    trouble: Trouble,
    whose: Whose<'_>,
    work: impl AsyncFnOnce() -> Result<T>,
) -> Result<(u64, T)> {
    let fault = match trouble {
        Trouble::Errors => "errors",
        Trouble::StuckWatches => "stuck-watches",
        Trouble::StaleReads => "stale-reads",
    };
    let (pki, hits) = (state_folder().join("pki"), state_folder().join("api-proxy.hits"));
    drop(std::fs::remove_file(&hits));
    let (pki, counter) = (pki.to_string_lossy(), hits.to_string_lossy());
    let mut arguments =
        vec!["api-proxy", "--pki", &pki, "--fault", fault, "--hits", &counter, "--within", whose.within];
    for address in whose.from {
        arguments.extend(["--from", address.as_str()]);
    }
    let outcome = while_detoured(program, &arguments, work).await?;
    let count = std::fs::read_to_string(&hits).map_err(|_| "no request met the trouble")?;
    Ok((count.trim().parse()?, outcome))
}

/// Leads the requests of pods to the API server through a proxy.
async fn while_detoured<T>(program: &str, proxy: &[&str], work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let _proxy = start_proxy(program, proxy)?;
    forget_filters().await;
    // What is open already does not pass the translation of addresses: it is reset and comes again.
    let rules = format!(
        "table {} {{\n  chain detour {{\n    type nat hook prerouting priority -110; policy accept;\n    \
         ip saddr {PODS} tcp dport 6443 redirect to :6444\n  }}\n  chain input {{\n    \
         type filter hook input priority 0; policy accept;\n    ip saddr {PODS} tcp dport 6443 reject with tcp reset\n  }}\n}}\n",
        TABLE.join(" ")
    );
    run("ip", &["netns", "exec", NETWORK, "nft", "-f", "-"], Some(&rules)).await?;
    let outcome = work().await;
    forget_filters().await;
    outcome
}

fn start_proxy(program: &str, proxy: &[&str]) -> Result<Child> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", NETWORK, program]).args(proxy);
    command.args(["--listen", "0.0.0.0:6444", "--to", "127.0.0.1:6443"]);
    let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
    child.map_err(|error| format!("failed to start {program} {proxy:?}: {error}").into())
}

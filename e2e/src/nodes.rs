//! What happens to nodes: their cable is pulled and plugged in again. Whatever a test does meanwhile, the node comes back.

use crate::{
    Result,
    kubectl::{run, script},
};

/// Plugs every node in again: what an interrupted run left cut off would fail everything after it. A Kubernetes whose
/// nodes are not ours has nothing to heal, therefore errors count for nothing.
pub async fn heal_all() {
    for node in 1..=3 {
        let node = format!("kn{node}");
        drop(script("node.sh", &["thaw", &node]).await);
        drop(script("node.sh", &["heal", &node]).await);
    }
}

/// Cuts a node off, does the work, and heals the node whatever came of the work.
///
/// # Errors
/// The node can't be cut or healed, or the work's error.
pub async fn while_cut<T>(node: &str, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    script("node.sh", &["cut", node]).await?;
    let outcome = work().await;
    script("node.sh", &["heal", node]).await?;
    outcome
}

/// Stops everything on a node, as if the machine hung, does the work, and lets the node go on whatever came of the work.
///
/// # Errors
/// The node can't be frozen or thawed, or the work's error.
pub async fn while_frozen<T>(node: &str, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    script("node.sh", &["freeze", node]).await?;
    let outcome = work().await;
    script("node.sh", &["thaw", node]).await?;
    outcome
}

/// Runs a command in a container through its node's runtime, which works while the node is cut off. None where the runtime
/// can't be reached: on a Kubernetes that is not the embedded one. `container` is the id as the pod's status has it.
pub async fn exec_on_node(node: &str, container: &str, command: &[&str]) -> Option<Result<String>> {
    let socket = format!("/run/{node}/containerd.sock");
    if !std::path::Path::new(&socket).exists() {
        return None;
    }
    let id = container.trim_start_matches("containerd://");
    let exec = format!("e2e-{}", uuid::Uuid::new_v4().simple());
    let mut arguments = vec!["-a", &socket, "-n", "k8s.io", "tasks", "exec", "--exec-id", &exec, id];
    arguments.extend_from_slice(command);
    Some(run("ctr", &arguments, None).await)
}

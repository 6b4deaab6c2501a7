//! The operator's pods: which one leads, on which node, and leadership where a test needs it.

use crate::{
    Result,
    cluster::{OPERATOR_NAMESPACE, PATIENCE},
    kubectl::{kubectl, run},
    wait::{Look, until},
};

/// The pod that leads.
///
/// # Errors
/// Nobody leads, or the API server did not answer.
pub async fn leader() -> Result<String> {
    let identity =
        kubectl(OPERATOR_NAMESPACE, &["get", "lease", "pgherd-operator", "-o", "jsonpath={.spec.holderIdentity}"])
            .await?;
    let pod = identity.split(['/', '_']).next().unwrap_or_default().trim().to_string();
    if pod.is_empty() { Err("no operator leads".into()) } else { Ok(pod) }
}

/// The operator's pods that run: name, node and address.
///
/// # Errors
/// The API server did not answer.
pub async fn pods() -> Result<Vec<(String, String, String)>> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{\"\\n\"}{end}";
    let list =
        ["get", "pods", "-l", "app.kubernetes.io/name=pgherd", "--field-selector=status.phase=Running", "-o", path];
    let lines = kubectl(OPERATOR_NAMESPACE, &list).await?;
    let mut pods = Vec::new();
    for line in lines.lines() {
        let mut words = line.split_whitespace().map(str::to_string);
        if let (Some(name), Some(node), Some(address)) = (words.next(), words.next(), words.next()) {
            pods.push((name, node, address));
        }
    }
    Ok(pods)
}

/// Waits until both pods of the operator are available and one leads.
///
/// # Errors
/// It was not so in time.
pub async fn wait_available() -> Result<()> {
    until("both operators", PATIENCE, async || {
        let rolled = kubectl(OPERATOR_NAMESPACE, &["rollout", "status", "deployment/pgherd", "--timeout=5s"]).await;
        Ok(rolled.map_or_else(|error| Look::NotYet(error.to_string()), |_| Look::Done(())))
    })
    .await?;
    until("an operator that leads", PATIENCE, async || {
        let (leader, pods) = (leader().await?, pods().await?);
        let known = pods.iter().any(|(name, ..)| *name == leader);
        Ok(if known { Look::Done(()) } else { Look::NotYet(format!("{leader} of {pods:?}")) })
    })
    .await
}

/// Makes a pod on a node the leader: by removing pods until it is so.
///
/// # Errors
/// It was not so after several attempts.
pub async fn lead_on(node: &str) -> Result<()> {
    for _ in 0..6 {
        wait_available().await?;
        let (leader, pods) = (leader().await?, pods().await?);
        if pods.iter().any(|(name, at, _)| *name == leader && at == node) {
            return Ok(());
        }
        if pods.iter().any(|(_, at, _)| at == node) {
            replace(&leader).await?;
        } else if let Some((other, ..)) = pods.iter().find(|(name, ..)| *name != leader) {
            // The scheduler would choose any node; only one is left to it.
            let others: Vec<String> = (1..=3).map(|n| format!("kn{n}")).filter(|name| name != node).collect();
            for name in &others {
                run("kubectl", &["cordon", name], None).await?;
            }
            let replaced = replace(other).await;
            for name in &others {
                run("kubectl", &["uncordon", name], None).await?;
            }
            replaced?;
        }
    }
    Err(format!("no operator on {node} leads after several attempts").into())
}

/// Makes a pod that is not on a node the leader.
///
/// # Errors
/// It was not so after several attempts.
pub async fn lead_elsewhere(node: &str) -> Result<()> {
    for _ in 0..4 {
        wait_available().await?;
        let (leader, pods) = (leader().await?, pods().await?);
        if pods.iter().any(|(name, at, _)| *name == leader && at != node) {
            return Ok(());
        }
        replace(&leader).await?;
    }
    Err(format!("the operator that leads stays on {node}").into())
}

async fn replace(pod: &str) -> Result<()> {
    kubectl(OPERATOR_NAMESPACE, &["delete", "pod", pod]).await?;
    wait_available().await
}

/// A node that an interrupted run left closed to new pods is opened again.
pub async fn heal() {
    for node in 1..=3 {
        drop(run("kubectl", &["uncordon", &format!("kn{node}")], None).await);
    }
}

//! Faults of the operator: killed over and over while it has work to do, and two of them that don't know of each other. Numbers
//! 45, 46.

use std::time::{Duration, Instant};

use pgherd_e2e::{
    Result,
    cluster::OPERATOR_NAMESPACE,
    containers::{self, Kind},
    kubectl::{apply, kubectl},
    operators,
};

use crate::scene::{Scene, claim};

/// How long operators are killed.
const SPAN: Duration = Duration::from_secs(40);

/// Both operators die every few seconds, and the primary dies too: whatever write comes next may be their last.
pub(crate) async fn killed_in_a_loop(scene: &Scene) -> Result<()> {
    let (begun, mut kills) = (Instant::now(), 0_u32);
    scene.primary_container()?.set_frozen(true)?;
    let outcome: Result<()> = async {
        while begun.elapsed() < SPAN {
            for operator in containers::observe(OPERATOR_NAMESPACE)? {
                // Not all at once: a leader that has just begun is what is to be hit.
                if operator.signal("KILL", &[Kind::Supervisor]).await.is_ok() {
                    kills += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(1_300 + u64::from(kills % 5) * 700)).await;
        }
        Ok(())
    }
    .await;
    drop(scene.container(&scene.primary()?).map(|container| container.set_frozen(false)));
    scene.note(format!("{kills} operators killed within {} s", SPAN.as_secs()));
    outcome?;
    operators::wait_available().await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// A second operator with a leader's Lease of its own works on the same clusters while the primary dies.
pub(crate) async fn two(scene: &Scene) -> Result<()> {
    let text = kubectl(OPERATOR_NAMESPACE, &["get", "deployment", "pgherd", "-o", "json"]).await?;
    let mut second: serde_json::Value = serde_json::from_str(&text)?;
    let labels = serde_json::json!({"app.kubernetes.io/name": "pgherd", "example.com/second": "true"});
    second["metadata"] = serde_json::json!({"name": "pgherd-second", "namespace": OPERATOR_NAMESPACE});
    second["spec"]["selector"] = serde_json::json!({"matchLabels": labels});
    second["spec"]["template"]["metadata"]["labels"] = labels;
    if let Some(arguments) = second["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut() {
        for argument in
            arguments.iter_mut().filter(|argument| argument.as_str().is_some_and(|a| a.starts_with("--leader-lease")))
        {
            *argument = "--leader-lease=pgherd-second".into();
        }
    }
    second["status"] = serde_json::Value::Null;
    apply(OPERATOR_NAMESPACE, &second.to_string()).await?;
    let outcome = async {
        kubectl(OPERATOR_NAMESPACE, &["rollout", "status", "deployment/pgherd-second", "--timeout=120s"]).await?;
        scene.primary_container()?.signal("KILL", &[Kind::Supervisor]).await?;
        scene.wait_failover_or_restart(&scene.primary()?).await?;
        scene.writer.wait_progress(50).await?;
        let status = scene.cluster.wait_ready(3).await?;
        let (before, after) = (scene.before.term.unwrap_or_default(), status.term.unwrap_or_default());
        claim(after <= before + 2, || format!("it flaps: term {before} before, {after} after"))
    }
    .await;
    kubectl(OPERATOR_NAMESPACE, &["delete", "deployment", "pgherd-second"]).await?;
    kubectl(OPERATOR_NAMESPACE, &["delete", "lease", "pgherd-second", "--ignore-not-found"]).await?;
    outcome
}

//! A namespace of a test's own, with the strictest pod security, and what is kept of it when the test fails.

use std::path::PathBuf;

use crate::{
    Result,
    kubectl::{apply, kubectl, root, run},
    wait::{Look, until},
};

/// Makes the namespace anew: what an earlier run left in it is removed first.
///
/// # Errors
/// kubectl failed.
pub async fn recreate(name: &str) -> Result<()> {
    remove(name).await?;
    let manifest = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: restricted\n"
    );
    apply(name, &manifest).await?;
    Ok(())
}

/// Removes the namespace and waits until it is gone.
///
/// # Errors
/// kubectl failed or it took too long.
pub async fn remove(name: &str) -> Result<()> {
    run("kubectl", &["delete", "namespace", name, "--ignore-not-found", "--wait=false"], None).await?;
    until(&format!("namespace {name} to be gone"), crate::cluster::PATIENCE, async || {
        let found = run("kubectl", &["get", "namespace", name, "--ignore-not-found", "-o", "name"], None).await?;
        Ok(if found.trim().is_empty() { Look::Done(()) } else { Look::NotYet(found) })
    })
    .await
}

/// Keeps what tells why a test failed under `target/e2e-logs/<namespace>`: objects, events and logs. Secrets are not
/// among them.
pub async fn keep_evidence(name: &str) -> PathBuf {
    let folder = root().join("target/e2e-logs").join(name);
    let views: [(&str, &[&str]); 5] = [
        ("objects.yaml", &["get", "pgc,pgb,pgbs,pods,jobs,sts,leases,pvc,endpointslices", "-o", "yaml"]),
        ("events.txt", &["get", "events", "--sort-by=.lastTimestamp"]),
        ("pods.txt", &["get", "pods", "-o", "wide", "--show-labels"]),
        (
            "postgres.log",
            &["logs", "-l", "app.kubernetes.io/name=postgresql", "--all-containers", "--prefix", "--tail=400"],
        ),
        ("backup.log", &["logs", "-l", "app.kubernetes.io/name=pgherd-backup", "--prefix", "--tail=200"]),
    ];
    let kept = async {
        tokio::fs::create_dir_all(&folder).await?;
        for (file, arguments) in views {
            let text = kubectl(name, arguments).await.unwrap_or_else(|error| error.to_string());
            tokio::fs::write(folder.join(file), text).await?;
        }
        let operator = kubectl(
            crate::cluster::OPERATOR_NAMESPACE,
            &["logs", "-l", "app.kubernetes.io/name=pgherd", "--prefix", "--tail=500"],
        );
        tokio::fs::write(folder.join("operator.log"), operator.await.unwrap_or_else(|error| error.to_string())).await
    };
    if let Err(error) = kept.await {
        eprintln!("could not keep the logs in {}: {error}", folder.display());
    }
    folder
}

/// Runs a test in a namespace of its own, which is removed if the test passes; else its evidence is kept.
///
/// # Errors
/// The test's error, with the folder of the evidence.
pub async fn with_namespace<F>(name: &str, test: F) -> Result<()>
where
    F: AsyncFnOnce(&str) -> Result<()>,
{
    recreate(name).await?;
    match test(name).await {
        Ok(()) => remove(name).await,
        Err(error) => {
            let folder = keep_evidence(name).await;
            remove(name).await?;
            Err(format!("{error} (evidence in {})", folder.display()).into())
        }
    }
}

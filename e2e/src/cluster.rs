//! The Kubernetes that tests run on, the operator in it, and PostgresClusters as tests look at them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use pgherd_crds::{Backup, PostgresCluster, PostgresClusterStatus, names::keys, v1alpha1::backup::BackupPhase};
use serde_json::json;

use crate::{
    Result,
    kubectl::{kubectl, run},
    wait::{Look, until},
};

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "pgherd-system";
/// How long anything of a test may take on a slow machine before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A client for the cluster that `KUBECONFIG` names.
///
/// # Errors
/// There is no usable kubeconfig.
pub async fn connect() -> Result<Client> {
    // Only the first call in a process can install the provider; later ones find it there.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    Ok(Client::try_default().await?)
}

/// Installs or upgrades the operator by its chart and waits until it is available.
///
/// # Errors
/// helm or kubectl failed.
pub async fn install_operator() -> Result<()> {
    let release =
        ["upgrade", "--install", "pgherd", "charts/pgherd", "--namespace", OPERATOR_NAMESPACE, "--create-namespace"];
    // The definitions may be there from `kubectl apply -f crds/`.
    let options = ["--take-ownership", "--set", "image.repository=localhost/pgherd", "--set", "image.tag=dev"];
    run("helm", &[&release[..], &options].concat(), None).await?;
    kubectl(OPERATOR_NAMESPACE, &["rollout", "status", "deployment/pgherd", "--timeout=180s"]).await?;
    Ok(())
}

/// A PostgresCluster under test.
#[derive(Clone)]
pub struct Cluster {
    /// The API client.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Cluster {
    /// Names a cluster; it need not exist yet.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, name: &str) -> Self {
        Self { client: client.clone(), namespace: namespace.into(), name: name.into() }
    }

    fn api(&self) -> Api<PostgresCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The object's status.
    ///
    /// # Errors
    /// The API server did not answer or the cluster does not exist.
    pub async fn status(&self) -> Result<PostgresClusterStatus> {
        Ok(self.api().get(&self.name).await?.status.unwrap_or_default())
    }

    /// Waits until the condition `Ready` is true for the present generation with `instances` instances.
    ///
    /// # Errors
    /// It was not so in time; the text has the conditions and what each member says.
    pub async fn wait_ready(&self, instances: u32) -> Result<PostgresClusterStatus> {
        until(&format!("{} to be Ready with {instances} instances", self.name), PATIENCE, async || {
            let cluster = self.api().get(&self.name).await?;
            let status = cluster.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().any(|c| {
                c.type_ == "Ready" && c.status == "True" && c.observed_generation == cluster.metadata.generation
            });
            let counted = status.ready_instances.as_deref() == Some(&format!("{instances}/{instances}"));
            Ok(if ready && counted { Look::Done(status) } else { Look::NotYet(describe(&status)) })
        })
        .await
    }

    /// Waits until a condition has a status, and returns its reason and message.
    ///
    /// # Errors
    /// It was not so in time.
    pub async fn wait_condition(&self, type_: &str, wanted: &str) -> Result<(String, String)> {
        until(&format!("condition {type_}={wanted} of {}", self.name), PATIENCE, async || {
            let status = self.status().await?;
            let found = status.conditions.iter().find(|c| c.type_ == type_ && c.status == wanted);
            Ok(match found {
                Some(condition) => Look::Done((condition.reason.clone(), condition.message.clone())),
                None => Look::NotYet(describe(&status)),
            })
        })
        .await
    }

    /// Merges a patch into the object.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn patch(&self, patch: serde_json::Value) -> Result<()> {
        self.api().patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Sets the number of instances.
    ///
    /// # Errors
    /// As [`Self::patch`].
    pub async fn scale(&self, instances: u32) -> Result<()> {
        self.patch(json!({"spec": {"instances": instances}})).await
    }

    /// The pods of the instances.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let selector = format!("{}={},app.kubernetes.io/name=postgresql", keys::CLUSTER, self.name);
        Ok(pods.list(&ListParams::default().labels(&selector)).await?.items)
    }

    /// The node of a pod.
    ///
    /// # Errors
    /// The pod does not exist or has no node.
    pub async fn node_of(&self, pod: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = pods.get(pod).await?.spec.and_then(|spec| spec.node_name);
        found.ok_or_else(|| format!("pod {pod} has no node").into())
    }

    /// The primary's pod as status names it.
    ///
    /// # Errors
    /// There is none.
    pub async fn primary(&self) -> Result<String> {
        self.status().await?.primary.ok_or_else(|| format!("{} has no primary", self.name).into())
    }
}

/// Waits until a Backup is completed or failed; `each` sees every state on the way.
///
/// # Errors
/// It failed, or was not completed in time.
pub async fn wait_backup(
    client: &Client,
    namespace: &str,
    name: &str,
    mut each: impl FnMut(&Backup),
) -> Result<Backup> {
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    let each = &mut each;
    let begun = std::time::Instant::now();
    loop {
        let backup = api.get(name).await?;
        each(&backup);
        let status = backup.status.clone().unwrap_or_default();
        match status.phase {
            Some(BackupPhase::Completed) => return Ok(backup),
            Some(BackupPhase::Failed) => {
                return Err(format!("backup {name} failed: {}", status.error.unwrap_or_default()).into());
            }
            _ if begun.elapsed() > PATIENCE => return Err(format!("backup {name} is still {:?}", status.phase).into()),
            _ => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

/// Conditions and members in one line each, for errors.
#[must_use]
pub fn describe(status: &PostgresClusterStatus) -> String {
    let conditions =
        status.conditions.iter().map(|c| format!("{}={} ({}: {})", c.type_, c.status, c.reason, c.message));
    let members = status
        .members
        .iter()
        .map(|m| format!("{} {} {} {}", m.pod, m.role, m.phase, m.message.clone().unwrap_or_default()));
    format!("{} | {}", conditions.collect::<Vec<_>>().join("; "), members.collect::<Vec<_>>().join("; "))
}

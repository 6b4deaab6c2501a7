//! No secret's value appears where people and programs look: objects, logs, events, arguments, environments.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use pgherd_crds::names;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, OPERATOR_NAMESPACE},
    kubectl::kubectl,
};

use crate::checks::claim;

/// Kinds whose whole objects are searched. Secrets are where secrets belong.
const KINDS: &str = "pods,sts,jobs,cm,leases,events,svc,pgc,pgb,pgbs,pvc,endpointslices,deployments";
/// What every process of a container was started with.
const PROCESSES: &str = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; true";

/// Searches a namespace, its logs and its processes, and the operator's. An error names the place and never the value.
pub(crate) async fn check(client: &Client, cluster: &Cluster) -> Result<()> {
    check_with(client, cluster, &[]).await
}

/// As [`check`], with `more` secrets: what each is, and its value.
pub(crate) async fn check_with(client: &Client, cluster: &Cluster, more: &[(String, String)]) -> Result<()> {
    let namespace = &cluster.namespace;
    let mut needles = collect_secrets(client, namespace, &cluster.name).await?;
    needles.extend_from_slice(more);
    let mut places = Vec::new();
    for of in [namespace.as_str(), OPERATOR_NAMESPACE] {
        places.push((format!("the objects of {of}"), kubectl(of, &["get", KINDS, "-o", "json"]).await?));
        let pods = kubectl(of, &["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]).await?;
        for pod in pods.split_whitespace() {
            places.push((
                format!("the log of {pod}"),
                kubectl(of, &["logs", pod, "--all-containers", "--tail=-1"]).await?,
            ));
        }
    }
    for pod in cluster.pods().await?.into_iter().filter_map(|pod| pod.metadata.name) {
        let text = kubectl(namespace, &["exec", &pod, "-c", "postgres", "--", "sh", "-c", PROCESSES]).await?;
        claim(text.contains("pgherd"), || format!("the processes of {pod} cannot be read"))?;
        places.push((format!("the processes of {pod}"), text));
    }
    for (place, text) in &places {
        for (what, value) in &needles {
            claim(!text.contains(value.as_str()), || format!("{what} is in {place}"))?;
        }
    }
    Ok(())
}

async fn collect_secrets(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<(String, String)>> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let app = names::app_secret(cluster);
    let mut found = vec![("a private key".to_string(), "PRIVATE KEY".to_string())];
    for (name, key) in [(app.as_str(), "password"), ("minio", "secretAccessKey")] {
        let data = api.get(name).await?.data.unwrap_or_default();
        let value = data.get(key).ok_or_else(|| format!("Secret {name} has no key {key}"))?;
        let value = String::from_utf8(value.0.clone())?;
        claim(value.len() >= 16, || format!("{key} of Secret {name} is too short to be searched for"))?;
        found.push((format!("{key} of Secret {name}"), value));
    }
    Ok(found)
}

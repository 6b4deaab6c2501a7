//! Whether the archive has the WAL up to a backup's end: asks the agent of the primary. The judgement is pure.

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use pgherd_core::{
    instance::{ArchiveBarrier, WalSpan},
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_crds::{BackupStatus, PostgresCluster, names};

use crate::{
    context::Context,
    controllers::postgres_cluster::tls::{Certificates, OperatorIdentity, SecretData},
    kubernetes::{agent_client::AgentAddress, store},
    telemetry::error_chain,
};

/// What is known of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveProof {
    /// True once it is proven, None while it may still be.
    pub ready: Option<bool>,
    /// One sentence.
    pub message: String,
}

/// Asks the primary to archive up to now and judges the answer. `last_try` turns "not yet" into "no".
pub async fn prove_archive(
    context: &Context,
    cluster: Option<&PostgresCluster>,
    primary: Option<&str>,
    status: &BackupStatus,
    last_try: bool,
) -> ArchiveProof {
    let answer = match (cluster, primary) {
        (Some(cluster), Some(primary)) => ask_primary(context, cluster, primary, parse_span(status)).await,
        (None, _) => Err("the cluster is gone".to_owned()),
        (_, None) => Err("the cluster has no ready primary".to_owned()),
    };
    judge_archive(&answer, status, last_try)
}

/// After a switch of timelines a barrier alone proves nothing, as the end of the old timeline may be missing: then the WAL itself must
/// have been looked for. What is missing may come yet, from the primary of before.
#[must_use]
pub fn judge_archive(answer: &Result<ArchiveBarrier, String>, status: &BackupStatus, last_try: bool) -> ArchiveProof {
    let stop: Option<Lsn> = status.stop_lsn.as_deref().and_then(|lsn| lsn.parse().ok());
    let why = match (answer, stop) {
        (Err(why), _) => why.clone(),
        (Ok(barrier), Some(stop)) if barrier.archived && barrier.lsn >= stop => {
            let stayed = status.timeline == Some(barrier.timeline.0);
            match barrier.missing.as_deref() {
                Some([first, ..]) => format!("the archive lacks {first}"),
                None if !stayed => {
                    format!("it was not looked for, and the primary has moved to timeline {}", barrier.timeline.0)
                }
                _ => {
                    let message =
                        format!("restorable, and to any time since: the archive has the WAL up to {}", barrier.lsn);
                    return ArchiveProof { ready: Some(true), message };
                }
            }
        }
        (Ok(barrier), _) => format!("the primary has not archived its WAL up to {} yet", barrier.lsn),
    };
    let message = format!("restorable, but the WAL up to its end was not seen in the archive: {why}");
    ArchiveProof { ready: last_try.then_some(false), message }
}

/// The WAL that belongs to the backup.
fn parse_span(status: &BackupStatus) -> Option<WalSpan> {
    let parse = |lsn: &Option<String>| lsn.as_deref()?.parse().ok();
    let timeline = TimelineId(status.timeline?);
    Some(WalSpan { timeline, start_lsn: parse(&status.start_lsn)?, stop_lsn: parse(&status.stop_lsn)? })
}

async fn ask_primary(
    context: &Context,
    cluster: &PostgresCluster,
    primary: &str,
    span: Option<WalSpan>,
) -> Result<ArchiveBarrier, String> {
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let uid = cluster.metadata.uid.as_deref().unwrap_or_default();
    let pod =
        store::get(&context.stores.pods, namespace, primary).ok_or_else(|| format!("the pod {primary} is gone"))?;
    let ip = find_ip(&pod).ok_or_else(|| format!("the pod {primary} has no address"))?;
    let identity = read_identity(context, namespace, name).await?;
    let client = context.agents.of(uid, &identity).map_err(|error| error_chain(&error))?;
    let address = AgentAddress::new(name, namespace, primary, ip);
    client.archive_barrier(&address, span).await.map_err(|error| error_chain(&error))
}

fn find_ip(pod: &Pod) -> Option<std::net::IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// The operator's identity for the cluster's agents, from the Secret with the cluster's CA.
async fn read_identity(context: &Context, namespace: &str, cluster: &str) -> Result<OperatorIdentity, String> {
    let name = names::ca_secret(cluster);
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let secret = api
        .get_opt(&name)
        .await
        .map_err(|error| format!("the Secret {name} cannot be read: {}", error_chain(&error)))?
        .ok_or_else(|| format!("there is no Secret {name}"))?;
    let ca = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
    Ok(Certificates { ca, tls: SecretData::new() }.identity())
}

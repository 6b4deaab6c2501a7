//! All reads of one round: the register by a quorum GET, the pods, claims and backups from the watches, and what every
//! agent says. An agent that does not answer is data, not an error. Nothing is decided here.

pub mod pod;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, api::ListParams};
use pgherd_core::{
    failover::{PodView, Probe},
    instance::{InstanceStatus, Phase},
    register::Register,
};
use pgherd_crds::{Backup, names};
use tokio::time::timeout;

pub use self::pod::{ObservedPod, PodProblem, observe_pod};
use super::{tls::OperatorIdentity, validate::ValidatedCluster};
use crate::{
    context::Context,
    kubernetes::{
        agent_client::{AgentAddress, AgentClient, AgentClientError},
        register::{RegisterClient, RegisterError, StoredRegister},
        store,
    },
};

/// An answer of the API server that took longer says nothing about now: the Lease's age is judged by it.
pub(super) const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a round sees.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The register; none when there is no Lease, or an unreadable one.
    pub register: Option<StoredRegister>,
    /// Why the Lease that is there cannot be read. It is left as it is.
    pub register_problem: Option<String>,
    /// When the register was read, in milliseconds of the monotonic clock.
    pub read_at_ms: u64,
    /// For how long after that the agents were asked, in milliseconds.
    pub asked_ms: u64,
    /// The pods that exist, by ordinal.
    pub pods: Vec<ObservedPod>,
    /// The volume claims that exist, by ordinal. Only read while there is no holder.
    pub claims: BTreeMap<u32, ObservedClaim>,
    /// The cluster's Backup objects.
    pub backups: Vec<Arc<Backup>>,
    /// Revision of the StatefulSet's template as it is now; None while its controller has not seen the last change.
    pub revision: Option<String>,
    /// Nodes that are cordoned or being drained; None when the operator can't read nodes.
    pub draining: Option<BTreeSet<String>>,
}

/// A volume claim of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedClaim {
    /// When it was made, on the API server's clock.
    pub created_at: Option<Timestamp>,
}

/// A read that failed. Unreachable agents are no errors: they are in [`Observed`].
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The Lease could not be read.
    #[error("failed to read the register")]
    ReadRegister(#[source] RegisterError),
    /// The Lease was not read in time.
    #[error("the API server did not answer within {} ms when asked for the register", REGISTER_TIMEOUT.as_millis())]
    RegisterTimeout,
    /// The claims could not be listed.
    #[error("failed to list the volume claims")]
    ListClaims(#[source] Box<kube::Error>),
    /// The operator's certificate for this cluster cannot be used.
    #[error("failed to make a client for the agents")]
    AgentClient(#[source] AgentClientError),
}

impl Observed {
    /// The register itself.
    #[must_use]
    pub fn register(&self) -> Option<&Register> {
        self.register.as_ref().map(|stored| &stored.view.register)
    }

    /// The pod of this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<&ObservedPod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    /// The pod that holds the role by the register, if it is still the very pod.
    #[must_use]
    pub fn holder_pod(&self) -> Option<&ObservedPod> {
        let holder = self.register()?.holder.as_ref()?;
        self.pod(&holder.pod).filter(|pod| pod.uid == holder.pod_uid)
    }

    /// What the holder's agent says, if it serves as primary of the register's term and nothing is being changed about it.
    #[must_use]
    pub fn serving_holder(&self) -> Option<&InstanceStatus> {
        let register = self.register()?;
        let status = self.holder_pod()?.status()?;
        let same_system = register.system_id.is_none() || register.system_id == status.system_id;
        let serves = status.is_primary && status.postgres_up && status.term == register.term && same_system;
        (serves && !register.is_sealing() && !register.released).then_some(status)
    }

    /// The same, once it lets clients in too: only then may anything lead to it.
    #[must_use]
    pub fn admitting_holder(&self) -> Option<&InstanceStatus> {
        self.serving_holder().filter(|status| status.phase == Phase::Primary)
    }

    /// The pods as the failover decisions want them.
    #[must_use]
    pub fn views(&self) -> BTreeMap<String, PodView> {
        self.pods
            .iter()
            .map(|pod| (pod.name.clone(), PodView { uid: pod.uid.clone(), probe: pod.probe.clone() }))
            .collect()
    }

    /// The addresses of the agents whose pods run.
    #[must_use]
    pub fn agents(&self, cluster: &ValidatedCluster) -> Vec<AgentAddress> {
        self.pods.iter().filter_map(|pod| pod.address(cluster)).collect()
    }
}

/// Reads everything.
///
/// # Errors
/// If the API server does not answer.
pub async fn observe(
    context: &Context,
    cluster: &ValidatedCluster,
    identity: &OperatorIdentity,
) -> Result<Observed, ObserveError> {
    let client = context.agents.of(&cluster.uid, identity).map_err(ObserveError::AgentClient)?;
    let mut pods: Vec<ObservedPod> = store::of_cluster(&context.stores.pods, &cluster.namespace, &cluster.name)
        .iter()
        .filter_map(|pod| observe_pod(&cluster.name, pod))
        .collect();
    pods.sort_by_key(|pod| pod.ordinal);
    let (register, statuses) = tokio::join!(
        read_register(context, cluster),
        join_all(pods.iter().map(|pod| probe(&client, pod.address(cluster), &pod.uid))),
    );
    let (register, register_problem, read_at_ms) = register?;
    for (pod, outcome) in pods.iter_mut().zip(statuses) {
        (pod.probe, pod.unreachable_why) = outcome;
    }
    let agents: Vec<AgentAddress> = pods.iter().filter_map(|pod| pod.address(cluster)).collect();
    client.retain(&agents).await;
    let held = register.as_ref().is_some_and(|stored| stored.view.register.holder.is_some());
    let claims = if held { BTreeMap::new() } else { list_claims(context, cluster).await? };
    let backups = store::list_backups(&context.stores.backups, &cluster.namespace, &cluster.name);
    let draining = context.stores.nodes.draining();
    let asked_ms = context.clock.now().monotonic_ms.saturating_sub(read_at_ms);
    let revision = find_revision(context, cluster);
    Ok(Observed { register, register_problem, read_at_ms, asked_ms, pods, claims, backups, revision, draining })
}

fn find_revision(context: &Context, cluster: &ValidatedCluster) -> Option<String> {
    let set = store::get(&context.stores.stateful_sets, &cluster.namespace, &cluster.name)?;
    let status = set.status.as_ref()?;
    (status.observed_generation == set.metadata.generation).then(|| status.update_revision.clone())?
}

type ReadRegister = (Option<StoredRegister>, Option<String>, u64);

async fn read_register(context: &Context, cluster: &ValidatedCluster) -> Result<ReadRegister, ObserveError> {
    let client = RegisterClient::new(context.client.clone(), &cluster.namespace);
    let read =
        timeout(REGISTER_TIMEOUT, client.read(&cluster.name)).await.map_err(|_| ObserveError::RegisterTimeout)?;
    let read_at_ms = context.clock.now().monotonic_ms;
    match read {
        Ok(register) => Ok((register, None, read_at_ms)),
        Err(problem @ RegisterError::Malformed { .. }) => Ok((None, Some(problem.to_string()), read_at_ms)),
        Err(error) => Err(ObserveError::ReadRegister(error)),
    }
}

/// Asks one agent. An answer of another pod than the one that is meant counts as none.
async fn probe(client: &AgentClient, address: Option<AgentAddress>, uid: &str) -> (Probe, Option<String>) {
    let Some(address) = address else {
        return (Probe::Unreachable, Some("its container does not run".to_owned()));
    };
    match client.status(&address).await {
        Ok(status) if status.pod_uid == uid => (Probe::Reachable(Box::new(status)), None),
        Ok(_) => (Probe::Unreachable, Some("an earlier pod of its name answers at its address".to_owned())),
        Err(error) => (Probe::Unreachable, Some(error.to_string())),
    }
}

/// The claims straight from the API server: that no data directory exists must not be concluded from a cache.
async fn list_claims(
    context: &Context,
    cluster: &ValidatedCluster,
) -> Result<BTreeMap<u32, ObservedClaim>, ObserveError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let list = api
        .list(&ListParams::default().labels(&cluster.selector()))
        .await
        .map_err(|error| ObserveError::ListClaims(Box::new(error)))?;
    Ok(list
        .items
        .into_iter()
        .filter_map(|claim| {
            // `<template>-<pod>`, as the StatefulSet controller names it.
            let ordinal = claim
                .metadata
                .name
                .as_deref()?
                .split_once('-')
                .and_then(|(_, pod)| names::ordinal(&cluster.name, pod))?;
            Some((ordinal, ObservedClaim { created_at: claim.metadata.creation_timestamp.map(|time| time.0) }))
        })
        .collect())
}

/// The address of a pod whose container runs.
fn parse_ip(ip: Option<&str>) -> Option<IpAddr> {
    ip?.parse().ok()
}

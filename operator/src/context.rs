//! What every reconciler gets: the client, the settings, the reflector stores, the clock and the memories that outlive
//! one reconciliation. Nothing here decides.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, runtime::events::Recorder};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    controllers::postgres_cluster::memory::ClusterMemory,
    kubernetes::{agent_client::AgentClients, scope::Scope, store::Stores},
    leader::Leadership,
    settings::Settings,
    telemetry::metrics::Metrics,
};

/// Shared by all controllers; cheap to clone behind an `Arc`.
pub struct Context {
    /// The client of the API server.
    pub client: Client,
    /// The namespaces that this context's controllers watch.
    pub scope: Scope,
    /// Settings.
    pub settings: Settings,
    /// Publishes Events; one for all, because its aggregation cache lives in it.
    pub recorder: Recorder,
    /// What watches have seen: pods, claims, backups and the objects that the operator owns.
    pub stores: Stores,
    /// Clients of the agents, one a cluster.
    pub agents: AgentClients,
    /// Whether this process leads: to be asked before anything that another leader could be doing as well.
    pub leadership: Leadership,
    /// Metrics.
    pub metrics: Metrics,
    /// The only clock.
    pub clock: Clock,
    /// What is remembered of each cluster, by its UID.
    pub memories: Memories,
    /// When the archive was last looked at for a Backup.
    pub archive_looks: ArchiveLooks,
}

impl Context {
    /// The API of a kind in the watched scope, for lists and watches. Writes go by `Api::namespaced`.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.scope.api(&self.client)
    }
}

/// The only source of time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    wall: fn() -> Timestamp,
}

/// One reading of the clock, taken once a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For people and for the API.
    pub wall: Timestamp,
    /// Milliseconds of a monotonic clock, for durations and decisions.
    pub monotonic_ms: u64,
}

impl Clock {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self::with_wall(Timestamp::now)
    }

    /// Starts the clock with another wall clock: for the simulation.
    #[must_use]
    pub fn with_wall(wall: fn() -> Timestamp) -> Self {
        Self { started: Instant::now(), wall }
    }

    /// Reads it.
    #[must_use]
    pub fn now(&self) -> Now {
        let monotonic_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { wall: (self.wall)(), monotonic_ms }
    }
}

/// Memories of clusters by UID. A cluster made again under the same name starts with an empty one.
#[derive(Debug, Default)]
pub struct Memories {
    by_uid: std::sync::Mutex<BTreeMap<String, Arc<Mutex<ClusterMemory>>>>,
}

impl Memories {
    /// The memory of a cluster, made on first use.
    #[must_use]
    pub fn of(&self, uid: &str) -> Arc<Mutex<ClusterMemory>> {
        let mut all = self.by_uid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(all.entry(uid.to_owned()).or_default())
    }

    /// Forgets all clusters but these.
    pub fn retain(&self, uids: &[String]) {
        let mut all = self.by_uid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|uid, _| uids.contains(uid));
    }
}

/// When the archive was last looked at for a Backup, by its UID, in milliseconds of the monotonic clock; of this process alone.
#[derive(Debug, Default)]
pub struct ArchiveLooks {
    by_uid: std::sync::Mutex<BTreeMap<String, u64>>,
}

impl ArchiveLooks {
    /// How long ago that was; none: not yet.
    #[must_use]
    pub fn age(&self, uid: &str, now: Now) -> Option<SignedDuration> {
        let all = self.by_uid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ago = now.monotonic_ms.saturating_sub(*all.get(uid)?);
        Some(SignedDuration::from_millis(i64::try_from(ago).unwrap_or(i64::MAX)))
    }

    /// It is looked at now.
    pub fn note(&self, uid: &str, now: Now) {
        let mut all = self.by_uid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.insert(uid.to_owned(), now.monotonic_ms);
    }

    /// It need not be looked at any more.
    pub fn forget(&self, uid: &str) {
        self.by_uid.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(uid);
    }
}

//! Reflector stores: what watches have seen, selected by the label `app.kubernetes.io/managed-by=pgherd`. Reads are
//! stale by the watch's delay; the register is never read from here.

use std::{fmt::Debug, sync::Arc};

use futures::StreamExt;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store},
        watcher,
    },
};
use pgherd_crds::{
    Backup, BackupSchedule, PostgresCluster,
    names::{MANAGER, keys},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::{client::watch_config, nodes::Nodes, scope::Scope};
use crate::telemetry::error_chain;

/// All stores.
#[derive(Clone)]
#[expect(missing_docs, reason = "each field is named after its kind")]
pub struct Stores {
    pub clusters: Store<PostgresCluster>,
    pub schedules: Store<BackupSchedule>,
    pub backups: Store<Backup>,
    pub pods: Store<Pod>,
    pub claims: Store<PersistentVolumeClaim>,
    pub jobs: Store<Job>,
    pub stateful_sets: Store<StatefulSet>,
    pub services: Store<Service>,
    pub config_maps: Store<ConfigMap>,
    pub accounts: Store<ServiceAccount>,
    pub roles: Store<Role>,
    pub role_bindings: Store<RoleBinding>,
    pub budgets: Store<PodDisruptionBudget>,
    pub network_policies: Store<NetworkPolicy>,
    pub nodes: Nodes,
}

/// The tasks that fill the stores; dropping them ends the watches.
pub struct Watches(#[expect(dead_code, reason = "held for its drop")] JoinSet<()>);

impl Stores {
    /// Starts one watch for each kind.
    #[must_use]
    pub fn start(client: &Client, scope: &Scope) -> (Self, Watches) {
        let mut starter = Starter { client, scope, tasks: JoinSet::new() };
        let (nodes, watch_nodes) = Nodes::start(client);
        starter.tasks.spawn(watch_nodes);
        let stores = Self {
            clusters: starter.start(None),
            schedules: starter.start(None),
            backups: starter.start(None),
            pods: starter.start_owned(),
            claims: starter.start_owned(),
            jobs: starter.start_owned(),
            stateful_sets: starter.start_owned(),
            services: starter.start_owned(),
            config_maps: starter.start_owned(),
            accounts: starter.start_owned(),
            roles: starter.start_owned(),
            role_bindings: starter.start_owned(),
            budgets: starter.start_owned(),
            network_policies: starter.start_owned(),
            nodes,
        };
        (stores, Watches(starter.tasks))
    }

    /// Waits until every store holds what was there at the start: before, a missing object means nothing.
    pub async fn wait_until_ready(&self) {
        let Self {
            clusters,
            schedules,
            backups,
            pods,
            claims,
            jobs,
            stateful_sets,
            services,
            config_maps,
            accounts,
            roles,
            role_bindings,
            budgets,
            network_policies,
            // It may never be filled, where the operator has no right to read nodes.
            nodes: _,
        } = self;
        wait(clusters).await;
        wait(schedules).await;
        wait(backups).await;
        wait(pods).await;
        wait(claims).await;
        wait(jobs).await;
        wait(stateful_sets).await;
        wait(services).await;
        wait(config_maps).await;
        wait(accounts).await;
        wait(roles).await;
        wait(role_bindings).await;
        wait(budgets).await;
        wait(network_policies).await;
    }
}

async fn wait<K>(store: &Store<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    if store.wait_until_ready().await.is_err() {
        tracing::error!(kind = %K::kind(&()), "a watch ended");
    }
}

struct Starter<'a> {
    client: &'a Client,
    scope: &'a Scope,
    tasks: JoinSet<()>,
}

impl Starter<'_> {
    fn start_owned<K>(&mut self) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.start(Some(format!("{}={MANAGER}", keys::MANAGED_BY)))
    }

    fn start<K>(&mut self, labels: Option<String>) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let config = watcher::Config { label_selector: labels, ..watch_config() };
        let (reader, writer) = store::<K>();
        let events = watcher(self.scope.api::<K>(self.client), config)
            .default_backoff()
            // They can be as large as the object itself, and nobody reads them.
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer);
        self.tasks.spawn(async move {
            events
                .for_each(|event| {
                    if let Err(error) = event {
                        tracing::warn!(kind = %K::kind(&()), error = error_chain(&error), "a watch failed and begins again");
                    }
                    std::future::ready(())
                })
                .await;
        });
        reader
    }
}

/// The object with this name.
#[must_use]
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// The objects that carry the label of this cluster, in no order.
#[must_use]
pub fn of_cluster<K>(store: &Store<K>, namespace: &str, cluster: &str) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|object| {
        let meta = object.meta();
        let label = meta.labels.as_ref().and_then(|labels| labels.get(keys::CLUSTER));
        meta.namespace.as_deref() == Some(namespace) && label.is_some_and(|label| label == cluster)
    })
}

/// The Backups of this cluster, in no order.
#[must_use]
pub fn list_backups(store: &Store<Backup>, namespace: &str, cluster: &str) -> Vec<Arc<Backup>> {
    store.state_filter(|backup| {
        backup.metadata.namespace.as_deref() == Some(namespace) && backup.spec.cluster_ref.name == cluster
    })
}

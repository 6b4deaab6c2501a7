//! The objects that a cluster consists of, made whole from [`ValidatedCluster`]. Pure: no client, no clock, one file a
//! kind.

pub mod config_map;
pub mod network_policy;
pub mod pdb;
pub mod rbac;
pub mod secrets;
pub mod services;
pub mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use kube::api::ObjectMeta;
use pgherd_crds::names::{MANAGER, keys};

use super::validate::ValidatedCluster;

/// Value of the label `app.kubernetes.io/name` on everything of a cluster.
pub const APP_NAME: &str = "postgresql";

/// What the objects depend on besides the cluster.
#[derive(Clone, Debug)]
pub struct BuildInput<'a> {
    /// The cluster.
    pub cluster: &'a ValidatedCluster,
    /// The StatefulSet's replicas, by the plan.
    pub replicas: u32,
    /// The primary's pod must not be evicted: the role moves first, by the plan.
    pub protect_primary: bool,
    /// The image with the `pgherd` binary.
    pub pgherd_image: &'a str,
    /// The size in the live StatefulSet's claim template, which cannot be changed any more.
    pub claim_size: Option<&'a Quantity>,
}

/// Everything that is applied, in the order in which it is applied.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is named after its kind")]
pub struct Resources {
    pub account: ServiceAccount,
    pub role: Role,
    pub role_binding: RoleBinding,
    pub config_map: ConfigMap,
    pub services: Vec<Service>,
    pub budgets: Vec<PodDisruptionBudget>,
    pub network_policy: NetworkPolicy,
    pub stateful_set: StatefulSet,
}

/// A builder that failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `instance.json` could not be rendered.
    #[error("failed to render instance.json")]
    RenderConfig(#[source] serde_json::Error),
}

/// Builds everything.
///
/// # Errors
/// [`BuildError`].
pub fn build_resources(input: &BuildInput<'_>) -> Result<Resources, BuildError> {
    let cluster = input.cluster;
    Ok(Resources {
        account: rbac::build_account(cluster),
        role: rbac::build_role(cluster),
        role_binding: rbac::build_role_binding(cluster),
        config_map: config_map::build_config_map(cluster, input.replicas)?,
        services: services::build_services(cluster),
        budgets: pdb::build_budgets(cluster, input.protect_primary),
        network_policy: network_policy::build_network_policy(cluster),
        stateful_set: stateful_set::build_stateful_set(input),
    })
}

/// Labels of everything. Labels of the PostgresCluster are not inherited: a GitOps tool would prune what carries its own.
#[must_use]
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    [(keys::MANAGED_BY, MANAGER), (keys::NAME, APP_NAME), (keys::CLUSTER, cluster)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// Selects the instances of a cluster, and of none but this kind: Jobs carry another name.
#[must_use]
pub fn selector_labels(cluster: &str) -> BTreeMap<String, String> {
    [(keys::NAME, APP_NAME), (keys::CLUSTER, cluster)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn selector(cluster: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(cluster)), ..LabelSelector::default() }
}

/// Metadata of an owned object.
fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(&cluster.name)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;

//! ConfigMap `<cluster>-config` with `instance.json`, the same for every instance. Agents see a change without a restart of
//! the pod, therefore nothing of it is in the pod template.

use k8s_openapi::api::core::v1::ConfigMap;
use pgherd_core::instance::{InstanceConfig, ReplicaSourcePolicy};
use pgherd_crds::{names, v1alpha1::postgres_cluster::ReplicaSource};

use super::{BuildError, metadata};
use crate::controllers::postgres_cluster::validate::ValidatedCluster;

/// The key of the ConfigMap.
pub const INSTANCE_JSON: &str = "instance.json";

/// The configuration of the instances. `instances` is how many there are to be, or still are: while the role has to move
/// off an ordinal that is to go, the others count.
#[must_use]
pub fn build_instance_config(cluster: &ValidatedCluster, instances: u32) -> InstanceConfig {
    InstanceConfig {
        cluster: cluster.name.clone(),
        namespace: cluster.namespace.clone(),
        instances,
        parameters: cluster.parameters.clone(),
        hba: cluster.hba.clone(),
        bootstrap: cluster.bootstrap.clone(),
        store: cluster.store.as_ref().map(|store| store.config.clone()),
        replica_source: match cluster.replica_source {
            ReplicaSource::Auto => ReplicaSourcePolicy::Auto,
            ReplicaSource::Backup => ReplicaSourcePolicy::Backup,
            ReplicaSource::Instance => ReplicaSourcePolicy::Instance,
        },
        timings: cluster.timings.clone(),
    }
}

/// The ConfigMap.
///
/// # Errors
/// [`BuildError::RenderConfig`].
pub fn build_config_map(cluster: &ValidatedCluster, instances: u32) -> Result<ConfigMap, BuildError> {
    let config = build_instance_config(cluster, instances);
    let text = serde_json::to_string_pretty(&config).map_err(BuildError::RenderConfig)?;
    Ok(ConfigMap {
        metadata: metadata(cluster, names::config_map(&cluster.name)),
        data: Some([(INSTANCE_JSON.to_owned(), text)].into()),
        ..ConfigMap::default()
    })
}

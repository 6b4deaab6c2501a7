//! What a spec refers to, looked up in the reflector stores: no requests. The only reads before validation.

use std::sync::Arc;

use pgherd_core::{instance::InstanceConfig, quantity::parse_bytes};
use pgherd_crds::{Backup, PostgresCluster, names};

use super::build::config_map::INSTANCE_JSON;
use crate::{
    context::Context,
    kubernetes::store::{get, of_cluster},
};

/// What a spec refers to.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// The Backup that a new cluster is recovered from.
    pub backup: Option<Arc<Backup>>,
    /// The cluster that it was taken of, which knows the store.
    pub backup_cluster: Option<Arc<PostgresCluster>>,
    /// The configuration that the instances have now.
    pub live_config: Option<InstanceConfig>,
    /// The largest volume that was asked for up to now, in bytes.
    pub live_storage_bytes: Option<u64>,
}

/// Looks everything up.
#[must_use]
pub fn observe_references(context: &Context, cluster: &PostgresCluster) -> References {
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let recovery = cluster.spec.bootstrap.as_ref().and_then(|bootstrap| bootstrap.recovery.as_ref());
    let reference = recovery.and_then(|recovery| recovery.from.backup_ref.as_ref());
    let backup = reference.and_then(|reference| get(&context.stores.backups, namespace, &reference.name));
    let backup_cluster =
        backup.as_ref().and_then(|backup| get(&context.stores.clusters, namespace, &backup.spec.cluster_ref.name));
    let config = get(&context.stores.config_maps, namespace, &names::config_map(name));
    let live_config = config.and_then(|map| serde_json::from_str(map.data.as_ref()?.get(INSTANCE_JSON)?).ok());
    let live_storage_bytes = of_cluster(&context.stores.claims, namespace, name)
        .iter()
        .filter_map(|claim| {
            let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
            parse_bytes(&requests.get("storage")?.0).ok()
        })
        .max();
    References { backup, backup_cluster, live_config, live_storage_bytes }
}

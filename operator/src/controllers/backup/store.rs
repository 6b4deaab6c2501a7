//! The object store of a cluster, as a backup Job mounts and uses it. Pure.

use pgherd_core::{backup::StoreConfig, instance::paths};
use pgherd_crds::PostgresCluster;

use crate::controllers::postgres_cluster::validate::ValidatedStore;

/// The store in the cluster's spec; None when there is none.
///
/// # Errors
/// One sentence that says which field is wrong.
pub fn find_store(cluster: &PostgresCluster, namespace: &str) -> Result<Option<ValidatedStore>, String> {
    let Some(backup) = &cluster.spec.backup else { return Ok(None) };
    let store = &backup.object_store;
    if !store.endpoint.starts_with("https://") && !store.endpoint.starts_with("http://") {
        return Err(format!("spec.backup.objectStore.endpoint \"{}\" must begin with https://", store.endpoint));
    }
    let ca_secret = store.ca_secret_ref.as_ref().map(|secret| secret.name.clone());
    Ok(Some(ValidatedStore {
        config: StoreConfig {
            endpoint: store.endpoint.trim_end_matches('/').to_owned(),
            bucket: store.bucket.clone(),
            prefix: store.prefix.clone().unwrap_or_else(|| namespace.to_owned()),
            region: store.region.clone(),
            path_style: store.path_style.unwrap_or(true),
            credentials_dir: paths::STORE.to_owned(),
            ca_file: ca_secret.as_ref().map(|_| format!("{}/ca.crt", paths::STORE_CA)),
        },
        credentials_secret: store.credentials_secret_ref.name.clone(),
        ca_secret,
    }))
}

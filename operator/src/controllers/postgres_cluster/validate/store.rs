//! The object store of a cluster as pods use it: with the folders that its Secrets are mounted in. Pure.

use pgherd_core::{backup::StoreConfig, instance::paths};
use pgherd_crds::{PostgresCluster, v1alpha1::shared::ObjectStore};

use super::{InvalidSpec, Problems, ValidatedStore, rules};

/// Where `spec.backup.objectStore` is wrong.
const FIELD: &str = "spec.backup.objectStore";

/// The store in the cluster's spec, as a backup Job uses it; None when there is none.
///
/// # Errors
/// [`InvalidSpec`] with every field that is wrong.
pub fn find_store(cluster: &PostgresCluster, namespace: &str) -> Result<Option<ValidatedStore>, InvalidSpec> {
    let Some(backup) = &cluster.spec.backup else { return Ok(None) };
    let mut problems = Problems::default();
    let store = validate_store(&backup.object_store, namespace, FIELD, [paths::STORE, paths::STORE_CA], &mut problems);
    if problems.0.is_empty() { Ok(Some(store)) } else { Err(InvalidSpec(problems.0)) }
}

/// The store as pods use it: with the folders of its Secrets.
pub(super) fn validate_store(
    store: &ObjectStore,
    namespace: &str,
    field: &str,
    [credentials_dir, ca_dir]: [&str; 2],
    problems: &mut Problems,
) -> ValidatedStore {
    rules::check_store(store, field, problems);
    let ca_secret = store.ca_secret_ref.as_ref().map(|reference| reference.name.clone());
    ValidatedStore {
        config: StoreConfig {
            endpoint: store.endpoint.trim_end_matches('/').to_owned(),
            bucket: store.bucket.clone(),
            prefix: store.prefix.clone().unwrap_or_else(|| namespace.to_owned()),
            region: store.region.clone(),
            path_style: store.path_style.unwrap_or(true),
            credentials_dir: credentials_dir.to_owned(),
            ca_file: ca_secret.is_some().then(|| format!("{ca_dir}/ca.crt")),
        },
        credentials_secret: store.credentials_secret_ref.name.clone(),
        ca_secret,
    }
}

//! The object store of a cluster as pods use it: with the folders that its Secrets are mounted in. Pure.

use pgherd_core::{
    backup::{EncryptionConfig, StoreConfig},
    compression::LevelBounds,
    instance::paths,
    quantity::parse_rate,
};
use pgherd_crds::{
    PostgresCluster,
    v1alpha1::{
        postgres_cluster::{BackupCompression, BackupConfig},
        shared::{LocalReference, ObjectStore},
    },
};

use super::{InvalidSpec, Problems, ValidatedStore, rules};

/// Where `spec.backup` is wrong.
const FIELD: &str = "spec.backup";

/// Where the Secrets of a store are mounted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folders {
    pub(super) credentials: &'static str,
    pub(super) ca: &'static str,
    pub(super) identity: &'static str,
}

/// Those of the archive.
const OWN: Folders = Folders { credentials: paths::STORE, ca: paths::STORE_CA, identity: paths::ENCRYPTION };

/// The store in the cluster's spec, as a backup Job uses it; None when there is none.
///
/// # Errors
/// [`InvalidSpec`] with every field that is wrong.
pub fn find_store(cluster: &PostgresCluster, namespace: &str) -> Result<Option<ValidatedStore>, InvalidSpec> {
    let Some(backup) = &cluster.spec.backup else { return Ok(None) };
    let mut problems = Problems::default();
    let store = validate_own_store(backup, namespace, &mut problems);
    if problems.0.is_empty() { Ok(Some(store)) } else { Err(InvalidSpec { problems: problems.0, watchable: None }) }
}

/// Where the cluster's own backups and WAL go, and how they are encrypted.
pub(super) fn validate_own_store(backup: &BackupConfig, namespace: &str, problems: &mut Problems) -> ValidatedStore {
    let mut store = validate_store(&backup.object_store, namespace, &format!("{FIELD}.objectStore"), OWN, problems);
    if let Some(encryption) = &backup.encryption {
        let field = format!("{FIELD}.encryption");
        rules::check_recipients(&encryption.recipients, &format!("{field}.recipients"), problems);
        add_identity(&mut store, &encryption.identity_secret_ref, &field, OWN, problems);
        if let Some(config) = &mut store.config.encryption {
            config.recipients.clone_from(&encryption.recipients);
        }
    }
    if let Some(BackupCompression { min_level, max_level }) = backup.compression
        && let Err(error) = LevelBounds::of(min_level, max_level)
    {
        problems.add(format!("{FIELD}.compression"), error.to_string());
    }
    if let Some(rate) = &backup.max_rate {
        problems.keep(&format!("{FIELD}.maxRate"), parse_rate(rate));
    }
    store
}

/// Has pods open what is encrypted there.
pub(super) fn add_identity(
    store: &mut ValidatedStore,
    secret: &LocalReference,
    field: &str,
    folders: Folders,
    problems: &mut Problems,
) {
    if secret.name.is_empty() {
        let message = format!("must name a Secret with the key {}", paths::AGE_IDENTITY);
        problems.add(format!("{field}.identitySecretRef.name"), message);
    }
    store.identity_secret = Some(secret.name.clone());
    let identity_file = Some(format!("{}/{}", folders.identity, paths::AGE_IDENTITY));
    store.config.encryption = Some(EncryptionConfig { recipients: Vec::new(), identity_file });
}

/// The store as pods use it: with the folders of its Secrets.
pub(super) fn validate_store(
    store: &ObjectStore,
    namespace: &str,
    field: &str,
    folders: Folders,
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
            credentials_dir: folders.credentials.to_owned(),
            ca_file: ca_secret.is_some().then(|| format!("{}/ca.crt", folders.ca)),
            encryption: None,
        },
        credentials_secret: store.credentials_secret_ref.name.clone(),
        ca_secret,
        identity_secret: None,
    }
}

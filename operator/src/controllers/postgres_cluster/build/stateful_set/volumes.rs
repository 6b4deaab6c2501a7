//! Volumes and mounts of an instance, after `pgherd_core::instance::paths`.

use k8s_openapi::{
    api::core::v1::{
        ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath, PersistentVolumeClaim, PersistentVolumeClaimSpec,
        SecretVolumeSource, Volume, VolumeMount, VolumeResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;
use pgherd_core::instance::paths;
use pgherd_crds::names;

use crate::controllers::postgres_cluster::{
    build::labels,
    validate::{ValidatedCluster, ValidatedStore},
};

/// The claim template; claims are named `data-<pod>`.
pub const DATA: &str = "data";
/// The emptyDir with the agent's binary.
pub const RUN: &str = "run";
const TMP: &str = "tmp";
const SOCKET: &str = "socket";
const SHM: &str = "shm";
const CONFIG: &str = "config";
const TLS: &str = "tls";
const APP: &str = "app";

/// PostgreSQL accepts a private key of root that its group may read, and nothing wider.
const KEY_MODE: i32 = 0o640;
const SECRET_MODE: i32 = 0o440;

/// A Secret of a store: volume, mount folder, the Secret, and its one key that is wanted (None for all).
type StoreSecret<'a> = (&'static str, &'static str, &'a str, Option<&'static str>);

/// The Secrets of the stores: archive and recovery.
fn store_secrets(cluster: &ValidatedCluster) -> Vec<StoreSecret<'_>> {
    let archive = ["object-store", "object-store-ca", "encryption"];
    let archive_paths = [paths::STORE, paths::STORE_CA, paths::ENCRYPTION];
    let recovery = ["recovery-store", "recovery-store-ca", "recovery-encryption"];
    let recovery_paths = [paths::RECOVERY_STORE, paths::RECOVERY_STORE_CA, paths::RECOVERY_ENCRYPTION];
    let mut secrets = Vec::new();
    for (names, folders, store) in
        [(archive, archive_paths, &cluster.store), (recovery, recovery_paths, &cluster.recovery_store)]
    {
        let Some(ValidatedStore { credentials_secret, ca_secret, identity_secret, config: _ }) = store else {
            continue;
        };
        let ([name, ca_name, identity_name], [path, ca_path, identity_path]) = (names, folders);
        secrets.push((name, path, credentials_secret.as_str(), None));
        secrets.extend(ca_secret.as_deref().map(|secret| (ca_name, ca_path, secret, None)));
        let key = Some(paths::AGE_IDENTITY);
        secrets.extend(identity_secret.as_deref().map(|secret| (identity_name, identity_path, secret, key)));
    }
    secrets
}

/// Every volume but the claim.
#[must_use]
pub fn build_volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    let mut volumes = vec![
        empty(RUN, None),
        empty(TMP, None),
        empty(SOCKET, None),
        empty(SHM, Some("Memory")),
        Volume {
            name: CONFIG.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config_map(&cluster.name),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret(TLS, &names::tls_secret(&cluster.name), KEY_MODE, false),
        secret(APP, &names::app_secret(&cluster.name), SECRET_MODE, false),
    ];
    for (name, _, store_secret, key) in store_secrets(cluster) {
        // Optional: a missing Secret must show in the status, not hold back a pod without a word.
        let mut volume = secret(name, store_secret, SECRET_MODE, true);
        if let (Some(source), Some(key)) = (&mut volume.secret, key) {
            source.items = Some(vec![KeyToPath { key: key.to_owned(), path: key.to_owned(), mode: None }]);
        }
        volumes.push(volume);
    }
    volumes
}

/// Mounts of the PostgreSQL container.
#[must_use]
pub fn build_mounts(cluster: &ValidatedCluster) -> Vec<VolumeMount> {
    let config_dir = paths::CONFIG.rsplit_once('/').map_or(paths::CONFIG, |(dir, _)| dir);
    let passwd = VolumeMount { sub_path: Some("passwd".to_owned()), ..read_only(RUN, "/etc/passwd") };
    let mut mounts = vec![
        mount(DATA, paths::VOLUME),
        mount(RUN, paths::RUN),
        passwd,
        mount(TMP, "/tmp"),
        mount(SOCKET, paths::POSTGRES_SOCKET),
        mount(SHM, "/dev/shm"),
        read_only(CONFIG, config_dir),
        read_only(TLS, paths::TLS),
        read_only(APP, paths::APP),
    ];
    mounts.extend(store_secrets(cluster).into_iter().map(|(name, path, _, _)| read_only(name, path)));
    mounts
}

/// The claim of each instance. `live_size` is the size in the live StatefulSet: its template can't be changed, the claims
/// themselves are grown.
#[must_use]
pub fn build_claim_template(cluster: &ValidatedCluster, live_size: Option<&Quantity>) -> PersistentVolumeClaim {
    let size = live_size.cloned().unwrap_or_else(|| Quantity(cluster.storage.size.clone()));
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA.to_owned()),
            labels: Some(labels(&cluster.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage.class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// A mount that can be written.
#[must_use]
pub fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(volume, path) }
}

fn empty(name: &str, medium: Option<&str>) -> Volume {
    let source = EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

fn secret(volume: &str, name: &str, mode: i32, optional: bool) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            default_mode: Some(mode),
            optional: optional.then_some(true),
            items: None,
        }),
        ..Volume::default()
    }
}

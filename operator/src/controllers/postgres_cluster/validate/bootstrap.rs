//! Where the first data directory comes from. Resolved once: what the instances were told stays, even if the Backup object
//! is deleted later.

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation, StoreConfig},
    instance::{Bootstrap, RecoveryTarget, paths},
    lsn::Lsn,
};
use pgherd_crds::{
    PostgresCluster,
    v1alpha1::{
        postgres_cluster::{Recovery, RecoverySource, Target},
        shared::ObjectStore,
    },
};

use super::{
    Problems, References, ValidatedStore,
    store::{Folders, add_identity, validate_store},
};

const FIELD: &str = "spec.bootstrap.recovery";
const FOLDERS: Folders =
    Folders { credentials: paths::RECOVERY_STORE, ca: paths::RECOVERY_STORE_CA, identity: paths::RECOVERY_ENCRYPTION };

/// The bootstrap, and the store that pods need for it. None of the latter once there is a database: pods must not depend on
/// the Secrets of another cluster for ever.
pub(super) fn validate_bootstrap(
    cluster: &PostgresCluster,
    namespace: &str,
    references: &References,
    problems: &mut Problems,
) -> (Bootstrap, Option<ValidatedStore>) {
    let recovery = cluster.spec.bootstrap.as_ref().and_then(|bootstrap| bootstrap.recovery.as_ref());
    let Some(recovery) = recovery else { return (Bootstrap::Initdb, None) };
    let bootstrapped = cluster.status.as_ref().is_some_and(|status| status.system_id.is_some());
    if let (true, Some(live)) = (bootstrapped, &references.live_config) {
        return (live.bootstrap.clone(), None);
    }
    let target = validate_target(recovery.target.as_ref(), &format!("{FIELD}.target"), problems);
    let resolved = match (&recovery.from.archive, &recovery.from.object_store) {
        (Some(key), Some(store)) => Some(resolve_archive(key, store, target, namespace, problems)),
        _ => resolve_source(recovery, namespace, references, problems)
            .map(|(from, store)| (Bootstrap::Recovery { from, target }, store)),
    };
    match resolved {
        Some((bootstrap, store)) => (bootstrap, Some(store).filter(|_| !bootstrapped)),
        None => (Bootstrap::Initdb, None),
    }
}

/// Two clusters that archive to one path would meet at the first failover of either: each begins the same next timeline, and
/// what the one has archived of it keeps the other's away. Whether the cluster that wrote the backup still lives can't be known.
pub(super) fn refuse_own_path(
    name: &str,
    own: Option<&ValidatedStore>,
    bootstrap: &Bootstrap,
    problems: &mut Problems,
) {
    let (Some(own), Bootstrap::Recovery { from, .. }) = (own, bootstrap) else { return };
    let place =
        |store: &StoreConfig| (store.endpoint.clone(), store.bucket.clone(), store.prefix.trim_matches('/').to_owned());
    if from.cluster.cluster != name || place(&from.cluster.store) != place(&own.config) {
        return;
    }
    let message = format!(
        "this cluster would archive to where it is recovered from, {name} in s3://{}/{}, and the cluster that wrote there may be alive: give another prefix",
        own.config.bucket, own.config.prefix
    );
    problems.add("spec.backup.objectStore.prefix", message);
}

fn resolve_archive(
    key: &str,
    store: &ObjectStore,
    target: RecoveryTarget,
    namespace: &str,
    problems: &mut Problems,
) -> (Bootstrap, ValidatedStore) {
    let store = validate_store(store, namespace, &format!("{FIELD}.from.objectStore"), FOLDERS, problems);
    (Bootstrap::Import { store: store.config.clone(), key: key.to_owned(), target }, store)
}

fn resolve_source(
    recovery: &Recovery,
    namespace: &str,
    references: &References,
    problems: &mut Problems,
) -> Option<(BackupLocation, ValidatedStore)> {
    let from = &recovery.from;
    match (&from.backup_ref, &from.object_store) {
        (Some(_), None) if from.encryption.is_some() => {
            let message = "goes with objectStore: with backupRef the identity of the Backup's cluster is used";
            problems.add(format!("{FIELD}.from.encryption"), message);
            None
        }
        (Some(reference), None) => resolve_backup(&reference.name, namespace, references, problems),
        (None, Some(store)) => {
            let mut store = validate_store(store, namespace, &format!("{FIELD}.from.objectStore"), FOLDERS, problems);
            if let Some(encryption) = &from.encryption {
                let field = format!("{FIELD}.from.encryption");
                add_identity(&mut store, &encryption.identity_secret_ref, &field, FOLDERS, problems);
            }
            let Some(name) = from.cluster.clone().filter(|name| !name.is_empty()) else {
                let message = "objectStore needs cluster: the name that the cluster had when it was backed up";
                problems.add(format!("{FIELD}.from.cluster"), message);
                return None;
            };
            Some((location(&store, name, from), store))
        }
        _ => {
            problems.add(format!("{FIELD}.from"), "give exactly one of backupRef and objectStore");
            None
        }
    }
}

fn location(store: &ValidatedStore, cluster: String, from: &RecoverySource) -> BackupLocation {
    let system_id = from.system_id.clone().unwrap_or_default();
    BackupLocation {
        cluster: ClusterLocation { store: store.config.clone(), cluster, system_id },
        backup_id: from.backup_id.clone().unwrap_or_default(),
    }
}

fn resolve_backup(
    name: &str,
    namespace: &str,
    references: &References,
    problems: &mut Problems,
) -> Option<(BackupLocation, ValidatedStore)> {
    let field = format!("{FIELD}.from.backupRef");
    let Some(backup) = &references.backup else {
        problems.add(field, format!("there is no Backup {name} in this namespace"));
        return None;
    };
    let status = backup.status.clone().unwrap_or_default();
    let (true, Some(backup_id), Some(system_id)) = (status.restorable == Some(true), status.id, status.system_id)
    else {
        problems.add(
            field,
            format!(
                "the Backup {name} is not restorable (phase {:?}); choose another one, or wait until it is",
                status.phase.unwrap_or_default()
            ),
        );
        return None;
    };
    let source = &backup.spec.cluster_ref.name;
    let store = references.backup_cluster.as_ref().and_then(|cluster| cluster.spec.backup.as_ref());
    let Some(store) = store else {
        problems.add(field, format!("the PostgresCluster {source} of this Backup is gone or has no object store any more; give from.objectStore and from.cluster: {source} instead"));
        return None;
    };
    let encryption = store.encryption.as_ref();
    let mut store = validate_store(&store.object_store, namespace, &field, FOLDERS, problems);
    if let Some(encryption) = encryption {
        add_identity(&mut store, &encryption.identity_secret_ref, &field, FOLDERS, problems);
    }
    let cluster = ClusterLocation { store: store.config.clone(), cluster: source.clone(), system_id };
    Some((BackupLocation { cluster, backup_id }, store))
}

pub(super) fn validate_target(target: Option<&Target>, field: &str, problems: &mut Problems) -> RecoveryTarget {
    let Some(target) = target else { return RecoveryTarget::Latest };
    let immediate = target.immediate.unwrap_or(false);
    match (&target.time, &target.lsn, &target.name, immediate) {
        (Some(time), None, None, false) => {
            problems.keep(&format!("{field}.time"), time.parse::<Timestamp>());
            RecoveryTarget::Time(time.clone())
        }
        (None, Some(lsn), None, false) => {
            let lsn = problems.keep(&format!("{field}.lsn"), lsn.parse::<Lsn>());
            lsn.map_or(RecoveryTarget::Latest, RecoveryTarget::Lsn)
        }
        (None, None, Some(name), false) => RecoveryTarget::Name(name.clone()),
        (None, None, None, true) => RecoveryTarget::Immediate,
        _ => {
            problems.add(field, "give exactly one of time, lsn, name and immediate: true");
            RecoveryTarget::Latest
        }
    }
}

//! The manifests that tests apply, as a user writes them.

use pgherd_e2e::{postgres::major, store};

/// A PostgresCluster with volumes of 1 GiB. `more` is the rest of its spec: lines of YAML, indented by two spaces.
pub(crate) fn cluster(name: &str, instances: u32, more: &str) -> String {
    format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: PostgresCluster\nmetadata: {{name: {name}}}\nspec:\n  {}\n  \
         instances: {instances}\n  storage: {{size: 1Gi}}\n{more}",
        version()
    )
}

/// The line of a spec that says which PostgreSQL it is.
pub(crate) fn version() -> String {
    format!("version: {}", major())
}

/// The part of a spec that makes a commit wait for one replica.
pub(crate) const REQUIRED: &str = "  synchronous: {mode: Required, replicas: 1}\n";

/// The part of a spec that archives and backs up to the tests' store.
pub(crate) fn backup_to_store() -> String {
    format!("  backup:\n{}", store::object_store_yaml(4))
}

/// The part of a spec that recovers from a Backup object.
pub(crate) fn recovery_from_object(backup: &str) -> String {
    format!("  bootstrap:\n    recovery:\n      from: {{backupRef: {{name: {backup}}}}}\n")
}

/// The part of a spec that recovers from the bucket alone: the newest backup of a cluster of that name.
pub(crate) fn recovery_from_bucket(cluster: &str) -> String {
    format!("  bootstrap:\n    recovery:\n      from:\n        cluster: {cluster}\n{}", store::object_store_yaml(8))
}

/// A Backup.
pub(crate) fn backup(name: &str, cluster: &str) -> String {
    format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: {cluster}}}}}\n"
    )
}

/// A BackupSchedule.
pub(crate) fn schedule(name: &str, cluster: &str, cron: &str) -> String {
    format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: BackupSchedule\nmetadata: {{name: {name}}}\nspec:\n  clusterRef: {{name: {cluster}}}\n  \
         schedule: \"{cron}\"\n"
    )
}

/// A Backup whose data goes with it.
pub(crate) fn backup_with_data(name: &str, cluster: &str) -> String {
    format!(
        "apiVersion: pgherd.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: {cluster}}}, \
         deletionPolicy: Delete}}\n"
    )
}

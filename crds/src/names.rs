//! Every label, annotation and derived object name. Object names come from here and from nowhere else.

/// Label and annotation keys.
pub mod keys {
    /// Label: the cluster that an object belongs to.
    pub const CLUSTER: &str = "pgherd.dev/cluster";
    /// Label on pods: `primary` or `replica`, set by the operator alone.
    pub const ROLE: &str = "pgherd.dev/role";
    /// Label on backups and Jobs: the schedule that made them.
    pub const SCHEDULE: &str = "pgherd.dev/schedule";
    /// Label on Jobs and their pods: the backup that they run.
    pub const BACKUP: &str = "pgherd.dev/backup";
    /// Label on the operator's own pods, by which a NetworkPolicy lets them in: `operator`.
    pub const COMPONENT: &str = "pgherd.dev/component";
    /// Annotation on a PostgresCluster: move the primary role to this pod, or to the best one (`any`). Removed when it was
    /// taken up or refused.
    pub const SWITCHOVER: &str = "pgherd.dev/switchover";
    /// Annotation on a PostgresCluster: `POD@TERM`, promote this pod although no quorum can be had. Removed likewise.
    pub const FORCE_PROMOTE: &str = "pgherd.dev/force-promote";
    /// Annotation on a PostgresCluster: build this replica anew. Removed likewise.
    pub const REBUILD: &str = "pgherd.dev/rebuild";
    /// The standard label whose value is `pgherd`.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The standard label whose value is `postgresql`, `pgherd-backup` or the like.
    pub const NAME: &str = "app.kubernetes.io/name";
}

/// Value of [`keys::ROLE`] on the primary.
pub const ROLE_PRIMARY: &str = "primary";
/// Value of [`keys::ROLE`] on a replica.
pub const ROLE_REPLICA: &str = "replica";
/// Value of [`keys::MANAGED_BY`].
pub const MANAGER: &str = "pgherd";

macro_rules! derived {
    ($($(#[$doc:meta])* $name:ident => $suffix:literal;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(cluster: &str) -> String { format!(concat!("{}", $suffix), cluster) })*
    };
}

derived! {
    /// Headless Service that gives every pod a DNS name.
    pods_service => "-pods";
    /// Service of the primary.
    rw_service => "-rw";
    /// Service of the streaming replicas.
    ro_service => "-ro";
    /// Service of all instances that serve.
    r_service => "-r";
    /// ConfigMap with `instance.json`.
    config_map => "-config";
    /// Secret with the application's credentials.
    app_secret => "-app";
    /// Secret with the certificates that pods mount.
    tls_secret => "-tls";
    /// Secret with the cluster's private CA and the operator's client certificate; never mounted.
    ca_secret => "-ca";
    /// ServiceAccount, Role and RoleBinding of the instances.
    instance_account => "-instance";
    /// ServiceAccount, Role and RoleBinding of the backup Jobs.
    backup_account => "-backup";
    /// PodDisruptionBudget over all instances.
    pdb => "-pods";
    /// PodDisruptionBudget of the primary.
    primary_pdb => "-primary";
    /// NetworkPolicy of the instances.
    network_policy => "-pods";
}

/// The pod of an ordinal.
#[must_use]
pub fn pod(cluster: &str, ordinal: u32) -> String {
    format!("{cluster}-{ordinal}")
}

/// The ordinal of a pod of this cluster.
#[must_use]
pub fn ordinal(cluster: &str, pod: &str) -> Option<u32> {
    pod.strip_prefix(cluster)?.strip_prefix('-')?.parse().ok()
}

/// A pod's DNS name, which its certificate carries: `<pod>.<cluster>-pods.<namespace>.svc`.
#[must_use]
pub fn pod_host(cluster: &str, namespace: &str, pod: &str) -> String {
    format!("{pod}.{}.{namespace}.svc", pods_service(cluster))
}

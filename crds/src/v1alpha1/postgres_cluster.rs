//! `PostgresCluster`: one primary and its replicas. Here is what a user asks for; what is said of it is in `status`.

mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::status::{
    ArchiveFailure, DivergentStatus, EffectiveValues, FailoverCandidate, LastBackup, LastFailover, MemberSource,
    MemberStatus, PostgresClusterStatus, RecoveryStatus, RestorableStatus, RestoreStatus, SwitchoverStatus,
    SynchronousStatus,
};
use super::{
    backup::BackupMethod,
    shared::{LocalReference, ObjectStore},
};

/// A PostgreSQL cluster: one primary, its streaming replicas, and where their backups go.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "pgherd.dev",
    version = "v1alpha1",
    kind = "PostgresCluster",
    plural = "postgresclusters",
    shortname = "pgc",
    category = "pgherd",
    namespaced,
    status = "PostgresClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.instances",
        status_replicas_path = ".status.instances",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Instances", type_ = "string", json_path = ".status.readyInstances"),
    printcolumn(name = "Primary", type_ = "string", json_path = ".status.primary"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Last-Backup", type_ = "date", json_path = ".status.lastBackup.completedAt"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Timeline", type_ = "integer", json_path = ".status.timeline", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')")
        .message("metadata.name must be 1 to 40 characters of a-z, 0-9 and '-', beginning with a letter: pods and Services are named after it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.synchronous) || self.synchronous.mode == 'Off' || (has(self.synchronous.replicas) ? self.synchronous.replicas : 1) < self.instances")
    .message("synchronous.replicas must be less than instances: the primary is not one of its own replicas"))]
#[x_kube(validation = Rule::new("!has(self.restore) || has(self.backup)")
    .message("restore needs backup.objectStore, which the cluster is restored from"))]
#[x_kube(validation = Rule::new("has(self.bootstrap) == has(oldSelf.bootstrap)")
    .message("bootstrap cannot be changed: it is read once, when the cluster is made"))]
pub struct PostgresClusterSpec {
    /// PostgreSQL major version; the image is chosen by the operator. Without `version` and `image`: 17, or the version of the backup that the cluster is recovered from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 15, max = 18))]
    pub version: Option<u32>,
    /// PostgreSQL image, instead of the one chosen by `version`: any image with the PostgreSQL server programs.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._/:@-]*$')").message("image must be an image reference without spaces"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,
    /// How many instances run: one primary, the others replicas. With two or more the primary's pod can't be evicted: when
    /// its node is cordoned or drained, the role moves to a replica on another node first; where there is none for ten
    /// minutes, the eviction is let through. A single instance can always be evicted, and is away until its pod runs again.
    #[schemars(range(min = 1, max = 100))]
    pub instances: u32,
    /// The volume of each instance.
    pub storage: Storage,
    /// CPU and memory of each instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// PostgreSQL settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<Postgresql>,
    /// Whether a commit waits for replicas. Without it: `Off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronous: Option<Synchronous>,
    /// When a failover happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
    /// Where backups and WAL go. Without it nothing is archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupConfig>,
    /// Which copy a new replica is built from. Without it: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_source: Option<ReplicaSource>,
    /// Where the data of a new cluster comes from; cannot be changed later. Without it: an empty database.
    #[x_kube(validation = Rule::new("self == oldSelf").message("bootstrap cannot be changed: it is read once, when the cluster is made"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapSpec>,
    /// Restore this running cluster in place, from its own backups: everything after the target is left. Carried out once
    /// for each new id; one that stands here when the cluster is made is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreSpec>,
    /// Node labels that instances need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that instances tolerate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Scheduling rules instead of the default, which spreads instances over nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Spreading over zones or nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class of the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_secrets: Option<Vec<LocalReference>>,
    /// True: the operator leaves the cluster as it is and decides no failover; the instances go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// The volume of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("storageClassName cannot be changed: a volume keeps its class"))]
pub struct Storage {
    /// Size of the volume, such as 10Gi. It can grow, not shrink.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message("size must be a positive quantity such as 10Gi"))]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("size cannot shrink: PostgreSQL volumes only grow; make a new cluster from a backup instead"))]
    #[schemars(length(min = 1, max = 32))]
    pub size: String,
    /// Storage class; without it the default class of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// PostgreSQL settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Postgresql {
    /// Parameters of postgresql.conf. Those that pgherd must own (archiving, TLS, replication, durability) are refused.
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$'))").message("a parameter name has lower-case letters, digits and underscores, with at most one dot"))]
    #[x_kube(validation = Rule::new("!self.exists(k, k in ['archive_mode','archive_command','archive_library','restore_command','archive_cleanup_command','recovery_end_command','ssl','ssl_cert_file','ssl_key_file','ssl_ca_file','fsync','full_page_writes','wal_level','wal_log_hints','synchronous_standby_names','synchronous_commit','primary_conninfo','primary_slot_name','listen_addresses','port','data_directory','hba_file','ident_file','restart_after_crash','hot_standby','unix_socket_directories','cluster_name','logging_collector','log_directory','wal_sender_timeout','wal_receiver_timeout'])").message("this parameter is set by pgherd: archive_*, restore_command, ssl*, fsync, full_page_writes, wal_level, wal_log_hints, synchronous_*, primary_*, listen_addresses, port, *_file, data_directory and the like cannot be set"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 300))]
    pub parameters: Option<BTreeMap<String, String>>,
    /// Entries of pg_hba.conf after pgherd's own and before its closing lines. Every entry is `hostssl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub pg_hba: Option<Vec<HbaRule>>,
}

/// One `hostssl` entry of pg_hba.conf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HbaRule {
    /// Database name, or `all`.
    #[x_kube(validation = Rule::new("!self.contains('\"') && !self.contains('\\n') && !self.contains('\\r')").message("database must be all, or a name without quotes and line breaks"))]
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Role name, or `all`.
    #[x_kube(validation = Rule::new("!self.contains('\"') && !self.contains('\\n') && !self.contains('\\r')").message("user must be all, or a name without quotes and line breaks"))]
    #[schemars(length(min = 1, max = 63))]
    pub user: String,
    /// CIDR such as 10.0.0.0/8, or `all`.
    #[x_kube(validation = Rule::new("self == 'all' || isCIDR(self)").message("address must be a CIDR such as 10.0.0.0/8, or all"))]
    #[schemars(length(min = 1, max = 60))]
    pub address: String,
    /// How the client proves who it is.
    pub method: HbaMethod,
}

/// Authentication methods that are safe over a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HbaMethod {
    /// Password, proven without sending it.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Client certificate signed by the cluster's CA, whose common name is the role.
    #[serde(rename = "cert")]
    Cert,
    /// No access.
    #[serde(rename = "reject")]
    Reject,
}

/// Whether a commit waits for replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Synchronous {
    /// `Off`: commits don't wait. `Required`: an acknowledged commit is on `replicas` replicas, else it waits. `Preferred`:
    /// as `Required` while that many replicas stream; when one has been missing for three seconds, commits wait for as many
    /// as there are, down to none.
    pub mode: SynchronousMode,
    /// How many replicas must have a commit on disk. Without it: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub replicas: Option<u32>,
}

/// How strict synchronous replication is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SynchronousMode {
    /// A commit waits for nobody; a failover can lose the last moments, and says how much.
    #[default]
    Off,
    /// A commit waits for the replicas that are there; a failover loses nothing that was acknowledged while `replicas` or
    /// fewer of them were, and as in `Off` what was acknowledged while none was.
    Preferred,
    /// A commit waits for its replicas; a failover loses nothing that was acknowledged.
    Required,
}

/// When a failover happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// Wait this long, after the primary is known to be gone, before another is promoted. Without it: 0s.
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(ms|s|m|h)$')").message("delay must be a duration such as 30s"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// In mode `Off`: promote no replica that is further behind than this many bytes of WAL, such as 16Mi. Without it: no bound.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0").message("maxLag must be a quantity that is not negative, such as 16Mi"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub max_lag: Option<String>,
}

/// Where backups and WAL go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupConfig {
    /// The object store.
    pub object_store: ObjectStore,
    /// Encrypts what is stored before it leaves the pods, by age: backups and WAL. Holds for what is written from now on; what is
    /// there stays as it is. Without it: nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<BackupEncryption>,
    /// How hard backups are compressed. Without it: with level 1, and up to level 6 while the store takes less than the instance
    /// sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<BackupCompression>,
    /// A backup reads at most so many bytes a second from its instance, such as 100Mi; from 32Ki to 1Gi, as PostgreSQL has it. Without
    /// it: no limit.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('32Ki')) >= 0 && quantity(self).compareTo(quantity('1Gi')) <= 0").message("maxRate must be a quantity from 32Ki to 1Gi, such as 100Mi: bytes per second"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub max_rate: Option<String>,
    /// How data directories are read for backups; a Backup can say otherwise. Without it: `Stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<BackupMethod>,
}

/// Levels of zstd. Each piece of a backup gets its own: a faster one while there is too little processor time to compress what the
/// instance sends, a higher one while the store is what is slow, level 1 (or the bound next to it) while neither is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.minLevel) || !has(self.maxLevel) || self.minLevel <= self.maxLevel").message("minLevel must not be above maxLevel"))]
#[x_kube(validation = Rule::new("(!has(self.minLevel) || self.minLevel != 0) && (!has(self.maxLevel) || self.maxLevel != 0)").message("there is no level 0: say 3, which zstd means by it"))]
pub struct BackupCompression {
    /// The lowest level, down to -50; below 1 backups get larger and take less processor time. Without it: 1, or `maxLevel` where that
    /// is lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -50, max = 19))]
    pub min_level: Option<i32>,
    /// The highest level, up to 19. Above 6 a backup takes more memory than 64 MiB. Without it: 6, or `minLevel` where that is higher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -50, max = 19))]
    pub max_level: Option<i32>,
}

/// Encryption before anything reaches the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupEncryption {
    /// Public keys as `age-keygen` prints them: each of them can open what is stored, for example the cluster's and one that is
    /// kept offline. A change holds for what is written from then on.
    #[x_kube(validation = Rule::new("self.all(r, r.matches('^age1[02-9ac-hj-np-z]{58}$'))").message("a recipient must be a public key of age-keygen: age1 and 58 characters"))]
    #[schemars(length(min = 1, max = 8), inner(length(max = 62)))]
    pub recipients: Vec<String>,
    /// Secret with the key `identity`: one or more lines `AGE-SECRET-KEY-1…`. The instances need it to make replicas, to fetch WAL
    /// and to recover; what was encrypted for an earlier recipient needs the earlier line as well.
    pub identity_secret_ref: LocalReference,
}

/// What opens the encrypted backup of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryEncryption {
    /// Secret with the key `identity`: one or more lines `AGE-SECRET-KEY-1…`.
    pub identity_secret_ref: LocalReference,
}

/// Which copy a new replica is built from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReplicaSource {
    /// The newest backup where it is usable and cheaper, else an instance.
    #[default]
    Auto,
    /// The newest backup where it is usable.
    Backup,
    /// An instance.
    Instance,
}

/// Where the data of a new cluster comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapSpec {
    /// Restore a backup and recover to a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
}

/// Restore a backup and recover to a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// The backup.
    pub from: RecoverySource,
    /// Where to stop. Without it: at the end of the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// Restore a running cluster in place. The primary serves until it is clear that the restore can be done; then it stops, its data
/// directory is moved aside, and the replicas follow what was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.id != oldSelf.id || self == oldSelf").message("a restore is carried out once: give a new id together with what it is to do"))]
pub struct RestoreSpec {
    /// Tells this restore from every other one, for example today's date.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')").message("id must have letters, digits, '.', '_' and '-', and begin and end with a letter or digit"))]
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// The backup's id, as status.id of a Backup shows it. Without it: the newest from before the target. With target.name it has to
    /// be one from before that restore point.
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z-]{1,80}$')").message("backupId must be an id as status.id of a Backup shows it"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// Where to stop. Without it: at the end of the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The timeline whose history is followed. Without it: the present one. An earlier one undoes a restore: what came after its
    /// target is in the archive still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub timeline: Option<u32>,
}

/// A backup, by its object or by its place in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.objectStore)").message("give exactly one of backupRef and objectStore"))]
#[x_kube(validation = Rule::new("has(self.objectStore) == (has(self.cluster) || has(self.archive))").message("objectStore needs cluster, the name that the cluster had when it was backed up, or archive, the key of a tar archive of pg_basebackup"))]
#[x_kube(validation = Rule::new("!has(self.archive) || !(has(self.cluster) || has(self.systemId) || has(self.backupId) || has(self.encryption))").message("archive stands alone: cluster, systemId, backupId and encryption belong to backups that pgherd made"))]
#[x_kube(validation = Rule::new("!has(self.encryption) || has(self.objectStore)").message("encryption goes with objectStore: with backupRef the identity of the Backup's cluster is used"))]
pub struct RecoverySource {
    /// A Backup in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalReference>,
    /// A store, where no Backup object is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// What opens it, where it is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<RecoveryEncryption>,
    /// The name of the cluster in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster: Option<String>,
    /// The whole key of a tar archive that `pg_basebackup --format=tar --wal-method=fetch` wrote, plain or compressed by gzip
    /// or zstd, to be imported. Its superuser must be called postgres.
    #[x_kube(validation = Rule::new("!self.startsWith('/')").message("archive is the key of an object, without the bucket and without a slash at its start"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub archive: Option<String>,
    /// The database system identifier, needed if clusters of the same name share the store.
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,20}$')").message("systemId must be a decimal number"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// The backup's id. Without it: the newest from before the target. With target.name it has to be one from before that restore
    /// point.
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z-]{1,80}$')").message("backupId must be an id as status.id of a Backup shows it"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
}

/// Where recovery stops; one field at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.time), has(self.lsn), has(self.name), has(self.immediate)].filter(x, x).size() == 1").message("give exactly one of time, lsn, name and immediate"))]
pub struct Target {
    /// The last commit at or before this time, RFC 3339 with a zone.
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$')").message("time must be RFC 3339 with a zone, such as 2026-11-22T02:00:00Z"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// A WAL position such as 0/3000060.
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$')").message("lsn must look like 16/B374D848"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// A restore point made by pg_create_restore_point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// True: stop as soon as the backup is consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immediate: Option<bool>,
}

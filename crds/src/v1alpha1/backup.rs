//! `Backup`: one run, made by a schedule or by hand.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    backup_schedule::BackupTarget,
    shared::{Condition, LocalReference},
    verification::BackupVerification,
};

/// One base backup of a cluster, streamed to its object store.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "pgherd.dev",
    version = "v1alpha1",
    kind = "Backup",
    plural = "backups",
    shortname = "pgb",
    category = "pgherd",
    namespaced,
    status = "BackupStatus",
    derive = "PartialEq",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.rate"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Restorable", type_ = "boolean", json_path = ".status.restorable"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".status.kind", priority = 1),
    printcolumn(name = "Verified", type_ = "date", json_path = ".status.verifiedAt", priority = 1),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must have at most 63 characters: the Job is named after it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.clusterRef == oldSelf.clusterRef && has(self.target) == has(oldSelf.target) && (!has(self.target) || self.target == oldSelf.target) && has(self.incremental) == has(oldSelf.incremental) && (!has(self.incremental) || self.incremental == oldSelf.incremental) && has(self.method) == has(oldSelf.method) && (!has(self.method) || self.method == oldSelf.method)")
    .message("the spec of a Backup cannot be changed: make another Backup; only deletionPolicy can"))]
pub struct BackupSpec {
    /// The cluster, in this namespace.
    pub cluster_ref: LocalReference,
    /// Which instance is read. Without it: `PreferReplica`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<BackupTarget>,
    /// Only what changed since the newest backup of the cluster, where that is possible (PostgreSQL 17 and later, with its parameter summarize_wal on); else a full
    /// backup, and `status.fullReason` says why. Without it: a full backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// How the data directory is read. Without it: as `spec.backup.method` of the cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<BackupMethod>,
    /// What becomes of the data in the store when this object is deleted. Without it: `Retain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// How a data directory is read for a backup: sent by the server (`Stream`), or read from its files by the agent beside it (`Local`), in the
/// instance's own container. A Backup without it does as its cluster says, a cluster without it streams. What is stored is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupMethod {
    /// The server sends it to the backup's Job, by the replication protocol.
    #[default]
    Stream,
    /// The agent beside the server reads the files, compresses them and sends them to the store, in the instance's own container and
    /// within its limits: 64 MiB of memory, and less processor time in all, as nothing passes a socket. Where that does not come to a good
    /// end, the next attempt streams. An incremental backup is always streamed.
    Local,
}

/// That incremental backups are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incremental {
    /// A full backup is made once the chain has this many, the full one counted. Without it: 7. A restore needs all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 100))]
    pub max_chain: Option<u32>,
}

/// Whether a backup holds everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupKind {
    /// It is restored alone.
    Full,
    /// It holds what changed since its parent, and is restored with it.
    Incremental,
}

/// What becomes of a backup's data when its object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It goes first, and the object after it. Both wait while the backup is being read, is the newest restorable one, or is
    /// needed by an incremental one.
    Delete,
}

/// Where a backup stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupPhase {
    /// Waits for the cluster or for its Job.
    #[default]
    Pending,
    /// Data streams to the store.
    Running,
    /// In the store, checked against its manifest.
    Completed,
    /// Given up; `error` says why. Nothing of it is visible in the store.
    Failed,
}

/// Levels of zstd that a backup was compressed with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CompressionStatus {
    /// The lowest.
    pub lowest_level: i32,
    /// The highest.
    pub highest_level: i32,
    /// The mean over all data, such as 1.25.
    pub mean_level: String,
}

/// What a backup did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<BackupPhase>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The pod that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// Bytes of the data directory that were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<i64>,
    /// The server's estimate of all bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// Compressed bytes in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<i64>,
    /// How the data directory was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<BackupMethod>,
    /// Levels of zstd that it was compressed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionStatus>,
    /// Peak resident memory of the Job's process in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<i64>,
    /// For people: percent done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// For people: bytes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// For people: bytes read a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// For people: time taken so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// For people: time left, an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<String>,
    /// The backup's id in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `s3://bucket/key/` of its objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The database system identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// PostgreSQL's `server_version_num`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<u32>,
    /// What kind it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<BackupKind>,
    /// Id of the backup that an incremental one holds the changes since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How many backups a restore of this one needs, itself counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_length: Option<u32>,
    /// Why it is a full one although an incremental one was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_reason: Option<String>,
    /// WAL is needed from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<String>,
    /// Consistent from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_lsn: Option<String>,
    /// The timeline it was taken on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Every object is in the store and was checked against the manifest as it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restorable: Option<bool>,
    /// Besides, the archive has every WAL segment up to the backup's end, so that recovery can go on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitr_ready: Option<bool>,
    /// When it was last restored and found good, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub verified_at: Option<String>,
    /// How it was verified then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<BackupVerification>,
}

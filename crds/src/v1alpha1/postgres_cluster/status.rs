//! What the status of a `PostgresCluster` says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ReplicaSource, SynchronousMode};
use crate::v1alpha1::shared::Condition;

/// What is, as far as the operator knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; `kubectl wait --for=condition=Ready` uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Instances that exist.
    #[serde(default)]
    pub instances: u32,
    /// Ready and wanted, such as `3/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_instances: Option<String>,
    /// Label selector of the instances, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The pod of the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// The term: how often a primary was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// The timeline that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// The database system identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// PostgreSQL's version as the server says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where clients connect for writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The values in effect where the spec says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<EffectiveValues>,
    /// What commits wait for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronous: Option<SynchronousStatus>,
    /// The last planned change of the primary that was asked for, or became necessary, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover: Option<SwitchoverStatus>,
    /// What `spec.bootstrap.recovery` came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryStatus>,
    /// The last restore in place that was asked for, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreStatus>,
    /// One entry an instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// The last failover, and how it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<LastFailover>,
    /// The newest restorable backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<LastBackup>,
    /// What can be restored from the object store; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<RestorableStatus>,
}

/// A recovery that a cluster began with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryStatus {
    /// The backup's id, or the key of the archive that was imported.
    pub from: String,
    /// The timeline that began with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// The position that was reached, such as 0/3000060.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// The commit time of the last transaction that was replayed, as PostgreSQL says it; absent where it replayed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<String>,
    /// When the cluster served, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub completed_at: Option<String>,
}

/// A restore in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// `spec.restore.id`.
    pub id: String,
    /// `Checking` (the cluster serves), `Refused` (it can't be done; the cluster serves), `Stopping`, `Restoring`, `Completed`, or
    /// `Ignored` (the id is from before the cluster was made).
    pub phase: String,
    /// What is waited for, or why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The backup that is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// The pod that restores, and is the primary then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// When the primary was asked to stop, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// When the restored primary served, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub completed_at: Option<String>,
    /// The timeline that began with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// The position that recovery reached, such as 0/3000060.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// The commit time of the last transaction that was replayed, as PostgreSQL says it; absent where it replayed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<String>,
    /// The Backup that was made of the restored cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
}

/// What can be restored from the object store: any time from `earliest` to `latest`, but not through a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestorableStatus {
    /// The end of the oldest backup, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub earliest_time: Option<String>,
    /// The same as a position, such as 0/3000060.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_lsn: Option<String>,
    /// The id of that backup in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_backup: Option<String>,
    /// How many backups the store has of this history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<u32>,
    /// When WAL last reached the archive, RFC 3339; at least: it is not written oftener than every ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub latest_time: Option<String>,
    /// Up to where the archive reaches, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_lsn: Option<String>,
    /// WAL files that are missing in between; of many, the first ones. No recovery passes one from before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_count: Option<u32>,
    /// WAL that the archive has yet to get, in bytes, roughly; absent below 256 MiB. The metric has it exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_lag_bytes: Option<i64>,
    /// The last error of archiving, also when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archive_failure: Option<ArchiveFailure>,
}

/// An error of archiving.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveFailure {
    /// When it was first seen, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub at: String,
    /// What it says.
    pub message: String,
}

/// The values in effect where the spec says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveValues {
    /// The image that instances run.
    pub image: String,
    /// `Off`, `Preferred` or `Required`.
    pub synchronous_mode: SynchronousMode,
    /// How many replicas a commit waits for, or is to wait for where there are so many; 0 in mode `Off`.
    pub synchronous_replicas: u32,
    /// Which copy a new replica is built from.
    pub replica_source: ReplicaSource,
    /// Prefix of the keys in the object store; absent without a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store_prefix: Option<String>,
}

/// What commits wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SynchronousStatus {
    /// `Off`, `Preferred` or `Required`.
    pub mode: SynchronousMode,
    /// How many replicas are asked for; 0 in mode `Off`.
    pub replicas: u32,
    /// How many replicas an acknowledged commit is on now, at least.
    pub effective: u32,
    /// Commits that were acknowledged although their wait was cancelled, since the primary started; they may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_waits: Option<i64>,
    /// Roles and databases whose own `synchronous_commit` waits for no replica's disk: what they commit may be lost in a failover,
    /// whatever the mode. The first ten; only where commits are to wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<String>,
}

/// A planned change of the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SwitchoverStatus {
    /// `Waiting`, `Running`, `Refused`, `Withdrawn` or `Completed`.
    pub phase: String,
    /// Why: somebody asked, a node is being drained, or the cluster is scaled down.
    pub reason: String,
    /// The pod that is to take over; absent for whoever is best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What is waited for, or why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The pod.
    pub pod: String,
    /// `primary`, `replica` or `unknown`.
    pub role: String,
    /// What it does.
    pub phase: String,
    /// The data directory's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// It takes part in quorums.
    #[serde(default)]
    pub voter: bool,
    /// How its data directory was made, and why so; absent if it has always been there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MemberSource>,
    /// What it waits for or what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It promises not to take part in a failover against the primary of this term, which can't reach the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouches_for_term: Option<u64>,
    /// WAL that it had as an earlier primary and that never became part of the cluster's history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergent: Option<DivergentStatus>,
}

/// WAL of an earlier primary that never became part of the cluster's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DivergentStatus {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where the history parted, such as 0/3000060.
    pub from_lsn: String,
    /// Where the WAL ended.
    pub to_lsn: String,
    /// How much that is, in bytes.
    pub bytes: i64,
    /// The object store's prefix under which it is kept; absent if it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_at: Option<String>,
    /// Why it could not be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a data directory was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberSource {
    /// `backup`, `instance`, `rewind`, `initdb`, `recovery` or `import`.
    pub source: String,
    /// The backup's id or the pod.
    pub from: String,
    /// The decision in one sentence, with its numbers.
    pub reason: String,
    /// WAL replayed after the copy, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_bytes: Option<i64>,
    /// Size of the copy in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes: Option<i64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<i64>,
}

/// The last failover, and how it was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailover {
    /// The old primary's pod.
    pub from: String,
    /// The new primary's pod.
    pub to: String,
    /// Why the old one was given up.
    pub reason: String,
    /// The term that the new primary began.
    pub term: u64,
    /// When it was decided, RFC 3339.
    pub at: String,
    /// Who stood, and what became of each.
    pub candidates: Vec<FailoverCandidate>,
    /// From the first sign to the suspicion, in milliseconds.
    pub detect_ms: i64,
    /// Until enough voters had sealed.
    pub seal_ms: i64,
    /// Until the new primary took writes.
    pub promote_ms: i64,
    /// Until `<cluster>-rw` led to it.
    pub route_ms: i64,
    /// While commits wait for nobody: up to so much WAL of the old primary is not on the new one. Counts to where the old one could
    /// come after its last report, at twice its fastest pace of the last minute, before it was fenced; `divergentBytes` tells
    /// the true figure once it is back. 0 where a quorum proved that nothing is missing. An estimate when the promotion was
    /// forced.
    pub possible_loss_bytes: i64,
    /// True: somebody forced the promotion although too few voters had answered; what those hold may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<bool>,
    /// WAL of the old primary that never became part of the cluster's history, as it reported when it came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergent_bytes: Option<i64>,
}

/// A replica that stood for election.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverCandidate {
    /// The pod.
    pub pod: String,
    /// Its timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// What it had received, such as 0/3000060.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// Why it was chosen or not.
    pub why: String,
}

/// The newest restorable backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastBackup {
    /// The Backup object.
    pub name: String,
    /// When it was complete, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub completed_at: String,
}

//! What an instance says of itself: `GET /v1/status`.

use serde::{Deserialize, Serialize};

use super::{archive::ArchiveStatus, promise::Vouch};
use crate::{
    lsn::Lsn,
    register::{MemberId, Term},
    timeline::{TimelineHistory, TimelineId},
};

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The agent has started and has not read the register yet, or waits to be told what to be.
    Waiting,
    /// initdb runs.
    Initializing,
    /// A backup is being restored, for a new cluster or a new replica.
    Restoring,
    /// A copy is taken from an instance.
    Cloning,
    /// pg_rewind runs.
    Rewinding,
    /// PostgreSQL starts or recovers.
    Starting,
    /// Serving as primary.
    Primary,
    /// Promotion is under way.
    Promoting,
    /// A primary that stops in a moment because its role moves (docs/adr/0015).
    HandingOver,
    /// Following the primary.
    Replica,
    /// Sealed: promised not to follow the old term; waiting for the decision.
    Sealed,
    /// PostgreSQL is stopped on purpose (fenced, released or shutting down).
    Stopped,
    /// Cannot go on by itself; `message` says why.
    Failed,
}

/// The WAL receiver of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receiver {
    /// `pg_stat_wal_receiver.status` is `streaming`.
    pub streaming: bool,
    /// Milliseconds since the last message from the primary, on the replica's clock.
    pub silent_ms: u64,
    /// The pod that it follows.
    pub upstream: String,
}

/// For how long a replica has heard nothing from whom it follows, also across receivers that came and went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamSilence {
    /// The pod that it follows.
    pub upstream: String,
    /// Milliseconds on the replica's clock; counted from when it began to follow where it heard nothing since.
    pub ms: u64,
}

/// A standby as the primary sees it in `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standby {
    /// The member in its `application_name`.
    pub member: MemberId,
    /// The term in it: the one that the member had on disk when it connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// `state`: `streaming` when it keeps up.
    pub state: String,
    /// `flush_lsn`.
    pub flush_lsn: Lsn,
    /// `replay_lsn`.
    pub replay_lsn: Lsn,
}

/// What the primary made of the register's voters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppliedQuorum {
    /// The voters in `synchronous_standby_names` as PostgreSQL runs with it.
    pub voters: Vec<MemberId>,
    /// How many of them a commit waits for.
    pub acks: u32,
    /// W of these voters have flushed everything that was acknowledged before the change took effect.
    pub barrier_passed: bool,
}

/// How a replica's data directory was made, and why so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    /// `backup`, `instance`, `rewind` or `initdb` or `recovery`.
    pub source: String,
    /// The backup's id, or the pod that was copied from.
    pub from: String,
    /// One sentence with the numbers of the decision.
    pub reason: String,
    /// WAL to replay after the copy, in bytes, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_bytes: Option<u64>,
    /// Size of the copy in bytes, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// After a recovery to a target: the commit time of the last transaction that was replayed, as PostgreSQL says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<String>,
}

/// Bytes done of a long-running copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyProgress {
    /// Bytes of the data directory that went through.
    pub bytes_done: u64,
    /// The estimate of all bytes, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// `GET /v1/status` of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// Chosen at this start of the agent.
    pub boot_nonce: String,
    /// The data directory; none while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// What it is doing.
    pub phase: Phase,
    /// For a person: what it waits for or what failed. Empty when there is nothing to say.
    #[serde(default)]
    pub message: String,
    /// The database system identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// PostgreSQL's version as `server_version_num`, 170011 for 17.11.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<u32>,
    /// PostgreSQL answered the last probe.
    pub postgres_up: bool,
    /// Not in recovery: it takes writes.
    pub is_primary: bool,
    /// The highest term that this data directory has followed or led.
    pub term: Term,
    /// The promise: it does not follow a term below this one.
    pub sealed_term: Term,
    /// The timeline and its ancestors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<TimelineHistory>,
    /// Primary: flushed. Replica: the larger of received-and-flushed and replayed.
    #[serde(default)]
    pub received_lsn: Lsn,
    /// Replica: replayed. Primary: the same as `received_lsn`.
    #[serde(default)]
    pub replayed_lsn: Lsn,
    /// The WAL receiver, on a replica that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<Receiver>,
    /// On a replica that follows somebody: for how long it has heard nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<UpstreamSilence>,
    /// The standbys, on the primary.
    #[serde(default)]
    pub standbys: Vec<Standby>,
    /// The synchronous settings, on the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_quorum: Option<AppliedQuorum>,
    /// How the data directory was made by this agent; none if it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceReport>,
    /// Progress of a running restore or clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<CopyProgress>,
    /// The archiver, on the primary.
    #[serde(default)]
    pub archive: ArchiveStatus,
    /// The promise in force not to take part in a failover against the holder; none once it has run out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouch: Option<Vouch>,
    /// On a primary: clients are let in. A restarted or promoted primary waits with that until W voters have what it
    /// had at that moment.
    #[serde(default)]
    pub admits_clients: bool,
    /// On a primary: commits that were acknowledged although their wait for replicas was cancelled, since the server
    /// started.
    #[serde(default)]
    pub cancelled_waits: u64,
    /// Parameters that take effect with the server's next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_restart: Vec<String>,
    /// The user's parameters that PostgreSQL does not take, each with its reason; the server runs with what it took before, or without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_parameters: Vec<String>,
    /// On a primary: databases whose text was sorted by another version of their collation than the image has, with both versions; none
    /// while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_collations: Option<Vec<String>>,
    /// On a primary: roles and databases that have a `synchronous_commit` of their own which waits for no replica's disk; none while
    /// that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weak_commits: Option<Vec<String>>,
    /// What an earlier primary had beyond the history, and where it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergent: Option<DivergentTail>,
}

/// WAL of an earlier primary that never became part of the cluster's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DivergentTail {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// Where the history parted.
    pub from_lsn: Lsn,
    /// Where the old primary's WAL ended.
    pub to_lsn: Lsn,
    /// The object store's prefix under which its segments are kept; none if there is no store or the upload failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_at: Option<String>,
    /// Why it could not be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

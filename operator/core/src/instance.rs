//! What the operator and the agents tell each other: the configuration of an instance and what it reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    backup::{BackupLocation, StoreConfig},
    lsn::Lsn,
    register::{MemberId, Term},
    timeline::{TimelineHistory, TimelineId},
};

/// Port of the agent's HTTPS API (client certificate required).
pub const AGENT_PORT: u16 = 8443;
/// Port of the plain HTTP probes for the kubelet: `/livez`, `/readyz`, `/startupz`.
pub const PROBE_PORT: u16 = 8080;
/// Common name of the operator's client certificate: only it may seal.
pub const OPERATOR_CN: &str = "pgherd-operator";
/// Role and certificate common name for replication, pg_rewind and base backups.
pub const REPLICATION_ROLE: &str = "pgherd_replication";

/// Where things are in an instance's pod. The operator mounts them, the agent uses them.
pub mod paths {
    /// Mount of the volume.
    pub const VOLUME: &str = "/var/lib/pgherd/data";
    /// The data directory on it.
    pub const PGDATA: &str = "/var/lib/pgherd/data/pgdata";
    /// An emptyDir: `bin/pgherd`, `passwd`, the agent's sockets.
    pub const RUN: &str = "/run/pgherd";
    /// PostgreSQL's unix socket directory (an emptyDir), where psql looks by default.
    pub const POSTGRES_SOCKET: &str = "/var/run/postgresql";
    /// The ConfigMap with [`super::InstanceConfig`] as `instance.json`.
    pub const CONFIG: &str = "/etc/pgherd/config/instance.json";
    /// `ca.crt`, `tls.crt`, `tls.key`, `replication.crt`, `replication.key`.
    pub const TLS: &str = "/etc/pgherd/tls";
    /// Secret `<cluster>-app`: `username`, `password`, `dbname`.
    pub const APP: &str = "/etc/pgherd/app";
    /// Object store credentials: `accessKeyId`, `secretAccessKey`, optionally `sessionToken`.
    pub const STORE: &str = "/etc/pgherd/object-store";
    /// CA bundle of the object store: `ca.crt`.
    pub const STORE_CA: &str = "/etc/pgherd/object-store-ca";
    /// The same two for the store that a new cluster is recovered from.
    pub const RECOVERY_STORE: &str = "/etc/pgherd/recovery-store";
    /// CA bundle of the recovery store.
    pub const RECOVERY_STORE_CA: &str = "/etc/pgherd/recovery-store-ca";
    /// Folder of what opens encrypted objects of the store: [`AGE_IDENTITY`].
    pub const ENCRYPTION: &str = "/etc/pgherd/encryption";
    /// The same for the recovery store.
    pub const RECOVERY_ENCRYPTION: &str = "/etc/pgherd/recovery-encryption";
    /// Key of the Secret, and file in the folder: lines `AGE-SECRET-KEY-1…`.
    pub const AGE_IDENTITY: &str = "identity";
}

/// How long the parts of failure detection take, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// The primary renews its Lease this often.
    pub renew_ms: u64,
    /// Without a renewal for this long, counted from before the last good request was sent, the primary is killed.
    pub fence_ms: u64,
    /// A Lease unchanged for this long on the observer's own clock may be taken over. Longer than `fence_ms` + 1 s.
    pub take_over_ms: u64,
    /// In `Required` mode: the agent unreachable and every reachable voter's receiver silent for this long.
    pub silence_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self { renew_ms: 2_000, fence_ms: 8_000, take_over_ms: 12_000, silence_ms: 4_000 }
    }
}

/// Where the first data directory of a cluster comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bootstrap {
    /// An empty cluster by initdb.
    Initdb,
    /// A tar archive of pg_basebackup, recovered with the WAL that it holds and promoted.
    Import {
        /// Where it is.
        store: StoreConfig,
        /// The whole key of the object.
        key: String,
        /// Where recovery stops.
        target: RecoveryTarget,
    },
    /// A restored backup, recovered to a target and promoted.
    Recovery {
        /// The backup and the archive beside it.
        from: BackupLocation,
        /// Where recovery stops.
        target: RecoveryTarget,
    },
}

/// Where recovery stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecoveryTarget {
    /// At the end of the archive.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// The last commit at or before this time (RFC 3339).
    Time(String),
    /// This position.
    Lsn(Lsn),
    /// A restore point by `pg_create_restore_point`.
    Name(String),
}

/// `POST /v1/restore-check`: can the cluster be restored in place like this? Asked again and again until the answer is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreQuestion {
    /// The backup; None for the newest one from before the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// Where recovery stops.
    pub target: RecoveryTarget,
    /// Whose history recovery follows; None for the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestoreAnswer {
    /// It is being looked at.
    Checking,
    /// By this backup along this history: nothing is missing in the store, and there is room.
    Possible {
        /// The backup.
        backup_id: String,
        /// The history.
        timeline: TimelineId,
    },
    /// Why it can't be done, and what would help.
    Refused(String),
}

/// Which copy a new replica is built from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaSourcePolicy {
    /// The backup where it is usable and cheaper, else an instance.
    #[default]
    Auto,
    /// The backup where it is usable, whatever the cost.
    Backup,
    /// Always an instance.
    Instance,
}

/// A line for pg_hba.conf between pgherd's own and the closing `reject`; always `hostssl` with scram-sha-256 or cert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HbaEntry {
    /// Database name or `all`.
    pub database: String,
    /// Role name or `all`.
    pub user: String,
    /// CIDR or `all`.
    pub address: String,
    /// `scram-sha-256`, `cert` or `reject`.
    pub method: String,
}

/// `instance.json`: the same for every instance of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceConfig {
    /// The cluster's name; also the Lease's.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// The number of instances asked for.
    pub instances: u32,
    /// The user's PostgreSQL parameters, already validated.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The user's pg_hba.conf entries, already validated.
    #[serde(default)]
    pub hba: Vec<HbaEntry>,
    /// Where the first data directory comes from.
    pub bootstrap: Bootstrap,
    /// Where backups and WAL go; none means that nothing is archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreConfig>,
    /// Which copy a new replica is built from.
    #[serde(default)]
    pub replica_source: ReplicaSourcePolicy,
    /// Failure detection.
    #[serde(default)]
    pub timings: Timings,
}

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

/// The archiver as the agent of the primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStatus {
    /// Name of the last segment that reached the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived: Option<String>,
    /// Where that segment ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived_lsn: Option<Lsn>,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived_at_ms: Option<i64>,
    /// Why the last attempt failed; none once one has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When an attempt last failed, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed_at_ms: Option<i64>,
    /// On any instance: segments that it wrote as primary, and that the archive has yet to get.
    #[serde(default)]
    pub left_over: u64,
    /// What can be restored from the store, as of the last look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<RestorableWindow>,
    /// Why there is no window, where the store could not be looked through for half an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_error: Option<String>,
}

/// What can be restored from the store: any time from `earliest` to `latest`, but not through a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorableWindow {
    /// Id of the oldest backup.
    pub earliest_backup: String,
    /// When it became consistent, RFC 3339.
    pub earliest_time: String,
    /// The same as a position.
    pub earliest_lsn: Lsn,
    /// The next ones after it, a few: the oldest may have been found not to come back, of which an agent knows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_backups: Vec<EarlyBackup>,
    /// How many backups there are.
    pub backups: u32,
    /// The archive has WAL up to here, gaps aside; none when it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_lsn: Option<Lsn>,
    /// Files that are missing in between; of many, the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
    /// How many there are.
    #[serde(default)]
    pub gap_count: u32,
}

/// A backup at the beginning of a [`RestorableWindow`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyBackup {
    /// Its id.
    pub id: String,
    /// When it became consistent, RFC 3339.
    pub time: String,
    /// The same as a position.
    pub lsn: Lsn,
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

/// `POST /v1/vouch`, from a holder that cannot reach the API server to each other instance: promise not to seal against
/// `term` for `for_ms`. Refused (409) by who has promised a later term or knows of another holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VouchRequest {
    /// The term that the asker leads.
    pub term: Term,
    /// The asker's pod.
    pub pod: String,
    /// Its UID.
    pub pod_uid: String,
    /// How long the promise is to last, in milliseconds from when it is given; never longer than a minute.
    pub for_ms: u64,
}

/// A promise not to take part in a failover against the holder of `term`; the answer to a [`VouchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vouch {
    /// The term whose holder is vouched for.
    pub term: Term,
    /// Who promises; none while it has no data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// How long it still lasts, in milliseconds.
    pub remaining_ms: u64,
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

/// `POST /v1/seal`: promise not to follow any term below `term`, then report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealRequest {
    /// The register's `sealTerm`.
    pub term: Term,
}

/// The answer to a seal, given only once the promise is on disk, the WAL receiver is gone and what was received is
/// replayed. It is what elections are decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealReport {
    /// Who promised.
    pub member: MemberId,
    /// Its pod.
    pub pod: String,
    /// The promised term.
    pub sealed_term: Term,
    /// The highest term that it has followed or led. Raised once its WAL is known to lie on that term's history, and on
    /// disk before any WAL of that term is: of two members whose branches part, an election believes the one that has
    /// followed the higher term. 0 for a fresh copy that has followed nobody yet.
    pub term: Term,
    /// Its timeline and ancestors.
    pub history: TimelineHistory,
    /// Received and flushed.
    pub received_lsn: Lsn,
    /// Replayed.
    pub replayed_lsn: Lsn,
}

/// What `POST /v1/archive-barrier` is asked for besides: the WAL of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WalSpan {
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where its replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
}

/// `POST /v1/archive-barrier` answers with this: the primary wrote a record, switched segments and waited (bounded)
/// until the archive had everything up to `lsn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveBarrier {
    /// The position that the archive must reach.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// The archive has it.
    pub archived: bool,
    /// What the archive lacks of the span that was asked for, if it could be looked at; an agent of before does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<String>>,
}

/// The body of every error answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// What failed and why.
    pub error: String,
}

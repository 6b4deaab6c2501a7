//! `instance.json`: what the operator tells every instance of a cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    backup::{BackupLocation, StoreConfig},
    lsn::Lsn,
};

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

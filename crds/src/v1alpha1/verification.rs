//! Verification of backups: what a schedule asks for, and what its status and a Backup's say of it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Restores the newest restorable backup of the cluster into scratch space, checks every file, starts PostgreSQL on it
/// without a network, replays the archive's WAL until it is consistent, and runs pg_amcheck and the statements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verify {
    /// How often, such as 12h, 7d or 2w.
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[hdw]$')").message("every must be a whole number with h, d or w, such as 12h, 7d or 2w"))]
    #[schemars(length(max = 6))]
    pub every: String,
    /// Statements that must each return a single true, such as `select count(*) > 0 from orders`. They run as a role that
    /// reads all data and may do nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 2000)))]
    pub sql: Option<Vec<String>>,
    /// The database in which they run. Without it: `app` if there is one, else `postgres`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub database: Option<String>,
    /// Where the backup is restored to. Without it: `Volume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
}

/// Where a backup is restored to for its verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scratch {
    /// A volume of the size and class of the cluster's own, which goes with the Job's pod.
    #[default]
    Volume,
    /// The node's own disk.
    EmptyDir,
}

/// What the last verification of a schedule came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// The Backup that was verified last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// When that ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_run_time: Option<String>,
    /// When a backup was last found good, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_success_time: Option<String>,
    /// When the next one is due, if there is a backup, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub next_run_time: Option<String>,
    /// What it came to, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The Job of the last run that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Runs in a row that said nothing of a backup, because they could not be carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
}

/// How a backup was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupVerification {
    /// For people: how long it took.
    pub duration: String,
    /// Files that were checked against the manifest.
    pub files: i64,
    /// The position up to which WAL was replayed.
    pub replayed_lsn: String,
    /// What pg_amcheck said: `Passed`, or why it did not run.
    pub amcheck: String,
    /// How many statements held.
    pub statements: i64,
}

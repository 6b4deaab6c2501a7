//! `BackupSchedule`: makes a Backup at the times of a cron expression.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    backup::{BackupMethod, Incremental},
    shared::{Condition, LocalReference},
    verification::{VerificationStatus, Verify},
};

/// Makes a Backup of a cluster at the times of a cron expression, and keeps as many as it is told.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "pgherd.dev",
    version = "v1alpha1",
    kind = "BackupSchedule",
    plural = "backupschedules",
    shortname = "pgbs",
    category = "pgherd",
    namespaced,
    status = "BackupScheduleStatus",
    derive = "PartialEq",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters: backups are named after it")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupScheduleSpec {
    /// The cluster, in this namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clusterRef cannot be changed: make another schedule"))]
    pub cluster_ref: LocalReference,
    /// Five fields: minute, hour, day of month, month, day of week. Seconds are not accepted.
    #[x_kube(validation = Rule::new("self.matches('^[^ ]+( [^ ]+){4}$')").message("schedule must have exactly 5 fields separated by single spaces: minute hour day month weekday"))]
    #[schemars(length(min = 9, max = 200))]
    pub schedule: String,
    /// IANA time zone, such as Europe/Berlin. Without it: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// True: no new backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Which instance is read. Without it: `PreferReplica`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<BackupTarget>,
    /// Only what changed since the newest backup of the cluster, where that is possible (PostgreSQL 17 and later, with its parameter summarize_wal on). Without it:
    /// full backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// How the data directory is read. Without it: as `spec.backup.method` of the cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<BackupMethod>,
    /// A run that could not start within this many seconds is left out. Without it: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub starting_deadline_seconds: Option<i64>,
    /// How much is kept in the store. Without it nothing is ever deleted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Restores the newest backup from time to time and looks whether it is good. Without it: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// How many finished Backup objects of this schedule are kept. Their data in the store stays. Without it: 10, and with `retention` as many as have data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub successful_backups_history_limit: Option<u32>,
    /// How many failed Backup objects of this schedule are kept. Without it: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub failed_backups_history_limit: Option<u32>,
}

/// How much is kept in the store. A backup stays if one of the two keeps it. The newest restorable backup always stays,
/// and so do those that were made by hand or by another schedule, those that are being read, and what an incremental one that
/// stays is restored from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.keepLast) || has(self.keepFor)").message("retention needs keepLast or keepFor: to keep everything leave retention out"))]
pub struct Retention {
    /// Keep this many restorable backups, the newest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep_last: Option<u32>,
    /// Keep what is needed to restore to any time in this window, such as 12h, 30d or 4w.
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,5}[hdw]$')").message("keepFor must be a whole number with h, d or w, such as 12h, 30d or 4w"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7))]
    pub keep_for: Option<String>,
}

/// What retention did, and will do next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// Backups in the store after the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u32>,
    /// Ids of the backups that the last run deleted; of many, the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<String>,
    /// WAL files that the last run deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_wal: Option<i64>,
    /// Bytes in the store that the last run freed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_freed: Option<i64>,
    /// When the last run ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_run_time: Option<String>,
    /// Ids of the backups that go next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
    /// When those go, RFC 3339; absent: when the next backup is restorable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub next_time: Option<String>,
    /// When it runs again although no backup was made meanwhile, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub next_run_time: Option<String>,
    /// What the last run came to, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The Job of the last run that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The settings and the newest backup that the last good run was for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_for: Option<String>,
    /// Runs that failed in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
}

/// Which instance a backup is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupTarget {
    /// A streaming replica if there is one, else the primary.
    #[default]
    PreferReplica,
    /// The primary.
    Primary,
}

/// What the schedule did and will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupScheduleStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The time of the last run that was started, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_schedule_time: Option<String>,
    /// The time of the next run, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<String>,
    /// The last Backup that became restorable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_backup: Option<String>,
    /// What retention did; absent without `spec.retention`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,
    /// What the last verification came to; absent without `spec.verify`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
}

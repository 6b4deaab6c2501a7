//! The Backup of one run. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;
use pgherd_crds::{
    Backup, BackupSchedule, BackupSpec,
    names::{self, keys},
};

/// Annotation with the time that a run was scheduled for, RFC 3339.
pub const SCHEDULED_AT: &str = "pgherd.dev/scheduled-at";

/// `<schedule>-<minutes since 1970>` of the scheduled time, as a CronJob names its Jobs: made once, whoever makes it.
#[must_use]
pub fn render_backup_name(schedule: &str, scheduled: Timestamp) -> String {
    format!("{schedule}-{}", scheduled.as_second().div_euclid(60))
}

/// The Backup of the run at `scheduled`. It has no owner: a backup outlives its schedule.
#[must_use]
pub fn build_backup(schedule: &BackupSchedule, namespace: &str, scheduled: Timestamp) -> Backup {
    let name = schedule.name_any();
    let spec = BackupSpec {
        cluster_ref: schedule.spec.cluster_ref.clone(),
        target: schedule.spec.target,
        incremental: schedule.spec.incremental.clone(),
        method: schedule.spec.method,
        deletion_policy: None,
    };
    let mut backup = Backup::new(&render_backup_name(&name, scheduled), spec);
    backup.metadata.namespace = Some(namespace.to_owned());
    backup.metadata.labels = Some(BTreeMap::from([
        (keys::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (keys::CLUSTER.to_owned(), schedule.spec.cluster_ref.name.clone()),
        (keys::SCHEDULE.to_owned(), name),
    ]));
    backup.metadata.annotations = Some(BTreeMap::from([(SCHEDULED_AT.to_owned(), scheduled.to_string())]));
    backup
}

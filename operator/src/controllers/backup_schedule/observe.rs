//! What a round of a BackupSchedule sees, from the reflector stores alone. They may lag: a run is named after its time, so
//! that it can't be made twice, and Backups of one cluster wait for each other in any case.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use pgherd_core::schedule::Schedule;
use pgherd_crds::{Backup, BackupSchedule, names::keys, v1alpha1::backup::BackupPhase};

use super::decide::{KnownBackup, KnownState, ScheduleFacts};
use crate::{context::Context, controllers::backup::observe::find_completed_at, kubernetes::store};

/// Completed Backups that are kept where the spec says nothing.
const KEEP_COMPLETED: u32 = 10;
/// Failed Backups that are kept where the spec says nothing.
const KEEP_FAILED: u32 = 3;

/// Reads everything.
#[must_use]
pub fn observe(context: &Context, schedule: &BackupSchedule, namespace: &str) -> ScheduleFacts {
    let (name, spec) = (schedule.name_any(), &schedule.spec);
    let cluster = &spec.cluster_ref.name;
    let limit = |limit: Option<u32>, otherwise: u32| usize::try_from(limit.unwrap_or(otherwise)).unwrap_or(usize::MAX);
    let backups = store::list_backups(&context.stores.backups, namespace, cluster);
    ScheduleFacts {
        schedule: Schedule::parse(&spec.schedule, spec.time_zone.as_deref()),
        suspended: spec.suspend.unwrap_or(false),
        starting_deadline: spec.starting_deadline_seconds.map(SignedDuration::from_secs),
        since: find_since(schedule),
        blocked: observe_block(context, namespace, cluster),
        backups: backups.iter().filter_map(|backup| describe_backup(backup, &name)).collect(),
        pinned: observe_pinned(context, namespace),
        limits: (
            // With retention an object goes with its data.
            limit(
                spec.successful_backups_history_limit,
                if spec.retention.is_some() { u32::MAX } else { KEEP_COMPLETED },
            ),
            limit(spec.failed_backups_history_limit, KEEP_FAILED),
        ),
    }
}

/// The time of the last run; before the first one the schedule's creation.
fn find_since(schedule: &BackupSchedule) -> Timestamp {
    let last = schedule.status.as_ref().and_then(|status| status.last_schedule_time.as_ref()?.parse().ok());
    last.or_else(|| schedule.creation_timestamp().map(|time| time.0)).unwrap_or(Timestamp::MAX)
}

fn observe_block(context: &Context, namespace: &str, cluster: &str) -> Option<(&'static str, String)> {
    let Some(found) = store::get(&context.stores.clusters, namespace, cluster) else {
        let message = format!("there is no PostgresCluster {cluster} in this namespace; spec.clusterRef.name names it");
        return Some(("ClusterNotFound", message));
    };
    if found.metadata.deletion_timestamp.is_some() {
        return Some(("ClusterDeleted", format!("the PostgresCluster {cluster} is being deleted")));
    }
    if found.spec.backup.is_none() {
        let message = format!(
            "the PostgresCluster {cluster} has no spec.backup.objectStore: add it, so that there is a place for backups"
        );
        return Some(("NoObjectStore", message));
    }
    None
}

pub(super) fn describe_backup(backup: &Backup, schedule: &str) -> Option<KnownBackup> {
    let created = backup.creation_timestamp()?.0;
    let status = backup.status.as_ref();
    let ended = status.and_then(find_completed_at).unwrap_or(created);
    let state = match status.and_then(|status| status.phase).unwrap_or_default() {
        BackupPhase::Pending | BackupPhase::Running => KnownState::Unfinished,
        BackupPhase::Completed => KnownState::Completed(ended),
        BackupPhase::Failed => KnownState::Failed(ended),
    };
    let ours = backup.labels().get(keys::SCHEDULE).is_some_and(|label| label == schedule);
    Some(KnownBackup { name: backup.name_any(), ours, created, state })
}

/// Backups that clusters are to be restored from which have no data yet.
fn observe_pinned(context: &Context, namespace: &str) -> std::collections::BTreeSet<String> {
    let clusters = context.stores.clusters.state_filter(|cluster| cluster.namespace().as_deref() == Some(namespace));
    clusters
        .iter()
        .filter(|cluster| cluster.status.as_ref().is_none_or(|status| status.system_id.is_none()))
        .filter_map(|cluster| {
            let recovery = cluster.spec.bootstrap.as_ref()?.recovery.as_ref()?;
            Some(recovery.from.backup_ref.as_ref()?.name.clone())
        })
        .collect()
}

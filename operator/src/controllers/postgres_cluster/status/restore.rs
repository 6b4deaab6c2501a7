//! The last restore in place: what the plan says of it, with times and with what was reached.

use pgherd_crds::v1alpha1::postgres_cluster::RestoreStatus;

use super::scene::Scene;
use crate::context::Now;

/// The newest word on it.
pub(super) fn build_restore(scene: &Scene<'_>, now: Now) -> Option<RestoreStatus> {
    let published = scene.cluster.status.restore.as_ref();
    let Some(draft) = scene.plan.restore.clone() else {
        // Nothing stands in the spec any more: what came to an end is remembered.
        return published.filter(|known| ["Completed", "Ignored"].contains(&known.phase.as_str())).cloned();
    };
    let known = published.filter(|known| known.id == draft.id);
    let started_at = known.and_then(|known| known.started_at.clone());
    match draft.phase.as_str() {
        "Completed" => Some(match known.filter(|known| known.phase == "Completed") {
            Some(known) => backed_up(scene, known.clone()),
            None => completed(scene, RestoreStatus { started_at, ..draft }, now),
        }),
        "Stopping" | "Restoring" => {
            Some(RestoreStatus { started_at: started_at.or_else(|| Some(now.wall.to_string())), ..draft })
        }
        _ => Some(draft),
    }
}

/// Complete is what serves.
fn completed(scene: &Scene<'_>, draft: RestoreStatus, now: Now) -> RestoreStatus {
    let holder = scene.holder_pod().map(|pod| pod.name.clone());
    if !scene.primary_available() {
        return RestoreStatus { phase: "Restoring".to_owned(), pod: holder, ..draft };
    }
    let (timeline, lsn, last_transaction) = scene.reached();
    RestoreStatus { pod: holder, completed_at: Some(now.wall.to_string()), timeline, lsn, last_transaction, ..draft }
}

fn backed_up(scene: &Scene<'_>, known: RestoreStatus) -> RestoreStatus {
    let made = scene.executed.and_then(|executed| executed.restore_backup.clone());
    RestoreStatus { backup: known.backup.clone().or(made), ..known }
}

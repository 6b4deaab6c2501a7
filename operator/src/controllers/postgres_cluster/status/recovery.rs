//! What the cluster began with, if that was somebody else's data: kept once it is known.

use pgherd_core::instance::Bootstrap;
use pgherd_crds::v1alpha1::postgres_cluster::RecoveryStatus;

use super::scene::Scene;
use crate::context::Now;

/// Known when the first primary serves: nobody can tell it later, after other promotions.
pub(super) fn build_recovery(scene: &Scene<'_>, now: Now) -> Option<RecoveryStatus> {
    if let Some(known) = &scene.cluster.status.recovery {
        return Some(known.clone());
    }
    let recovered = matches!(scene.cluster.bootstrap, Bootstrap::Recovery { .. } | Bootstrap::Import { .. });
    if !recovered || !scene.primary_available() {
        return None;
    }
    let status = scene.holder_status()?;
    let source = status.source.as_ref().filter(|source| ["recovery", "import"].contains(&source.source.as_str()))?;
    let history = status.history.as_ref()?;
    Some(RecoveryStatus {
        from: source.from.clone(),
        timeline: Some(history.timeline.0),
        lsn: history.ancestors.last().map(|entry| entry.switch_lsn.to_string()),
        last_transaction: source.last_transaction.clone(),
        completed_at: Some(now.wall.to_string()),
    })
}

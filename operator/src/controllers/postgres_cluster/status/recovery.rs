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
    let source = scene.holder_status()?.source.as_ref();
    let source = source.filter(|source| ["recovery", "import"].contains(&source.source.as_str()))?;
    let (timeline, lsn, last_transaction) = scene.reached();
    let completed_at = Some(now.wall.to_string());
    timeline.map(|_| RecoveryStatus { from: source.from.clone(), timeline, lsn, last_transaction, completed_at })
}

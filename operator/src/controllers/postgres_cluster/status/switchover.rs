//! The last planned change of the primary, and what became of it. An operator that was restarted in the middle tells the
//! outcome from the register.

use pgherd_core::register::FailoverKind;
use pgherd_crds::v1alpha1::postgres_cluster::SwitchoverStatus;

use super::scene::Scene;

/// The newest word on it.
pub(super) fn build_switchover(scene: &Scene<'_>) -> Option<SwitchoverStatus> {
    let done = scene.executed.and_then(|executed| executed.switchover.clone());
    let known = done.or_else(|| scene.plan.switchover.clone()).or_else(|| scene.cluster.status.switchover.clone())?;
    match known.phase.as_str() {
        "Running" => Some(ended(scene, known)),
        // Nobody waits for it any more: what called for it has passed.
        "Waiting" if scene.plan.switchover.is_none() && !is_open(scene) => None,
        _ => Some(known),
    }
}

/// The handover is in the register, or the failover that it led to is under way.
fn is_open(scene: &Scene<'_>) -> bool {
    scene.register.as_ref().is_none_or(|register| register.handover.is_some() || register.is_sealing())
}

/// The outcome, once there is one.
fn ended(scene: &Scene<'_>, running: SwitchoverStatus) -> SwitchoverStatus {
    if is_open(scene) || !scene.primary_available() {
        return running;
    }
    let Some(register) = scene.register.as_ref() else { return running };
    let holder = register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default();
    let note = register.failover.as_ref().filter(|note| note.kind == FailoverKind::Switchover);
    let (phase, message) = match note.filter(|note| note.from != holder) {
        Some(note) => ("Completed", format!("{holder} took over from {} in term {}", note.from, register.term)),
        None => ("Withdrawn", format!("{holder} is the primary of term {}", register.term)),
    };
    SwitchoverStatus { phase: phase.to_owned(), message: Some(message), ..running }
}

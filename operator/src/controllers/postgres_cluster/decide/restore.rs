//! A restore in place, because `spec.restore` asks for it. Pure; which step comes next is decided in `pgherd_core`. Each id is
//! carried out once: the register remembers it, and so does the status.

use pgherd_core::{
    failover::{RestoreInput, RestoreRequest, RestoreStep, decide_restore},
    instance::RestoreAnswer,
    register::{Register, RestoreMark},
};
use pgherd_crds::v1alpha1::postgres_cluster::RestoreStatus;

use super::{Action, ChangeKind, Memory, Plan, handover::Scene, routing, settle};
use crate::{context::Now, controllers::postgres_cluster::validate::ValidatedCluster};

/// What an instance said holds for so long, in milliseconds; then it is asked again.
const ANSWER_MS: u64 = 60_000;
/// While the holder stops, the register is looked at this often, in milliseconds.
const STOPPING_MS: u64 = 200;

/// What an instance said to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreMemory {
    /// The request.
    pub request: RestoreRequest,
    /// The answer.
    pub answer: RestoreAnswer,
    /// When, in milliseconds of the monotonic clock.
    pub at_ms: u64,
}

/// What is done for a restore beside changes of the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreAction {
    /// Ask an instance whether it can be done.
    Check {
        /// The pod.
        pod: String,
        /// What somebody asks for.
        request: RestoreRequest,
    },
    /// Make a Backup of the restored cluster.
    BackUp {
        /// Its name.
        name: String,
    },
}

/// The mark of a register that is made while a restore stands in the spec: that one is not carried out.
#[must_use]
pub fn ignored(cluster: &ValidatedCluster) -> Option<RestoreMark> {
    cluster.restore.as_ref().map(|request| RestoreMark { id: request.id.clone(), order: None })
}

/// Adds the step; true if nothing else is to be decided in this round.
pub fn plan_restore(scene: &Scene<'_>, memory: &Memory, plan: &mut Plan) -> bool {
    let Some(observation) = memory.observation.as_ref() else { return false };
    let pods = scene.observed.views();
    let request = scene.cluster.restore.as_ref().filter(|request| !is_ended(scene.cluster, request));
    let answer = request.and_then(|request| answer(memory, request, scene.now));
    let step = decide_restore(&RestoreInput {
        request,
        register: scene.register,
        observation,
        pods: &pods,
        answer,
        take_over_ms: scene.cluster.timings.take_over_ms,
    });
    plan.restore = describe(scene, &step);
    plan.restore_action = request.cloned().and_then(|request| match &step {
        RestoreStep::Check { pod } | RestoreStep::Running { ask: Some(pod) } => {
            Some(RestoreAction::Check { pod: pod.clone(), request })
        }
        _ => None,
    });
    if !step.takes_over() {
        return false;
    }
    plan.roles = routing::decide_roles(scene.observed);
    plan.note = plan.restore.as_ref().map(|restore| format!("restore {}: {}", restore.id, restore.phase));
    match step {
        RestoreStep::Stop { register } | RestoreStep::Begin { register } => {
            plan.action = Action::Change { register, kind: ChangeKind::Restore };
        }
        RestoreStep::Stopping => plan.requeue_after_ms = STOPPING_MS,
        _ => {
            settle::decide_settle(scene.cluster, scene.observed, scene.register, plan);
            plan_restore_action(scene, plan);
        }
    }
    true
}

/// Asks, or makes the Backup that follows a restore, where the round has nothing else to do.
pub fn plan_restore_action(scene: &Scene<'_>, plan: &mut Plan) {
    let action = plan.restore_action.take().or_else(|| back_up(scene));
    if let (Some(action), Action::Nothing) = (action, &plan.action) {
        plan.action = Action::Restore(action);
    }
}

/// The old backups are of a history that is left in part: one of the new history comes at once.
fn back_up(scene: &Scene<'_>) -> Option<RestoreAction> {
    let published = scene.cluster.status.restore.as_ref()?;
    let mark = scene.register.restore.as_ref().filter(|mark| mark.id == published.id)?;
    let term = mark.order.as_ref()?.term?;
    let due = published.phase == "Completed" && published.backup.is_none() && scene.cluster.store.is_some();
    due.then(|| RestoreAction::BackUp { name: format!("{}-restored-{term}", scene.cluster.name) })
}

fn is_ended(cluster: &ValidatedCluster, request: &RestoreRequest) -> bool {
    let published = cluster.status.restore.as_ref().filter(|known| known.id == request.id);
    published.is_some_and(|known| known.phase == "Completed" || known.phase == "Ignored")
}

fn answer<'a>(memory: &'a Memory, request: &RestoreRequest, now: Now) -> Option<&'a RestoreAnswer> {
    let known = memory.restore.as_ref().filter(|known| known.request == *request)?;
    (now.monotonic_ms.saturating_sub(known.at_ms) < ANSWER_MS).then_some(&known.answer)
}

/// For the status; times and what was reached are added there.
fn describe(scene: &Scene<'_>, step: &RestoreStep) -> Option<RestoreStatus> {
    let mark = scene.register.restore.as_ref();
    let wanted = scene.cluster.restore.as_ref().map(|request| request.id.as_str());
    let (phase, message) = match step {
        RestoreStep::Nothing => return describe_ended(scene.register, wanted?),
        // Looked at anew, but nothing new is known yet.
        RestoreStep::Check { .. } => {
            let known = scene.cluster.status.restore.as_ref().filter(|known| Some(known.id.as_str()) == wanted);
            match known.filter(|known| known.phase == "Refused") {
                Some(known) => ("Refused", known.message.clone()),
                None => ("Checking", None),
            }
        }
        RestoreStep::Wait { why } => ("Checking", Some(why.clone())),
        RestoreStep::Refused { why } => ("Refused", Some(why.clone())),
        RestoreStep::Stop { .. } | RestoreStep::Stopping => ("Stopping", None),
        RestoreStep::Begin { .. } | RestoreStep::Running { .. } => ("Restoring", holder_says(scene)),
    };
    let next = match step {
        RestoreStep::Stop { register } | RestoreStep::Begin { register } => register.restore.as_ref(),
        RestoreStep::Stopping | RestoreStep::Running { .. } => mark,
        _ => None,
    };
    let order = next.and_then(|mark| mark.order.as_ref());
    let id = next.map(|mark| mark.id.as_str()).or(wanted)?.to_owned();
    let pod = match step {
        RestoreStep::Begin { register } => register.holder.as_ref(),
        RestoreStep::Running { .. } => scene.register.holder.as_ref(),
        _ => None,
    };
    Some(RestoreStatus {
        id,
        phase: phase.to_owned(),
        message,
        backup_id: order.map(|order| order.backup_id.clone()),
        pod: pod.map(|holder| holder.pod.clone()),
        ..RestoreStatus::default()
    })
}

fn describe_ended(register: &Register, wanted: &str) -> Option<RestoreStatus> {
    let mark = register.restore.as_ref().filter(|mark| mark.id == wanted)?;
    let (phase, message) = match &mark.order {
        Some(_) => ("Completed", None),
        None => ("Ignored", Some("the id is from before this cluster's register was made; give a new one".to_owned())),
    };
    Some(RestoreStatus {
        id: mark.id.clone(),
        phase: phase.to_owned(),
        message,
        backup_id: mark.order.as_ref().map(|order| order.backup_id.clone()),
        ..RestoreStatus::default()
    })
}

/// What the instance that restores says: where it is, or what is in its way.
fn holder_says(scene: &Scene<'_>) -> Option<String> {
    let status = scene.observed.holder_pod()?.status()?;
    (!status.message.is_empty()).then(|| status.message.clone())
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;

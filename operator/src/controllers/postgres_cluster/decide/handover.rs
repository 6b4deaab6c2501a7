//! Planned changes of the primary: because somebody asked, because its node is being drained, or because the cluster is
//! scaled down below it. Pure; whether a change may begin is decided in `pgherd_core`.
//!
//! A request is an annotation. It is dropped once the register holds the handover, or once it was refused: what follows
//! comes from the register alone, so that a manifest that is applied again repeats nothing.

use std::collections::BTreeMap;

use pgherd_core::{
    failover::{
        ForceError, HandoverCause, HandoverInput, HandoverVerdict, decide_force, decide_handover,
        handover::{PATIENCE_MS, RELEASE_WITHIN_MS},
        is_chosen_in_vain, parse_force, register_handed_over, register_handover_withdrawn,
    },
    register::Register,
};
use pgherd_crds::{
    names::{self, keys},
    v1alpha1::postgres_cluster::SwitchoverStatus,
};

use super::{Action, Memory, Plan};
use crate::{
    context::Now,
    controllers::postgres_cluster::{observe::Observed, validate::ValidatedCluster},
};

/// A node that is to be drained while no replica can take over is let go after this many milliseconds: managed services
/// give up on a drain after a quarter of an hour or more.
const DRAIN_BLOCKED_MS: u64 = 600_000;
/// The value of the annotation that leaves the choice to the operator.
const ANY: &str = "any";

/// An annotation on the PostgresCluster, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
}

/// A request that is dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub request: Request,
    /// Why it is refused; None when it was taken up.
    pub refused: Option<String>,
}

/// A step of a planned change of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverStep {
    /// Write this register, then wait for the holder.
    Begin {
        /// With the handover in it.
        register: Box<Register>,
        /// The request behind it; none for what became necessary by itself.
        request: Option<Request>,
        /// For people.
        status: SwitchoverStatus,
    },
    /// The holder was asked; it has this many milliseconds left.
    Await {
        /// Milliseconds.
        left_ms: u64,
    },
    /// The holder has not stopped in time: write this register.
    Withdraw {
        /// Without the handover.
        register: Box<Register>,
        /// For people.
        status: SwitchoverStatus,
    },
}

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: &'a ValidatedCluster,
    /// What was seen.
    pub observed: &'a Observed,
    /// The register as read.
    pub register: &'a Register,
    /// Now.
    pub now: Now,
}

/// What is wanted, before anybody asked whether it can be done.
struct Wish {
    cause: HandoverCause,
    target: Option<String>,
    request: Option<Request>,
}

/// Adds the next step of a planned change, if nothing else is to be done first, and the answers to requests.
pub fn plan_handover(scene: &Scene<'_>, memory: &mut Memory, plan: &mut Plan) {
    let now_ms = scene.now.monotonic_ms;
    match scene.register.handover {
        Some(_) => _ = memory.handover_since_ms.get_or_insert(now_ms),
        None => memory.handover_since_ms = None,
    }
    let answer = answer_force(scene, plan);
    plan.answers.extend(answer);
    let busy = scene.register.handover.is_some() || scene.register.is_sealing() || scene.register.released;
    if busy {
        plan.answers.extend(answer_while_busy(scene));
    }
    let idle = plan.action == Action::Nothing && plan.stalled.is_none();
    let wish = if busy { None } else { find_wish(scene) };
    plan.protect_primary = protects(scene, memory, wish.as_ref());
    match wish {
        Some(wish) if idle => plan_wish(scene, wish, memory, plan),
        Some(_) => {}
        None => memory.waiting = None,
    }
    if busy && idle {
        plan_open_handover(scene, memory, plan);
    }
}

/// The register asks the holder to stop, and it has not yet.
fn plan_open_handover(scene: &Scene<'_>, memory: &Memory, plan: &mut Plan) {
    let (Some(handover), Some(register)) = (&scene.register.handover, register_handover_withdrawn(scene.register))
    else {
        return;
    };
    let since = memory.handover_since_ms.unwrap_or(scene.now.monotonic_ms);
    let left_ms = RELEASE_WITHIN_MS.saturating_sub(scene.now.monotonic_ms.saturating_sub(since));
    let status = |phase: &str, message: String| SwitchoverStatus {
        phase: phase.to_owned(),
        reason: handover.reason.clone(),
        target: handover.target.clone(),
        message: Some(message),
    };
    let holder = super::holder_name(scene.register);
    if left_ms > 0 {
        plan.note = Some(format!("{}: waiting for {holder} to stop", handover.reason));
        plan.switchover = Some(status("Running", format!("waiting for {holder} to stop")));
        plan.action = Action::HandOver(HandoverStep::Await { left_ms });
        return;
    }
    let message = format!("{holder} has not stopped within {} s and goes on as primary", RELEASE_WITHIN_MS / 1_000);
    let step = HandoverStep::Withdraw { register: Box::new(register), status: status("Withdrawn", message) };
    plan.action = Action::HandOver(step);
}

/// What calls for another primary: first what somebody asked for.
fn find_wish(scene: &Scene<'_>) -> Option<Wish> {
    let holder = scene.register.holder.as_ref()?;
    if let Some(value) = &scene.cluster.requests.switchover {
        let target = (!value.eq_ignore_ascii_case(ANY)).then(|| value.clone());
        let request = Some(Request { key: keys::SWITCHOVER, value: value.clone() });
        return Some(Wish { cause: HandoverCause::Requested, target, request });
    }
    let by_itself = |cause| Some(Wish { cause, target: None, request: None });
    let instances = scene.cluster.instances;
    if names::ordinal(&scene.cluster.name, &holder.pod).is_some_and(|ordinal| ordinal >= instances) {
        return by_itself(HandoverCause::ScaleDown { instances });
    }
    let node = scene.observed.holder_pod()?.node.clone()?;
    let draining = scene.observed.draining.as_ref().is_some_and(|nodes| nodes.contains(&node));
    if draining { by_itself(HandoverCause::Drain { node }) } else { None }
}

/// Pods that must not become primary, each with the reason.
fn barred(scene: &Scene<'_>) -> BTreeMap<String, String> {
    let draining = |node: &String| scene.observed.draining.as_ref().is_some_and(|nodes| nodes.contains(node));
    let pods = scene.observed.pods.iter().filter_map(|pod| {
        let why = if pod.terminating {
            "it is being deleted".to_owned()
        } else if pod.ordinal >= scene.cluster.instances {
            "it is about to be removed".to_owned()
        } else {
            let node = pod.node.as_ref().filter(|node| draining(node))?;
            format!("its node {node} is being drained")
        };
        Some((pod.name.clone(), why))
    });
    pods.collect()
}

fn plan_wish(scene: &Scene<'_>, wish: Wish, memory: &mut Memory, plan: &mut Plan) {
    let waited_ms = memory.waited_ms(&format!("{} {:?}", wish.cause, wish.target), scene.now);
    let (pods, barred) = (scene.observed.views(), barred(scene));
    let verdict = decide_handover(&HandoverInput {
        register: scene.register,
        pods: &pods,
        target: wish.target.as_deref(),
        barred: &barred,
        waited_ms,
        patience_ms: wish.request.is_some().then_some(PATIENCE_MS),
    });
    let reason = wish.cause.to_string();
    let status = |phase: &str, target: Option<String>, message: Option<String>| SwitchoverStatus {
        phase: phase.to_owned(),
        reason: reason.clone(),
        target,
        message,
    };
    match (verdict, wish.request) {
        (HandoverVerdict::Begin { target, .. }, request) => {
            let Some(register) = register_handed_over(scene.register, Some(&target), &reason) else { return };
            let status = status("Running", Some(target), None);
            plan.action = Action::HandOver(HandoverStep::Begin { register: Box::new(register), request, status });
        }
        (HandoverVerdict::Refuse { why }, Some(request)) => {
            plan.switchover = Some(status("Refused", wish.target, Some(why.clone())));
            plan.answers.push(Answer { request, refused: Some(why) });
        }
        // What became necessary by itself stays so.
        (HandoverVerdict::Refuse { why } | HandoverVerdict::Wait { why }, _) => {
            plan.switchover = Some(status("Waiting", wish.target, Some(why)));
        }
    }
}

/// Whether the primary's pod is kept from being evicted: only where a drain is noticed and somebody could take over. A
/// drain that waits in vain is let through in the end.
fn protects(scene: &Scene<'_>, memory: &mut Memory, wish: Option<&Wish>) -> bool {
    let drains = wish.is_some_and(|wish| matches!(wish.cause, HandoverCause::Drain { .. }));
    let now_ms = scene.now.monotonic_ms;
    let since = if drains { Some(memory.drain_since_ms.unwrap_or(now_ms)) } else { None };
    memory.drain_since_ms = since;
    let in_vain = since.is_some_and(|since| now_ms.saturating_sub(since) >= DRAIN_BLOCKED_MS);
    scene.observed.draining.is_some() && scene.cluster.instances > 1 && !in_vain
}

/// A request that meets a handover or a failover under way: it was taken up, or comes at the wrong time.
fn answer_while_busy(scene: &Scene<'_>) -> Option<Answer> {
    let value = scene.cluster.requests.switchover.clone()?;
    let refused = match &scene.register.handover {
        Some(handover) if value.eq_ignore_ascii_case(ANY) || handover.target.as_ref() == Some(&value) => None,
        Some(handover) => {
            let target = handover.target.as_deref().unwrap_or("another instance");
            Some(format!("the primary role is moving to {target} already"))
        }
        None => Some("a failover is under way".to_owned()),
    };
    Some(Answer { request: Request { key: keys::SWITCHOVER, value }, refused })
}

/// A force-promotion that can't be granted whatever the members answer. One that could is looked at when the election was
/// found blocked, or chooses in vain again.
fn answer_force(scene: &Scene<'_>, plan: &Plan) -> Option<Answer> {
    let begins = matches!(plan.action, Action::Failover(_));
    let value = scene.cluster.requests.force_promote.clone()?;
    let asked = parse_force(&value, scene.register.term);
    let refused = match asked.and_then(|request| decide_force(scene.register, None, &request).map(|_| ())) {
        Err(ForceError::NotBlocked) if begins || scene.register.is_sealing() || is_chosen_in_vain(scene.register) => {
            return None;
        }
        Err(error) => error.to_string(),
        Ok(()) => return None,
    };
    Some(Answer { request: Request { key: keys::FORCE_PROMOTE, value }, refused: Some(refused) })
}

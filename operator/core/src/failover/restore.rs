//! Restoring a running cluster in place, because somebody asked for it: what comes next. The cluster serves until an instance
//! has found that the restore can be done; then the holder stops, and the next term begins with the restored data instead of a
//! promotion. Everything follows from the register, so any replica of the operator can go on.
//!
//! Until the restored data is there nobody is promoted: an election would bring the old data back.

use std::collections::BTreeMap;

use super::{
    observation::{Observation, PodView},
    register_change::{register_restore_ordered, register_restoring},
};
use crate::{
    instance::{RestoreAnswer, RestoreQuestion},
    register::{Register, RestoreMark, RestoreOrder},
};

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRequest {
    /// Tells one request from the next. Each is carried out once.
    pub id: String,
    /// What, and to where.
    pub question: RestoreQuestion,
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct RestoreInput<'a> {
    /// What somebody asks for; None where nothing.
    pub request: Option<&'a RestoreRequest>,
    /// The register as read.
    pub register: &'a Register,
    /// What was seen up to now.
    pub observation: &'a Observation,
    /// All pods by name.
    pub pods: &'a BTreeMap<String, PodView>,
    /// What an instance said to this very request, if one was asked.
    pub answer: Option<&'a RestoreAnswer>,
    /// A Lease unchanged for so long may be taken over, in milliseconds.
    pub take_over_ms: u64,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// Nothing is asked for, or all was done.
    Nothing,
    /// Ask this pod whether it can be done; the cluster serves meanwhile.
    Check {
        /// The pod.
        pod: String,
    },
    /// It can't be done.
    Refused {
        /// Why.
        why: String,
    },
    /// Something has to come first.
    Wait {
        /// What.
        why: String,
    },
    /// Write this register: the holder stops.
    Stop {
        /// With the order.
        register: Box<Register>,
    },
    /// The holder was asked to stop.
    Stopping,
    /// Write this register: the pod in it restores.
    Begin {
        /// With the next term.
        register: Box<Register>,
    },
    /// The holder restores.
    Running {
        /// Something else is asked for meanwhile: the pod that can say whether it can be done.
        ask: Option<String>,
    },
}

impl RestoreStep {
    /// The cluster is given up for the restored one: nothing else is decided meanwhile.
    #[must_use]
    pub fn takes_over(&self) -> bool {
        matches!(self, Self::Stop { .. } | Self::Stopping | Self::Begin { .. } | Self::Running { .. })
    }
}

/// Decides.
#[must_use]
pub fn decide_restore(input: &RestoreInput<'_>) -> RestoreStep {
    let mark = input.register.restore.as_ref();
    let wanted = input.request.filter(|request| mark.is_none_or(|mark| mark.id != request.id));
    let open = mark.and_then(|mark| Some((mark, open_order(input.register, mark)?)));
    match (open, wanted) {
        (Some((mark, order)), None) => carry_out(input, &mark.id, order),
        // What can't succeed is given up for another try; what was only ordered is carried out first.
        (Some((mark, order)), Some(_)) if order.term.is_none() => carry_out(input, &mark.id, order),
        (Some((mark, order)), Some(request)) => match take_up(input, request, true) {
            RestoreStep::Begin { register } => RestoreStep::Begin { register },
            step => match (carry_out(input, &mark.id, order), step) {
                (RestoreStep::Running { .. }, RestoreStep::Check { pod }) => RestoreStep::Running { ask: Some(pod) },
                (carried_out, _) => carried_out,
            },
        },
        (None, Some(request)) => take_up(input, request, false),
        (None, None) => RestoreStep::Nothing,
    }
}

/// The order, as long as the restored data is not there: the holder's member is written down once it serves.
fn open_order<'a>(register: &Register, mark: &'a RestoreMark) -> Option<&'a RestoreOrder> {
    let unseen = register.holder.as_ref().is_none_or(|holder| holder.member.is_none());
    mark.order.as_ref().filter(|order| order.term.is_none_or(|term| term == register.term && unseen))
}

/// A request that the register does not know yet.
fn take_up(input: &RestoreInput<'_>, request: &RestoreRequest, restoring: bool) -> RestoreStep {
    let register = input.register;
    let moving = register.is_sealing() || register.handover.is_some();
    let (true, Some(holder)) = (register.system_id.is_some(), &register.holder) else {
        return RestoreStep::Wait { why: "the cluster has no data yet".to_owned() };
    };
    if moving && !restoring {
        return RestoreStep::Wait { why: format!("the role of {} is moving", holder.pod) };
    }
    let order = match input.answer {
        Some(RestoreAnswer::Possible { backup_id, timeline }) => RestoreOrder {
            backup_id: backup_id.clone(),
            target: request.question.target.clone(),
            timeline: *timeline,
            term: None,
        },
        Some(RestoreAnswer::Refused(why)) => return RestoreStep::Refused { why: why.clone() },
        Some(RestoreAnswer::Checking) | None => {
            return match choose_pod(input) {
                Some((pod, _)) => RestoreStep::Check { pod },
                None => RestoreStep::Wait { why: "no instance answers".to_owned() },
            };
        }
    };
    if restoring || is_free(input) {
        return begin(input, &request.id, &order);
    }
    match register_restore_ordered(register, &request.id, &order) {
        Some(register) => RestoreStep::Stop { register: Box::new(register) },
        None => RestoreStep::Wait { why: format!("the role of {} is moving", holder.pod) },
    }
}

fn carry_out(input: &RestoreInput<'_>, id: &str, order: &RestoreOrder) -> RestoreStep {
    match order.term {
        _ if is_free(input) => begin(input, id, order),
        None => RestoreStep::Stopping,
        Some(_) => RestoreStep::Running { ask: None },
    }
}

/// Nobody serves in this term: the holder said that it is down, or was fenced long ago.
fn is_free(input: &RestoreInput<'_>) -> bool {
    input.register.released || input.observation.lease_unchanged_ms() >= input.take_over_ms
}

fn begin(input: &RestoreInput<'_>, id: &str, order: &RestoreOrder) -> RestoreStep {
    match choose_pod(input) {
        Some((pod, uid)) => {
            RestoreStep::Begin { register: Box::new(register_restoring(input.register, id, order, &pod, &uid)) }
        }
        None => RestoreStep::Running { ask: None },
    }
}

/// The holder where it answers, else the first that does: name and UID.
fn choose_pod(input: &RestoreInput<'_>) -> Option<(String, String)> {
    let holder = input.register.holder.as_ref().map(|holder| holder.pod.as_str());
    let answering = input.pods.iter().filter(|(_, view)| view.status().is_some());
    let chosen = answering.min_by_key(|(pod, _)| (Some(pod.as_str()) != holder, pod.len(), (*pod).clone()));
    chosen.map(|(pod, view)| (pod.clone(), view.uid.clone()))
}

//! What is to be done in this round. Pure: everything follows from the register, from what answers now and from the
//! memory of how long something has been so; therefore another replica of the operator can go on in the middle.
//!
//! Who is suspected and who is promoted is decided in `pgherd_core`; here it is put in order with the rest.

pub mod bootstrap;
pub mod handover;
pub mod memory;
pub mod rebuild;
pub mod restore;
pub mod routing;
pub mod settle;

use pgherd_core::{
    election::{CandidateVerdict, ElectionRules},
    failover::{FailoverInput, Observation, Step, SuspicionReason, decide_step, parse_force, register_regranted},
    instance::{Phase, SealReport},
    register::{LeaseView, Register, Voter},
};
use pgherd_crds::{
    names,
    v1alpha1::postgres_cluster::{RestoreStatus, SwitchoverStatus},
};

pub use self::{
    handover::{Answer, HandoverStep, Request},
    memory::{Claimed, FailoverProgress, Memory},
    restore::{RestoreAction, RestoreMemory},
    routing::RoleChange,
};
use super::{observe::Observed, validate::ValidatedCluster};
use crate::context::Now;

/// A settled cluster is looked at this often, in milliseconds: a primary that released its Lease waits no longer.
pub const POLL_MS: u64 = 1_000;
/// Nothing is looked at again sooner, in milliseconds.
const SOONEST_MS: u64 = 50;
/// Why a failover can't begin.
pub const NOBODY_ANSWERS: &str = "NobodyAnswers";
/// Why a failover can't begin, or be decided.
pub const QUORUM_MISSING: &str = "QuorumMissing";
/// A promotion that is not complete after this many milliseconds is given up.
pub const PROMOTION_MS: u64 = 30_000;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The StatefulSet's replicas: `instances`, or more while a higher ordinal is the primary or a voter.
    pub replicas: u32,
    /// At most one step that changes the register.
    pub action: Action,
    /// Labels to change.
    pub roles: Vec<RoleChange>,
    /// W as it should be now: in mode `Preferred` it depends on who streams.
    pub acks: u32,
    /// Requests that are dealt with: their annotations go.
    pub answers: Vec<Answer>,
    /// What became of a planned change of the primary, where there is something new to say.
    pub switchover: Option<SwitchoverStatus>,
    /// What became of a restore in place, where one is asked for.
    pub restore: Option<RestoreStatus>,
    /// What a restore wants done once the round has nothing else to do.
    restore_action: Option<RestoreAction>,
    /// The primary's pod must not be evicted.
    pub protect_primary: bool,
    /// What is waited for, for the status.
    pub note: Option<String>,
    /// A failover that can't begin, because nobody else answers.
    pub blocked: Option<Blocked>,
    /// What somebody has to put right, for the status.
    pub stalled: Option<Stall>,
    /// Look again after this many milliseconds.
    pub requeue_after_ms: u64,
}

/// A step that changes the register.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// The register is as it should be.
    #[default]
    Nothing,
    /// There is no Lease: make an empty one.
    CreateRegister,
    /// Replace the register as it was seen by this one.
    Change {
        /// The new register.
        register: Box<Register>,
        /// What the change is.
        kind: ChangeKind,
    },
    /// A step of a failover: `Seal`, `CollectSeals`, `Claim` or `Blocked`.
    Failover(Step),
    /// A step of a planned change of the primary.
    HandOver(HandoverStep),
    /// An instance is told to build itself anew: the value of the request.
    Rebuild(Request),
    /// A step of a restore in place that leaves the register alone.
    Restore(RestoreAction),
}

/// What a change of the register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The first holder is named.
    Bootstrap,
    /// The register was lost and is made again from the instances.
    Rebuild,
    /// The holder's member gets the next term.
    Regrant,
    /// What the holder reports of itself is written down.
    Record,
    /// A change of voters begins, or ends.
    Voters,
    /// The holder is to stop for a restore in place, or a pod is to begin with it.
    Restore,
}

/// A failover that cannot be decided, or can't begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// Registered voters' pods that did not seal.
    pub missing: Vec<String>,
    /// One sentence: what is missing, and what would help.
    pub why: String,
    /// Everyone that was looked at.
    pub candidates: Vec<CandidateVerdict>,
}

impl Blocked {
    pub(super) fn new(
        reason: &'static str,
        missing: Vec<Voter>,
        why: String,
        candidates: Vec<CandidateVerdict>,
    ) -> Self {
        Self { reason, missing: missing.into_iter().map(|voter| voter.pod).collect(), why, candidates }
    }
}

/// Something that does not pass by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// One word in CamelCase.
    pub reason: String,
    /// What is wrong, and what would help.
    pub message: String,
}

impl Stall {
    pub(super) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// Decides.
#[must_use]
pub fn decide(cluster: &ValidatedCluster, observed: &Observed, memory: &mut Memory, now: Now) -> Plan {
    let mut plan = Plan { replicas: decide_replicas(cluster, observed), requeue_after_ms: POLL_MS, ..Plan::default() };
    if let Some(stored) = &observed.register {
        memory.observe(&stored.view, observed, now);
        let published = cluster.status.last_failover.as_ref().map(|failover| failover.term);
        memory.resume(&stored.view.register, published, now);
        plan.acks = settle::decide_wanted_acks(cluster, observed, &stored.view.register, memory, now);
    }
    if cluster.suspended {
        return plan;
    }
    if let Some(problem) = &observed.register_problem {
        plan.stalled = Some(Stall::new("RegisterUnreadable", problem.as_str()));
        return plan;
    }
    let (Some(lease), Some(observation)) =
        (observed.register.as_ref().map(|stored| &stored.view), memory.observation.as_ref())
    else {
        plan.action = Action::CreateRegister;
        plan.requeue_after_ms = SOONEST_MS;
        return plan;
    };
    if lease.register.holder.is_none() {
        bootstrap::decide_bootstrap(cluster, observed, &mut plan);
        return plan;
    }
    let scene = handover::Scene { cluster, observed, register: &lease.register, now };
    if restore::plan_restore(&scene, memory, &mut plan) {
        return plan;
    }
    let step = decide_failover_step(cluster, lease, observed, observation, None);
    let step = match step {
        Step::Nothing | Step::Wait { .. } if promotion_failed(observed, memory, now) => {
            begin_election(&lease.register, PROMOTION_MS)
        }
        Step::Stranded { unproven: true, .. } if is_forced(cluster, &lease.register) => {
            begin_election(&lease.register, observation.lease_unchanged_ms())
        }
        step => step,
    };
    plan_step(cluster, observed, lease, step, &mut plan);
    handover::plan_handover(&scene, memory, &mut plan);
    rebuild::plan_rebuild(&scene, &mut plan);
    restore::plan_restore_action(&scene, &mut plan);
    plan
}

/// Where the failover stands; `seals` are the answers to the seal requests, once they were asked for.
#[must_use]
pub fn decide_failover_step(
    cluster: &ValidatedCluster,
    lease: &LeaseView,
    observed: &Observed,
    observation: &Observation,
    seals: Option<&[SealReport]>,
) -> Step {
    let pods = observed.views();
    // Whether a label could be removed must not decide whether a primary can be replaced: see `plan_step`.
    decide_step(&FailoverInput {
        register: &lease.register,
        observation,
        pods: &pods,
        routed_pods: &[],
        seals,
        timings: &cluster.timings,
        delay_ms: cluster.failover_delay_ms,
        rules: ElectionRules { last: lease.position, max_lag: cluster.failover_max_lag },
    })
}

fn plan_step(cluster: &ValidatedCluster, observed: &Observed, lease: &LeaseView, step: Step, plan: &mut Plan) {
    plan.roles = routing::decide_roles(observed);
    match step {
        Step::Seal { .. } | Step::CollectSeals { .. } | Step::Claim { .. } | Step::Blocked { .. } => {
            // Unrouting comes first: the execution changes the labels before it takes the action.
            if let Step::Seal { unroute, .. } = &step {
                unroute_first(observed, unroute, plan);
            }
            plan.action = Action::Failover(step);
        }
        Step::Regrant { pod, pod_uid, reason } => {
            plan.note = Some(format!("{reason}; {pod} gets the role again"));
            let register = Box::new(register_regranted(&lease.register, &pod, &pod_uid));
            plan.action = Action::Change { register, kind: ChangeKind::Regrant };
        }
        Step::Stranded { missing, unproven, why, recheck_after_ms } => {
            let reason = if unproven { QUORUM_MISSING } else { NOBODY_ANSWERS };
            plan.blocked = Some(Blocked::new(reason, missing, why.clone(), Vec::new()));
            plan_wait(observed, why, recheck_after_ms, plan);
            settle::decide_settle(cluster, observed, &lease.register, plan);
        }
        Step::Wait { why, recheck_after_ms } => {
            plan_wait(observed, why, recheck_after_ms, plan);
            settle::decide_settle(cluster, observed, &lease.register, plan);
        }
        Step::Nothing | Step::Route { .. } | Step::Unroute { .. } | Step::Bootstrap { .. } => {
            settle::decide_settle(cluster, observed, &lease.register, plan);
        }
    }
}

fn plan_wait(observed: &Observed, why: String, recheck_after_ms: Option<u64>, plan: &mut Plan) {
    plan.note = Some(why);
    // Times count from when the register was read; asking who does not answer takes a while.
    let recheck = recheck_after_ms.map_or(POLL_MS, |after| after.saturating_sub(observed.asked_ms));
    plan.requeue_after_ms = recheck.clamp(SOONEST_MS, POLL_MS);
}

fn unroute_first(observed: &Observed, unroute: &str, plan: &mut Plan) {
    plan.roles.retain(|change| change.pod != unroute);
    for change in routing::decide_unrouted(observed, Some(unroute)) {
        if plan.roles.iter().all(|known| known.pod != change.pod) {
            plan.roles.push(change);
        }
    }
}

/// The holder renews its Lease but does not become primary: another one gets its chance in the next term. A data
/// directory that recovers after a crash is left to do so, and so is one that was seen as primary of this term: it may be about to stop.
fn promotion_failed(observed: &Observed, memory: &Memory, now: Now) -> bool {
    let (Some(register), Some(pod)) = (observed.register(), observed.holder_pod()) else { return false };
    let (Some(status), Some((term, since_ms))) = (pod.status(), memory.term_since) else { return false };
    let overdue = term == register.term && now.monotonic_ms.saturating_sub(since_ms) > PROMOTION_MS;
    let idle = !matches!(status.phase, Phase::Primary | Phase::Starting | Phase::Initializing | Phase::Restoring);
    let holder = register.holder.as_ref().and_then(|holder| holder.member.as_ref());
    let others = observed.pods.iter().filter(|other| other.uid != pod.uid);
    let other_members = others.filter_map(|other| other.status()?.member.as_ref());
    let replaceable = holder.is_some() && other_members.into_iter().any(|member| Some(member) != holder);
    // Its timeline is written down when it is first seen as primary of the term.
    let never_led = register.timeline.is_none();
    let steady = register.system_id.is_some() && !register.is_sealing();
    overdue && idle && !status.is_primary && never_led && steady && replaceable
}

/// Somebody asks for a promotion in this very term: only an election that was found blocked can grant it.
fn is_forced(cluster: &ValidatedCluster, register: &Register) -> bool {
    let asked = cluster.requests.force_promote.as_deref().map(|value| parse_force(value, register.term));
    asked.is_some_and(|asked| asked.is_ok_and(|request| request.term == register.term))
}

/// The seal of an election that the holder's silence alone does not begin.
fn begin_election(register: &Register, detect_ms: u64) -> Step {
    let (unroute, term) = (holder_name(register), register.term.next());
    Step::Seal { unroute, term, reason: SuspicionReason::LeaseExpired, detect_ms }
}

fn holder_name(register: &Register) -> String {
    register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default()
}

/// Pods that go on: as many as are asked for, and up to the highest that is the holder or a voter. A voter leaves the
/// register before its pod is stopped; while the register does not say who that is, no pod is stopped.
fn decide_replicas(cluster: &ValidatedCluster, observed: &Observed) -> u32 {
    let Some(register) = observed.register().filter(|register| register.holder.is_some()) else {
        let highest = observed.pods.iter().map(|pod| pod.ordinal + 1).max();
        return cluster.instances.max(highest.unwrap_or(0));
    };
    let sets = [Some(&register.quorum), register.pending.as_ref()];
    let voters = sets.into_iter().flatten().flat_map(|set| &set.voters).map(|voter| voter.pod.as_str());
    let holder = register.holder.iter().map(|holder| holder.pod.as_str());
    let highest = voters.chain(holder).filter_map(|pod| names::ordinal(&cluster.name, pod)).max();
    cluster.instances.max(highest.map_or(0, |ordinal| ordinal + 1))
}

#[cfg(test)]
mod tests;

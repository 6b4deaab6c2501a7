//! The next single step of a failover (design: suspect, unroute, seal, decide, claim). It writes nothing; the registers
//! that the steps write are made in [`super::register_change`].

use std::collections::BTreeMap;

use super::{
    observation::{Observation, PodView},
    suspicion::{Suspicion, SuspicionReason, decide_suspicion},
};
use crate::{
    election::{CandidateVerdict, Election, ElectionRules, elect, pod_order},
    instance::{InstanceStatus, Phase, SealReport, Timings},
    lineage::Fork,
    register::{Holder, MemberId, Register, Term, Voter},
};

/// Everything that the next step depends on.
#[derive(Clone, Copy, Debug)]
pub struct FailoverInput<'a> {
    /// The register as just read with a quorum GET.
    pub register: &'a Register,
    /// What this observer has seen.
    pub observation: &'a Observation,
    /// All pods that exist, by name.
    pub pods: &'a BTreeMap<String, PodView>,
    /// Pods that carry the label role=primary now.
    pub routed_pods: &'a [String],
    /// None before the seal requests of this round; then the answers that came in time.
    pub seals: Option<&'a [SealReport]>,
    /// Failure detection.
    pub timings: &'a Timings,
    /// The user's `failover.delay` in milliseconds.
    pub delay_ms: u64,
    /// For an election without a quorum.
    pub rules: ElectionRules,
}

/// One step. After any that writes, the caller reads everything anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The holder serves, nothing is to be done.
    Nothing,
    /// Wait; `why` is for the status.
    Wait {
        /// One sentence.
        why: String,
        /// Look again after this many milliseconds; None when only a change elsewhere can help.
        recheck_after_ms: Option<u64>,
    },
    /// The holder is gone, and nobody else answers or too few do: condition `FailoverBlocked`. Look again.
    Stranded {
        /// Registered voters that don't answer.
        missing: Vec<Voter>,
        /// Others answer, too few to prove that nothing acknowledged is missing: somebody may force a promotion.
        unproven: bool,
        /// One sentence.
        why: String,
        /// As for [`Step::Wait`].
        recheck_after_ms: Option<u64>,
    },
    /// No holder yet: write [`super::register_bootstrapped`] with this pod.
    Bootstrap {
        /// The pod.
        pod: String,
        /// Its UID.
        pod_uid: String,
    },
    /// Remove the label role=primary from these pods.
    Unroute {
        /// The pods.
        pods: Vec<String>,
    },
    /// Put the label role=primary on this pod: it serves as the holder of the current term.
    Route {
        /// The pod.
        pod: String,
    },
    /// Remove the label from the holder's pod, then write [`super::register_sealed`].
    Seal {
        /// The holder's pod, to be unrouted first.
        unroute: String,
        /// The new `sealTerm`.
        term: Term,
        /// Why the holder is suspected.
        reason: SuspicionReason,
        /// For how long it was noticed before, in milliseconds.
        detect_ms: u64,
    },
    /// Send seal requests for `term` to these pods at once, wait (bounded), then decide again with the answers.
    CollectSeals {
        /// The `sealTerm`.
        term: Term,
        /// The pods.
        pods: Vec<String>,
    },
    /// Write [`super::register_claimed`] with this winner, and [`crate::lineage::register_forked`] with the fork.
    Claim {
        /// The winner's pod.
        pod: String,
        /// Its UID.
        pod_uid: String,
        /// The winner.
        member: MemberId,
        /// What the winner is on.
        fork: Fork,
        /// Everyone that was looked at, the winner first.
        candidates: Vec<CandidateVerdict>,
        /// See [`crate::election::Election::Winner`].
        possible_loss_bytes: u64,
    },
    /// Nobody may be promoted: condition `FailoverBlocked`. Seal again after a while.
    Blocked {
        /// Registered voters that did not seal.
        missing: Vec<Voter>,
        /// One sentence.
        why: String,
        /// Everyone that was looked at.
        candidates: Vec<CandidateVerdict>,
    },
    /// No other member could take over: write [`super::register_regranted`].
    Regrant {
        /// The pod that carries the holder's member now.
        pod: String,
        /// Its UID.
        pod_uid: String,
        /// Why.
        reason: SuspicionReason,
    },
}

/// Decides the next step.
#[must_use]
pub fn decide_step(input: &FailoverInput<'_>) -> Step {
    let Some(holder) = &input.register.holder else {
        return decide_bootstrap(input);
    };
    if input.register.is_sealing() {
        return decide_sealed(input);
    }
    let stray: Vec<String> = input.routed_pods.iter().filter(|pod| **pod != holder.pod).cloned().collect();
    if !stray.is_empty() {
        return Step::Unroute { pods: stray };
    }
    match decide_suspicion(input.observation, input.register, input.pods, input.timings, input.delay_ms) {
        Suspicion::Suspect { reason, detect_ms } => {
            Step::Seal { unroute: holder.pod.clone(), term: input.register.term.next(), reason, detect_ms }
        }
        Suspicion::RestartHolder { pod, pod_uid, reason } => Step::Regrant { pod, pod_uid, reason },
        _ if serves(input, holder) && !input.routed_pods.contains(&holder.pod) => {
            Step::Route { pod: holder.pod.clone() }
        }
        Suspicion::Stranded { why, missing, unproven, recheck_after_ms } if !serves(input, holder) => {
            Step::Stranded { missing, unproven, why, recheck_after_ms }
        }
        Suspicion::Watching { why, recheck_after_ms } | Suspicion::Stranded { why, recheck_after_ms, .. } => {
            Step::Wait { why, recheck_after_ms }
        }
        Suspicion::None => Step::Nothing,
    }
}

/// The holder takes writes in the current term, in the very pod that the register names.
fn serves(input: &FailoverInput<'_>, holder: &Holder) -> bool {
    let view = input.pods.get(&holder.pod).filter(|view| view.uid == holder.pod_uid);
    view.and_then(PodView::status).is_some_and(|status| {
        let is_itself = status.pod_uid == holder.pod_uid && status.term == input.register.term;
        is_itself && status.is_primary && status.phase == Phase::Primary && !input.register.released
    })
}

/// Sealing has begun: unroute, collect promises, elect.
fn decide_sealed(input: &FailoverInput<'_>) -> Step {
    if !input.routed_pods.is_empty() {
        return Step::Unroute { pods: input.routed_pods.to_vec() };
    }
    let mut pods: Vec<String> =
        statuses(input).filter(|(_, s)| s.member.is_some()).map(|(pod, _)| pod.clone()).collect();
    pods.sort_by(|a, b| pod_order(a).cmp(&pod_order(b)));
    let seals = match input.seals {
        None if !pods.is_empty() => return Step::CollectSeals { term: input.register.seal_term, pods },
        seals => seals.unwrap_or_default(),
    };
    match elect(input.register, seals, input.rules) {
        Election::Winner { winner, candidates, possible_loss_bytes } => match input.pods.get(&winner.pod) {
            Some(view) => Step::Claim {
                fork: Fork::of(input.register.seal_term, &winner),
                pod: winner.pod,
                pod_uid: view.uid.clone(),
                member: winner.member,
                candidates,
                possible_loss_bytes,
            },
            None => Step::Wait {
                why: format!("{} has won the election, but its pod does not exist any more", winner.pod),
                recheck_after_ms: Some(input.timings.renew_ms),
            },
        },
        Election::Blocked { missing, why, candidates } => Step::Blocked { missing, why, candidates },
    }
}

/// No holder yet: the lowest ordinal that answers makes the first data directory, if really none exists.
fn decide_bootstrap(input: &FailoverInput<'_>) -> Step {
    let wait = |why: String| Step::Wait { why, recheck_after_ms: None };
    if let Some((pod, _)) = statuses(input).find(|(_, status)| status.member.is_some()) {
        return wait(format!(
            "{pod} holds a data directory, but the register names no primary: it is not initialised over"
        ));
    }
    if let Some(id) = &input.register.system_id {
        return wait(format!(
            "the cluster was initialised before (system identifier {id}), but the register names no primary"
        ));
    }
    let first =
        statuses(input).min_by_key(|(pod, _)| pod_order(pod)).and_then(|(pod, _)| input.pods.get_key_value(pod));
    match first {
        Some((pod, view)) => Step::Bootstrap { pod: pod.clone(), pod_uid: view.uid.clone() },
        None => wait("no instance has answered yet".to_owned()),
    }
}

/// The pods that answer.
fn statuses<'a>(input: &FailoverInput<'a>) -> impl Iterator<Item = (&'a String, &'a InstanceStatus)> {
    input.pods.iter().filter_map(|(pod, view)| view.status().map(|status| (pod, status)))
}

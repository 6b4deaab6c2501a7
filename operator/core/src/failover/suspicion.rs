//! Is the holder still there? Suspicion alone changes nothing: it only starts the sealing.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::observation::{Observation, PodView};
use crate::{
    election::pod_order,
    failsafe::is_vouched_for,
    instance::{InstanceStatus, Timings, Vouch},
    quorum::proves,
    register::{Holder, Register, Voter, VoterSet},
};

/// The holder's agent must not answer for this long (milliseconds), however long the voters have heard nothing.
const CONFIRM_MS: u64 = 1_000;

/// Why the holder is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SuspicionReason {
    /// Its agent said that PostgreSQL is down.
    Released,
    /// The Lease was not renewed for the take-over time.
    LeaseExpired,
    /// Its agent does not answer and no replica receives anything from it (only with a quorum).
    Silent,
    /// Its pod does not exist any more (only with a quorum).
    HolderPodGone,
}

impl fmt::Display for SuspicionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released => "the primary released its Lease: its PostgreSQL is down",
            Self::LeaseExpired => "the primary did not renew its Lease",
            Self::Silent => "the primary does not answer and no replica receives anything from it",
            Self::HolderPodGone => "the primary's pod does not exist any more",
        })
    }
}

/// What is thought of the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing is wrong (or there is no holder yet).
    None,
    /// Something is wrong, but not for long enough, or nobody could take over.
    Watching {
        /// One sentence.
        why: String,
        /// Look again after this many milliseconds; None when only a change elsewhere can help.
        recheck_after_ms: Option<u64>,
    },
    /// A failover would begin, but nobody could be elected. Whoever is cut off from this observer may serve, and goes on: to seal
    /// would only stop it once it is heard of again.
    Stranded {
        /// One sentence: what is wrong, and who is waited for.
        why: String,
        /// Registered voters that don't answer.
        missing: Vec<Voter>,
        /// Other members answer, too few to prove that nothing acknowledged is missing.
        unproven: bool,
        /// As above.
        recheck_after_ms: Option<u64>,
    },
    /// The failover may begin.
    Suspect {
        /// Why.
        reason: SuspicionReason,
        /// For how long it was noticed before, in milliseconds.
        detect_ms: u64,
    },
    /// No other member could take over: the same member gets the role again, in a new term.
    RestartHolder {
        /// The pod that carries the holder's member now.
        pod: String,
        /// That pod's UID.
        pod_uid: String,
        /// Why.
        reason: SuspicionReason,
    },
}

/// Decides whether the holder is suspected. `delay_ms` is the user's `failover.delay`; `pods` are all that exist.
///
/// While the API server is away from the holder, its peers may promise not to seal: as long as nobody could be elected
/// without those who promised, the holder is watched and keeps its label.
///
/// The quick reasons (silent, pod gone) count only while every set in force has W > 0: then the seal, not the time,
/// keeps an old primary from acknowledging. Without a quorum only the holder's own word or its Lease counts.
#[must_use]
pub fn decide_suspicion(
    observation: &Observation,
    register: &Register,
    pods: &BTreeMap<String, PodView>,
    timings: &Timings,
    delay_ms: u64,
) -> Suspicion {
    let Some(holder) = &register.holder else {
        return Suspicion::None;
    };
    let scene = Scene { observation, register, holder, pods, timings, delay_ms };
    match scene.reason() {
        Some((reason, _)) if scene.is_vouched_for(reason) => scene.watch_vouched(reason),
        Some((reason, _)) if !scene.others_exist() => scene.restart(reason),
        Some((reason, detect_ms)) if scene.can_elect() => Suspicion::Suspect { reason, detect_ms },
        Some((reason, _)) => scene.wait_for_proof(reason),
        None => scene.watch(),
    }
}

struct Scene<'a> {
    observation: &'a Observation,
    register: &'a Register,
    holder: &'a Holder,
    pods: &'a BTreeMap<String, PodView>,
    timings: &'a Timings,
    delay_ms: u64,
}

impl Scene<'_> {
    /// The reason to suspect the holder, and for how long it has been noticed.
    fn reason(&self) -> Option<(SuspicionReason, u64)> {
        let lease_ms = self.observation.lease_unchanged_ms();
        if self.register.released {
            return Some((SuspicionReason::Released, 0));
        }
        if lease_ms >= self.take_over_ms() {
            return Some((SuspicionReason::LeaseExpired, lease_ms));
        }
        if !self.voters_can_prove() {
            return None;
        }
        let silent_ms = self.observation.unreachable_ms(&self.holder.pod).unwrap_or(0);
        if self.holder_pod().is_none() && lease_ms >= self.delay_ms {
            return Some((SuspicionReason::HolderPodGone, lease_ms));
        }
        let silent = silent_ms >= self.silence_needed_ms() && self.nobody_receives();
        silent.then_some((SuspicionReason::Silent, silent_ms))
    }

    /// The promises in force keep anybody else from being elected. The holder's own word counts for more, and so does a
    /// pod that is gone for the take-over time: nothing leads to it any more.
    fn is_vouched_for(&self, reason: SuspicionReason) -> bool {
        let gone = self.holder_pod().is_none() && self.observation.lease_unchanged_ms() >= self.take_over_ms();
        if reason == SuspicionReason::Released || gone {
            return false;
        }
        let vouches: Vec<Vouch> = self.vouchers().filter_map(|status| status.vouch.clone()).collect();
        is_vouched_for(self.register, &vouches)
    }

    /// The other instances that answer and vouch for the holder of this term.
    fn vouchers(&self) -> impl Iterator<Item = &InstanceStatus> {
        let others = self.pods.iter().filter(|(pod, _)| **pod != self.holder.pod);
        others.filter_map(|(_, view)| view.status()).filter(|status| {
            status.vouch.as_ref().is_some_and(|vouch| vouch.term == self.register.term && vouch.remaining_ms > 0)
        })
    }

    /// The promises run out by themselves when the holder does not ask again; each round sees them anew.
    fn watch_vouched(&self, reason: SuspicionReason) -> Suspicion {
        let pods: Vec<&str> = self.vouchers().map(|status| status.pod.as_str()).collect();
        let why = format!("{reason}, but {} is vouched for by {}", self.holder.pod, pods.join(", "));
        Suspicion::Watching { why, recheck_after_ms: Some(self.timings.renew_ms / 2) }
    }

    fn take_over_ms(&self) -> u64 {
        self.timings.take_over_ms.saturating_add(self.delay_ms)
    }

    /// The holder's pod, if it is still the same one.
    fn holder_pod(&self) -> Option<&PodView> {
        self.pods.get(&self.holder.pod).filter(|view| view.uid == self.holder.pod_uid)
    }

    /// Every set in force has W > 0, and of each enough voters answer to prove an election without the holder.
    fn voters_can_prove(&self) -> bool {
        self.register.sets().all(|set| self.can_prove(set))
    }

    /// Enough voters of the set answer to prove an election without the holder.
    fn can_prove(&self, set: &VoterSet) -> bool {
        proves(set.voters.len(), set.acks, self.answering(set).count())
    }

    /// Voters of the set that answer, the holder left out.
    fn answering<'s>(&'s self, set: &'s VoterSet) -> impl Iterator<Item = &'s InstanceStatus> {
        let others = set.voters.iter().filter(|voter| voter.pod != self.holder.pod);
        others.filter_map(|voter| self.answer_of(voter))
    }

    /// What the voter's pod says, if it answers with the registered member.
    fn answer_of(&self, voter: &Voter) -> Option<&InstanceStatus> {
        let status = self.pods.get(&voter.pod)?.status()?;
        (status.member.as_ref() == Some(&voter.member)).then_some(status)
    }

    /// For how long the holder's agent must not have answered. The silence may have begun before this observer did: the
    /// voters have watched the holder for longer, each on its own clock.
    fn silence_needed_ms(&self) -> u64 {
        let silence_ms = self.timings.silence_ms.saturating_add(self.delay_ms);
        let is_deaf = |status: &&InstanceStatus| {
            status.silence.as_ref().is_some_and(|heard| heard.upstream == self.holder.pod && heard.ms >= silence_ms)
        };
        let deaf = |set: &VoterSet| self.answering(set).filter(is_deaf).count();
        let enough = self.register.sets().all(|set| proves(set.voters.len(), set.acks, deaf(set)));
        if enough { CONFIRM_MS.min(silence_ms) } else { silence_ms }
    }

    /// No instance that answers has heard from its upstream lately. Replicas that are no voters speak for the holder
    /// as well.
    fn nobody_receives(&self) -> bool {
        self.hearing_left_ms() == 0
    }

    /// In how many milliseconds the last of those that answer will have heard nothing for long enough.
    fn hearing_left_ms(&self) -> u64 {
        let others = self.pods.iter().filter(|(pod, _)| **pod != self.holder.pod);
        let receivers = others.filter_map(|(_, view)| view.status()?.receiver.as_ref());
        let streaming = receivers.filter(|receiver| receiver.streaming);
        streaming.map(|receiver| self.timings.silence_ms.saturating_sub(receiver.silent_ms)).max().unwrap_or(0)
    }

    /// Another data directory answers.
    fn others_exist(&self) -> bool {
        let statuses = self.pods.values().filter_map(PodView::status);
        statuses
            .filter(|status| status.pod != self.holder.pod)
            .any(|status| status.member.is_some() && status.member != self.holder.member)
    }

    /// Those who answer could elect somebody: without a quorum anybody, with one the former holder, or enough voters without it.
    fn can_elect(&self) -> bool {
        self.register.quorum.acks == 0
            || self.carrier().is_some()
            || self.register.sets_to_prove().all(|set| self.can_prove(set))
    }

    fn wait_for_proof(&self, reason: SuspicionReason) -> Suspicion {
        let why = format!(
            "{reason}, and those who answer are too few to tell whether they have every acknowledged commit; waiting for {}",
            self.holder.pod
        );
        self.stranded(why, None)
    }

    /// The role goes to the holder's own data directory again, where that is all there is.
    fn restart(&self, reason: SuspicionReason) -> Suspicion {
        let Some((pod, view)) = self.carrier() else {
            let why = format!("{reason}, and no other member could take over; waiting for {}", self.holder.pod);
            return self.stranded(why, None);
        };
        let same_pod = view.uid == self.holder.pod_uid;
        let over =
            self.register.released || (!same_pod && self.observation.lease_unchanged_ms() >= self.take_over_ms());
        if over {
            return Suspicion::RestartHolder { pod: pod.clone(), pod_uid: view.uid.clone(), reason };
        }
        // The same pod in the same term goes on by itself; a new pod waits until the old one is surely fenced.
        let left = self.take_over_ms().saturating_sub(self.observation.lease_unchanged_ms());
        let why = format!("{reason}, and no other member could take over; {pod} goes on when it can");
        self.stranded(why, (!same_pod).then_some(left))
    }

    /// Where nobody else is there or was ever a voter, there is no failover that could be missed.
    fn stranded(&self, why: String, recheck_after_ms: Option<u64>) -> Suspicion {
        let (missing, unproven) = (self.missing(), self.others_exist());
        if missing.is_empty() && !unproven {
            return Suspicion::Watching { why, recheck_after_ms };
        }
        let pods: Vec<&str> = missing.iter().map(|voter| voter.pod.as_str()).collect();
        let why = if pods.is_empty() { why } else { format!("{why}, or for {}", pods.join(", ")) };
        Suspicion::Stranded { why, missing, unproven, recheck_after_ms }
    }

    /// Registered voters beside the holder that don't answer. Each pod once, in order.
    fn missing(&self) -> Vec<Voter> {
        let is_holders =
            |voter: &Voter| Some(&voter.member) == self.holder.member.as_ref() || voter.pod == self.holder.pod;
        let voters = self.register.sets().flat_map(|set| &set.voters);
        let mut missing: Vec<Voter> =
            voters.filter(|voter| !is_holders(voter) && self.answer_of(voter).is_none()).cloned().collect();
        missing.sort_by(|a, b| pod_order(&a.pod).cmp(&pod_order(&b.pod)));
        missing.dedup_by(|a, b| a.pod == b.pod);
        missing
    }

    /// The pod whose agent answers with the holder's data directory (or has none yet, while bootstrapping).
    fn carrier(&self) -> Option<(&String, &PodView)> {
        let carries = |status: &InstanceStatus| match &self.holder.member {
            Some(member) => status.member.as_ref() == Some(member),
            None => status.pod == self.holder.pod,
        };
        let mut found: Vec<_> = self.pods.iter().filter(|(_, view)| view.status().is_some_and(carries)).collect();
        found.sort_by_key(|(pod, _)| pod_order(pod));
        found.into_iter().next()
    }

    /// Nothing to suspect yet: is there something to look at again soon?
    fn watch(&self) -> Suspicion {
        let lease_ms = self.observation.lease_unchanged_ms();
        let unreachable_ms = self.observation.unreachable_ms(&self.holder.pod);
        let overdue_ms = self.timings.renew_ms.saturating_mul(2);
        let left = self.take_over_ms().saturating_sub(lease_ms);
        let pod = &self.holder.pod;
        let (why, left) = match unreachable_ms {
            _ if self.holder_pod().is_none() => (format!("{pod}, the primary's pod, does not exist any more"), left),
            Some(ms) => {
                let quick = self.silence_needed_ms().saturating_sub(ms).max(self.hearing_left_ms());
                let left = if quick > 0 { left.min(quick) } else { left };
                (format!("{pod} has not answered for {ms} ms"), left)
            }
            None if lease_ms > overdue_ms => (format!("{pod} has not renewed its Lease for {lease_ms} ms"), left),
            None => return Suspicion::None,
        };
        Suspicion::Watching { why, recheck_after_ms: Some(left) }
    }
}

//! The winner gets the role, is routed to as soon as it lets nobody in that it could not serve, and is waited for.

use std::{net::IpAddr, time::Duration};

use pgherd_core::{
    election::CandidateVerdict,
    failover::{register_claimed, register_forced},
    instance::Phase,
    lineage::{Fork, came_to_nothing, register_forked},
    register::{FailoverKind, FailoverNote, Holder, LeaseView, MemberId, Register, Term},
};
use pgherd_crds::names::ROLE_PRIMARY;
use tokio::time::{Instant, sleep};

use super::{AT_ONCE_MS, ExecuteError, Round};
use crate::{
    context::Now,
    controllers::postgres_cluster::decide::{
        Claimed, Memory, POLL_MS, PROMOTION_MS, Request, RoleChange, routing::decide_unrouted,
    },
};

/// How often the winner is asked whether it takes writes.
const POLL: Duration = Duration::from_millis(50);
/// A winner that was promoted and lets no client in for this long is looked at by the next rounds.
const GATE: Duration = Duration::from_secs(3);
/// A winner that does not answer for this long is left to the suspicion of the next rounds.
const SILENT: Duration = Duration::from_secs(5);
/// So many candidates go into the note in the register, which is to stay small.
const NOTED_CANDIDATES: usize = 10;
/// Why, when it was not the failover's own reason that made the winner.
const FORCED: &str = "the promotion was forced";

/// The outcome of the election.
pub(super) struct Winner {
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) member: MemberId,
    pub(super) fork: Fork,
    pub(super) candidates: Vec<CandidateVerdict>,
    pub(super) possible_loss_bytes: u64,
    /// The request, if it did not win by an election.
    pub(super) forced: Option<Request>,
}

impl Round<'_> {
    /// Makes the winner the holder, wakes everybody, waits (bounded) until it takes writes, and routes to it.
    pub(super) async fn claim(
        &mut self,
        seen: &LeaseView,
        winner: Winner,
        memory: &mut Memory,
    ) -> Result<(), ExecuteError> {
        let now = self.context.clock.now();
        let noted = seen.register.failover.clone();
        let note = noted.or_else(|| memory.failover.as_ref().map(|failover| failover.note(now)));
        let address = self.observed.pod(&winner.pod).and_then(|pod| pod.ip);
        let next = claimed_register(&seen.register, note, &winner, address, now);
        if self.replace_if_same(&seen.register, &next).await?.is_none() {
            self.done.requeue_after_ms = AT_ONCE_MS;
            return Ok(());
        }
        memory.term_since = Some((next.term, self.context.clock.now().monotonic_ms));
        self.wake_all();
        tracing::warn!(cluster = self.cluster.name, winner = winner.pod, term = next.term.0, "failover decided");
        if let Some(failover) = memory.failover.as_mut() {
            if let Some(note) = &next.failover {
                (failover.reason, failover.kind) = (note.reason.clone(), note.kind);
            }
            self.context.metrics.failed_over(failover.kind);
            failover.claimed = Some(Claimed {
                to: winner.pod.clone(),
                to_uid: winner.pod_uid.clone(),
                candidates: winner.candidates,
                possible_loss_bytes: winner.possible_loss_bytes,
                at: now.wall,
                at_ms: self.context.clock.now().monotonic_ms,
                promoted_at_ms: None,
            });
        }
        if let Some(request) = &winner.forced {
            self.drop_request(request).await;
        }
        let change = RoleChange { pod: winner.pod.clone(), uid: winner.pod_uid, role: Some(ROLE_PRIMARY) };
        if self.await_promotion(&change, next.term).await? {
            self.note_completed(memory);
            self.route(&change).await?;
            self.note_completed(memory);
            self.done.note = None;
            self.done.requeue_after_ms = AT_ONCE_MS;
        } else {
            self.done.note =
                Some(format!("failover: {} was chosen for term {} and has not taken over yet", winner.pod, next.term));
            self.done.requeue_after_ms = POLL_MS / 4;
        }
        Ok(())
    }

    async fn route(&mut self, change: &RoleChange) -> Result<(), ExecuteError> {
        // Of a planned change the old primary still has its label.
        let mut others = decide_unrouted(self.observed, None);
        others.retain(|other| other.pod != change.pod);
        self.change_roles(&others).await?;
        self.change_role(change).await
    }

    /// True once the winner takes writes in this term. False when it failed, fell silent, or took too long.
    ///
    /// It is routed to while it is being promoted: then it refuses clients, and the nodes learn where the Service leads
    /// meanwhile.
    async fn await_promotion(&mut self, winner: &RoleChange, term: Term) -> Result<bool, ExecuteError> {
        let (pod, uid) = (winner.pod.as_str(), winner.uid.as_str());
        let Some(address) = self.observed.pod(pod).and_then(|pod| pod.address(self.cluster)) else { return Ok(false) };
        let started = Instant::now();
        let (mut answered, mut promoted_at) = (started, None::<Instant>);
        while started.elapsed() < Duration::from_millis(PROMOTION_MS) {
            match self.agents.status(&address).await {
                Ok(status) if status.pod_uid == uid => {
                    answered = Instant::now();
                    let promoted = status.is_primary && status.term == term;
                    let (serves, failed) = (promoted && status.phase == Phase::Primary, status.phase == Phase::Failed);
                    let closed = status.term == term && status.phase == Phase::Promoting;
                    self.done.statuses.insert(pod.to_owned(), status);
                    if serves || failed {
                        return Ok(serves);
                    }
                    if closed {
                        self.route(winner).await?;
                    }
                    // It lets nobody in before its voters have what it had. They may need the next rounds for that: a
                    // replica that is to become a voter, for example.
                    if promoted && promoted_at.get_or_insert_with(Instant::now).elapsed() >= GATE {
                        return Ok(false);
                    }
                }
                Err(error) if answered.elapsed() >= SILENT => {
                    tracing::warn!(cluster = self.cluster.name, error = error.to_string(), "the winner fell silent");
                    return Ok(false);
                }
                _ => {}
            }
            sleep(POLL).await;
        }
        Ok(false)
    }
}

/// The register in which the winner holds the sealed term, with what the record of the failover needs. The winner writes its
/// address itself when it renews; those that are to follow it need not wait for that.
fn claimed_register(
    register: &Register,
    note: Option<FailoverNote>,
    winner: &Winner,
    address: Option<IpAddr>,
    now: Now,
) -> Register {
    let claimed = match winner.forced {
        None => register_claimed(register, &winner.pod, &winner.pod_uid, &winner.member),
        Some(_) => register_forced(register, &winner.pod, &winner.pod_uid, &winner.member),
    };
    let failover = note.map(|note| {
        let (kind, reason) = match winner.forced {
            None => (note.kind, note.reason),
            Some(_) => (FailoverKind::Forced, format!("{}; {FORCED}", note.reason)),
        };
        FailoverNote {
            kind,
            reason,
            claimed_at_ms: Some(now.wall.as_millisecond()),
            candidates: winner.candidates.iter().take(NOTED_CANDIDATES).cloned().collect(),
            possible_loss_bytes: Some(winner.possible_loss_bytes),
            again: came_to_nothing(register, &winner.member, winner.fork.parent_timeline),
            ..note
        }
    });
    let holder = claimed.holder.clone().map(|holder| Holder { address, ..holder });
    register_forked(Register { holder, failover, ..claimed }, winner.fork)
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::TimelineId;

    use super::*;
    use crate::controllers::postgres_cluster::observe::testing::{at, held_by_0, voters};

    #[test]
    fn a_holder_that_was_chosen_in_vain_and_is_chosen_again_is_noted() {
        let fork = |term| Fork { term: Term(term), parent_term: Term(0), parent_timeline: TimelineId(1) };
        let claimed = Register { timeline: None, seal_term: Term(2), ..held_by_0(voters(&[1, 2], 1)) };
        let note = FailoverNote {
            from: "shop-0".into(),
            reason: "why".into(),
            detect_ms: 0,
            began_at_ms: 0,
            claimed_at_ms: None,
            kind: FailoverKind::LeaseExpired,
            candidates: Vec::new(),
            possible_loss_bytes: None,
            again: false,
        };
        let again = |register: &Register, ordinal: u32| {
            let winner = Winner {
                pod: format!("shop-{ordinal}"),
                pod_uid: format!("u{ordinal}"),
                member: MemberId(format!("m{ordinal}")),
                fork: fork(2),
                candidates: Vec::new(),
                possible_loss_bytes: 0,
                forced: None,
            };
            claimed_register(register, Some(note.clone()), &winner, None, at(1)).failover.unwrap().again
        };
        let vain = register_forked(claimed.clone(), fork(1));
        assert!(again(&vain, 0));
        assert!(!again(&vain, 1), "somebody else");
        assert!(!again(&Register { timeline: Some(TimelineId(2)), ..vain }, 0), "it has led");
    }
}

//! The winner gets the role, is waited for, and is routed to.

use std::time::Duration;

use pgherd_core::{
    election::CandidateVerdict,
    failover::register_claimed,
    instance::Phase,
    lineage::{Fork, register_forked},
    register::{LeaseView, MemberId, Term},
};
use pgherd_crds::names::ROLE_PRIMARY;
use tokio::time::{Instant, sleep};

use super::{AT_ONCE_MS, ExecuteError, Round};
use crate::controllers::postgres_cluster::decide::{Claimed, Memory, POLL_MS, PROMOTION_MS, RoleChange};

/// How often the winner is asked whether it takes writes.
const POLL: Duration = Duration::from_millis(100);
/// A winner that does not answer for this long is left to the suspicion of the next rounds.
const SILENT: Duration = Duration::from_secs(5);

/// The outcome of the election.
pub(super) struct Winner {
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) member: MemberId,
    pub(super) fork: Fork,
    pub(super) candidates: Vec<CandidateVerdict>,
    pub(super) possible_loss_bytes: u64,
}

impl Round<'_> {
    /// Makes the winner the holder, wakes everybody, waits (bounded) until it takes writes, and routes to it.
    pub(super) async fn claim(
        &mut self,
        seen: &LeaseView,
        winner: Winner,
        memory: &mut Memory,
    ) -> Result<(), ExecuteError> {
        let claimed = register_claimed(&seen.register, &winner.pod, &winner.pod_uid, &winner.member);
        let next = register_forked(claimed, winner.fork);
        if self.replace_if_same(&seen.register, &next).await?.is_none() {
            self.done.requeue_after_ms = AT_ONCE_MS;
            return Ok(());
        }
        self.context.metrics.failovers.inc();
        let now = self.context.clock.now();
        tracing::warn!(cluster = self.cluster.name, winner = winner.pod, term = next.term.0, "failover decided");
        if let Some(failover) = memory.failover.as_mut() {
            failover.claimed = Some(Claimed {
                to: winner.pod.clone(),
                to_uid: winner.pod_uid.clone(),
                candidates: winner.candidates,
                possible_loss_bytes: winner.possible_loss_bytes,
                at: now.wall,
                at_ms: now.monotonic_ms,
                promoted_at_ms: None,
            });
        }
        self.wake_all().await;
        if self.await_promotion(&winner.pod, &winner.pod_uid, next.term).await {
            self.note_completed(memory);
            let change = RoleChange { pod: winner.pod.clone(), uid: winner.pod_uid, role: Some(ROLE_PRIMARY) };
            self.change_role(&change).await?;
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

    /// True once the winner takes writes in this term. False when it failed, fell silent, or took too long.
    async fn await_promotion(&mut self, pod: &str, uid: &str, term: Term) -> bool {
        let Some(address) = self.observed.pod(pod).and_then(|pod| pod.address(self.cluster)) else { return false };
        let started = Instant::now();
        let mut answered = started;
        while started.elapsed() < Duration::from_millis(PROMOTION_MS) {
            match self.agents.status(&address).await {
                Ok(status) if status.pod_uid == uid => {
                    answered = Instant::now();
                    let (serves, failed) = (status.is_primary && status.term == term, status.phase == Phase::Failed);
                    self.done.statuses.insert(pod.to_owned(), status);
                    if serves || failed {
                        return serves;
                    }
                }
                Err(error) if answered.elapsed() >= SILENT => {
                    tracing::warn!(cluster = self.cluster.name, error = error.to_string(), "the winner fell silent");
                    return false;
                }
                _ => {}
            }
            sleep(POLL).await;
        }
        false
    }
}

//! Sealing: the register says that a higher term is coming, then every member is asked for its promise.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use kube::runtime::events::EventType;
use pgherd_core::{
    election::reach,
    failover::{Step, SuspicionReason, is_chosen_in_vain, register_sealed},
    instance::{SealReport, SealRequest},
    register::{FailoverKind, FailoverNote, LeaseView, Register, Term},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{ExecuteError, Round};
use crate::{
    controllers::postgres_cluster::{
        decide::{FailoverProgress, Memory, decide_failover_step},
        observe::ObservedPod,
    },
    kubernetes::agent_client::AgentCallError,
};

/// All promises together.
const SEALS_WITHIN: Duration = Duration::from_secs(12);
/// Once a quorum has promised: how long the rest has to show that it is further ahead. Nothing acknowledged depends on
/// it; it spares those that are ahead by what nobody was promised from being rewound.
const GRACE: Duration = Duration::from_millis(250);
/// Without a quorum every member that answers counts: above all the old primary, which has everything but may have to
/// recover first. Who is known to be ahead of those that have answered, and has yet to replay, is waited for to the end.
const GRACE_WITHOUT_QUORUM: Duration = Duration::from_secs(2);
/// With a quorum the old primary is asked only if the voters have not decided by then: starting it costs time that the
/// others need.
const HOLDER_LATER: Duration = Duration::from_millis(500);

impl Round<'_> {
    /// Writes `sealTerm`. The labels were removed before. None if the register changed since it was decided on: a
    /// holder that renewed is not suspected any more.
    pub(super) async fn seal_register(
        &mut self,
        seen: &LeaseView,
        reason: SuspicionReason,
        detect_ms: u64,
        memory: &mut Memory,
    ) -> Result<Option<LeaseView>, ExecuteError> {
        let now = self.context.clock.now();
        let planned = seen.register.handover.as_ref().filter(|_| reason == SuspicionReason::Released);
        // Of a planned change this is the time that the holder took to stop.
        let since = memory.handover_since_ms.filter(|_| planned.is_some());
        let note = FailoverNote {
            from: seen.register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default(),
            reason: planned.map_or_else(|| reason.to_string(), |handover| handover.reason.clone()),
            detect_ms: since.map_or(detect_ms, |since| now.monotonic_ms.saturating_sub(since)),
            began_at_ms: now.wall.as_millisecond(),
            claimed_at_ms: None,
            kind: if planned.is_some() { FailoverKind::Switchover } else { kind(reason) },
            candidates: Vec::new(),
            possible_loss_bytes: None,
            // Until it is known who is chosen now.
            again: is_chosen_in_vain(&seen.register),
        };
        let next = Register { failover: Some(note.clone()), ..register_sealed(&seen.register) };
        let written = match (reason, &self.observed.register) {
            (SuspicionReason::LeaseExpired, Some(stored)) => self.replace_exactly(&stored.clone(), &next).await?,
            _ => self.replace_if_same(&seen.register, &next).await?,
        };
        let Some(written) = written else { return Ok(None) };
        let FailoverNote { from, reason, detect_ms, kind, .. } = note;
        let text = format!(
            "{from} is given up as primary: {reason} (noticed for {detect_ms} ms); term {} begins",
            next.seal_term
        );
        tracing::warn!(cluster = self.cluster.name, note = text, "failover started");
        if kind != FailoverKind::Switchover {
            self.tell(EventType::Warning, "FailoverStarted", text);
        }
        let sealed_at_ms = now.monotonic_ms;
        memory.failover =
            Some(FailoverProgress { term: next.seal_term, from, reason, kind, detect_ms, sealed_at_ms, claimed: None });
        Ok(Some(written))
    }

    /// Asks all at once, and stops as soon as waiting longer cannot change who wins, or is not worth it. Returns the
    /// promises and the step that follows from them.
    pub(super) async fn collect_seals(
        &self,
        term: Term,
        pods: &[String],
        seen: &LeaseView,
        memory: &Memory,
    ) -> (Vec<SealReport>, Step) {
        let request = SealRequest { term };
        let by_quorum = seen.register.quorum.acks > 0;
        let is_holder = |pod: &str| seen.register.holder.as_ref().is_some_and(|holder| holder.pod == pod);
        let addresses: Vec<_> = pods.iter().filter_map(|pod| self.observed.pod(pod)?.address(self.cluster)).collect();
        let mut waiting: BTreeSet<String> = addresses.iter().map(|address| address.pod.clone()).collect();
        let mut pending: FuturesUnordered<_> = addresses
            .into_iter()
            .map(|address| {
                let (agents, request, is_holder) = (self.agents.clone(), request.clone(), is_holder(&address.pod));
                async move {
                    if is_holder && by_quorum {
                        sleep(HOLDER_LATER).await;
                    }
                    let answer = agents.seal(&address, &request).await;
                    (address.pod, answer)
                }
            })
            .collect();
        let latest = Instant::now() + SEALS_WITHIN;
        let (mut deadline, mut grace_ends) = (latest, None);
        let mut reports = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = pending.next() => answer,
                () = sleep_until(deadline) => None,
            };
            let Some((asked, answer)) = answer else { break };
            waiting.remove(&asked);
            reports.extend(promised(answer, term));
            let Step::Claim { pod, .. } = self.step_with(seen, &reports, memory) else { continue };
            let mut others = waiting.iter().filter(|pod| !is_holder(pod)).peekable();
            if others.peek().is_none() && (by_quorum || has_everything(seen, &reports, &pod)) {
                break;
            }
            let grace = if by_quorum { GRACE } else { GRACE_WITHOUT_QUORUM };
            let grace_ends = *grace_ends.get_or_insert_with(|| Instant::now() + grace);
            let best = reports.iter().find(|report| report.pod == pod);
            let is_worth_it = !by_quorum && best.is_some_and(|best| others.any(|pod| self.was_ahead(pod, best)));
            deadline = if is_worth_it { latest } else { latest.min(grace_ends) };
        }
        let next = self.step_with(seen, &reports, memory);
        (reports, next)
    }

    /// When it was last asked, this pod had WAL that the other one does not have.
    fn was_ahead(&self, pod: &str, of: &SealReport) -> bool {
        let Some(status) = self.observed.pod(pod).and_then(ObservedPod::status) else { return false };
        let timeline = status.history.as_ref().map(|history| history.timeline);
        (timeline, status.received_lsn.max(status.replayed_lsn)) > (Some(of.history.timeline), reach(of))
    }

    fn step_with(&self, seen: &LeaseView, reports: &[SealReport], memory: &Memory) -> Step {
        self.next_step(Some(seen), Some(reports), memory)
    }

    pub(super) fn next_step(&self, lease: Option<&LeaseView>, reports: Option<&[SealReport]>, memory: &Memory) -> Step {
        match (lease, memory.observation.as_ref()) {
            (Some(lease), Some(observation)) => {
                decide_failover_step(self.cluster, lease, self.observed, observation, reports)
            }
            _ => Step::Nothing,
        }
    }
}

/// The report of a member that has promised this term.
fn promised(answer: Result<SealReport, AgentCallError>, term: Term) -> Option<SealReport> {
    match answer {
        Ok(report) if report.sealed_term == term => return Some(report),
        Ok(report) => {
            tracing::warn!(pod = report.pod, promised = report.sealed_term.0, term = term.0, "promised another term");
        }
        Err(error) => tracing::warn!(error = error.to_string(), "not sealed"),
    }
    None
}

/// After a planned stop the Lease tells where the old primary's WAL ended: who reaches that far has all of it.
fn has_everything(seen: &LeaseView, reports: &[SealReport], winner: &str) -> bool {
    let planned = seen.register.handover.is_some() && seen.register.released;
    planned && reports.iter().any(|report| report.pod == winner && reach(report) >= seen.position.flushed)
}

fn kind(reason: SuspicionReason) -> FailoverKind {
    match reason {
        SuspicionReason::Released => FailoverKind::Released,
        SuspicionReason::LeaseExpired => FailoverKind::LeaseExpired,
        SuspicionReason::HolderPodGone => FailoverKind::PodGone,
        // Of what is left, nobody hears the holder.
        _ => FailoverKind::Silent,
    }
}

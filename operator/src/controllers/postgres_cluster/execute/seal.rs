//! Sealing: the register says that a higher term is coming, then every member is asked for its promise.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use kube::runtime::events::EventType;
use pgherd_core::{
    failover::{Step, SuspicionReason, register_sealed},
    instance::{SealReport, SealRequest},
    register::{LeaseView, Term},
};
use tokio::time::{Instant, sleep_until};

use super::{ExecuteError, Round};
use crate::{
    controllers::postgres_cluster::decide::{FailoverProgress, Memory, decide_failover_step},
    kubernetes::events::publish,
};

/// All promises together.
const SEALS_WITHIN: Duration = Duration::from_secs(12);
/// Once a quorum has promised: how long the rest has to show that it is further ahead.
const GRACE: Duration = Duration::from_secs(1);
/// Without a quorum every member that answers counts, so those that answered a moment ago are waited for longer.
const GRACE_WITHOUT_QUORUM: Duration = Duration::from_secs(5);

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
        let next = register_sealed(&seen.register);
        let written = match (reason, &self.observed.register) {
            (SuspicionReason::LeaseExpired, Some(stored)) => self.replace_exactly(&stored.clone(), &next).await?,
            _ => self.replace_if_same(&seen.register, &next).await?,
        };
        let Some(written) = written else { return Ok(None) };
        let from = seen.register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default();
        let note = format!(
            "{from} is given up as primary: {reason} (noticed for {detect_ms} ms); term {} begins",
            next.seal_term
        );
        tracing::warn!(cluster = self.cluster.name, note, "failover started");
        publish(self.context, &self.cluster.reference, EventType::Warning, "FailoverStarted", "Failover", &note).await;
        memory.failover = Some(FailoverProgress {
            term: next.seal_term,
            from,
            reason: reason.to_string(),
            detect_ms,
            sealed_at_ms: self.context.clock.now().monotonic_ms,
            claimed: None,
        });
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
        let addresses = pods.iter().filter_map(|pod| self.observed.pod(pod)?.address(self.cluster));
        let mut pending: FuturesUnordered<_> = addresses
            .map(|address| {
                let (agents, request) = (self.agents.clone(), request.clone());
                async move { agents.seal(&address, &request).await }
            })
            .collect();
        let grace = if seen.register.quorum.acks > 0 { GRACE } else { GRACE_WITHOUT_QUORUM };
        let mut deadline = Instant::now() + SEALS_WITHIN;
        let mut reports = Vec::new();
        let mut decided = false;
        loop {
            let answer = tokio::select! {
                answer = pending.next() => answer,
                () = sleep_until(deadline) => None,
            };
            match answer {
                Some(Ok(report)) if report.sealed_term == term => reports.push(report),
                Some(Ok(report)) => {
                    tracing::warn!(
                        pod = report.pod,
                        promised = report.sealed_term.0,
                        term = term.0,
                        "promised another term"
                    );
                }
                Some(Err(error)) => tracing::warn!(error = error.to_string(), "not sealed"),
                None => break,
            }
            if !decided && matches!(self.step_with(seen, &reports, memory), Step::Claim { .. }) {
                decided = true;
                deadline = deadline.min(Instant::now() + grace);
            }
        }
        let next = self.step_with(seen, &reports, memory);
        (reports, next)
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

//! What failure detection carries from round to round, and the failover that is under way. Losing it costs time and
//! numbers in the status, never safety.

use jiff::Timestamp;
use pgherd_core::{
    election::CandidateVerdict,
    failover::Observation,
    register::{LeaseView, Term},
};
use pgherd_crds::v1alpha1::postgres_cluster::LastFailover;

use crate::{context::Now, controllers::postgres_cluster::observe::Observed};

/// Of one cluster.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when the Lease has not changed, and who has not answered for how long.
    pub observation: Option<Observation>,
    /// The register's term, and when it was first seen (milliseconds of the monotonic clock).
    pub term_since: Option<(Term, u64)>,
    /// The failover that is under way.
    pub failover: Option<FailoverProgress>,
    /// The last failover that was completed here.
    pub last_failover: Option<LastFailover>,
}

/// A failover that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverProgress {
    /// The term that it seals for.
    pub term: Term,
    /// The old primary's pod.
    pub from: String,
    /// Why it was given up.
    pub reason: String,
    /// From the first sign to the suspicion, in milliseconds.
    pub detect_ms: u64,
    /// When sealing began, in milliseconds of the monotonic clock.
    pub sealed_at_ms: u64,
    /// The winner, once there is one.
    pub claimed: Option<Claimed>,
}

/// The outcome of the election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The winner's pod.
    pub to: String,
    /// Its UID.
    pub to_uid: String,
    /// Everyone that was looked at.
    pub candidates: Vec<CandidateVerdict>,
    /// Bytes that may be lost.
    pub possible_loss_bytes: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// The same in milliseconds of the monotonic clock.
    pub at_ms: u64,
    /// When the winner took writes, in milliseconds of the monotonic clock.
    pub promoted_at_ms: Option<u64>,
}

impl Memory {
    /// Takes in what this round saw.
    pub fn observe(&mut self, lease: &LeaseView, observed: &Observed, now: Now) {
        let pods = observed.views();
        let read_at_ms = if observed.read_at_ms > 0 { observed.read_at_ms } else { now.monotonic_ms };
        self.observation = Some(Observation::update(self.observation.as_ref(), read_at_ms, &lease.version, &pods));
        let register = &lease.register;
        if self.term_since.is_none_or(|(term, _)| term != register.term) {
            self.term_since = Some((register.term, now.monotonic_ms));
        }
        let outdated =
            |failover: &FailoverProgress| failover.term < register.term || failover.term > register.seal_term;
        if self.failover.as_ref().is_some_and(outdated) {
            self.failover = None;
        }
        if register.is_sealing() && self.failover.is_none() {
            // Another replica of the operator began it, or this one before a restart.
            self.failover = Some(FailoverProgress {
                term: register.seal_term,
                from: register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default(),
                reason: "begun by another replica of the operator, or before the operator restarted".to_owned(),
                detect_ms: 0,
                sealed_at_ms: now.monotonic_ms,
                claimed: None,
            });
        }
    }

    /// For how long a pod's agent has not answered, in milliseconds.
    #[must_use]
    pub fn unreachable_ms(&self, pod: &str) -> Option<u64> {
        self.observation.as_ref()?.unreachable_ms(pod)
    }
}

impl FailoverProgress {
    /// The record for the status, once the winner took writes and `<cluster>-rw` leads to it.
    #[must_use]
    pub fn completed(&self, routed_at_ms: u64) -> Option<LastFailover> {
        let claimed = self.claimed.as_ref()?;
        let promoted_at_ms = claimed.promoted_at_ms?;
        let span = |from: u64, to: u64| i64::try_from(to.saturating_sub(from)).unwrap_or(i64::MAX);
        Some(LastFailover {
            from: self.from.clone(),
            to: claimed.to.clone(),
            reason: self.reason.clone(),
            term: self.term.0,
            at: claimed.at.to_string(),
            candidates: claimed.candidates.iter().map(render_candidate).collect(),
            detect_ms: span(0, self.detect_ms),
            seal_ms: span(self.sealed_at_ms, claimed.at_ms),
            promote_ms: span(claimed.at_ms, promoted_at_ms),
            route_ms: span(promoted_at_ms, routed_at_ms),
            possible_loss_bytes: i64::try_from(claimed.possible_loss_bytes).unwrap_or(i64::MAX),
        })
    }
}

fn render_candidate(verdict: &CandidateVerdict) -> pgherd_crds::v1alpha1::postgres_cluster::FailoverCandidate {
    pgherd_crds::v1alpha1::postgres_cluster::FailoverCandidate {
        pod: verdict.pod.clone(),
        timeline: verdict.timeline.map(|timeline| timeline.0),
        lsn: verdict.lsn.map(|lsn| lsn.to_string()),
        why: verdict.why.clone(),
    }
}

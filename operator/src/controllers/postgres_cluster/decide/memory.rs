//! What failure detection carries from round to round, and the failover that is under way. Losing it costs time and
//! numbers in the status, never safety.

use jiff::Timestamp;
use pgherd_core::{
    election::CandidateVerdict,
    failover::Observation,
    preferred::Attendance,
    register::{FailoverKind, FailoverNote, LeaseView, Register, Term},
};
use pgherd_crds::v1alpha1::postgres_cluster::LastFailover;

use super::restore::RestoreMemory;
use crate::{context::Now, controllers::postgres_cluster::observe::Observed};

/// A failover that ended longer ago than this, in milliseconds, is not put on record any more: its times can't be told.
const RECORDED_WITHIN_MS: i64 = 600_000;

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
    /// Since when the register asks the holder to stop (milliseconds of the monotonic clock).
    pub handover_since_ms: Option<u64>,
    /// The planned change of the primary that waits, and since when.
    pub waiting: Option<(String, u64)>,
    /// Since when the primary's node is being drained without another primary.
    pub drain_since_ms: Option<u64>,
    /// Which voters are missing, for mode `Preferred`.
    pub attendance: Attendance,
    /// What an instance said to a restore in place.
    pub restore: Option<RestoreMemory>,
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
    /// The same for metrics.
    pub kind: FailoverKind,
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
    }

    /// Takes up a failover that another replica of the operator began, or this one before a restart: from the note in the
    /// register. `published` is the term of the last failover in the status.
    pub fn resume(&mut self, register: &Register, published: Option<u64>, now: Now) {
        let recorded = self.last_failover.as_ref().map(|record| record.term).max(published);
        if self.failover.is_some() || recorded.is_some_and(|term| term >= register.seal_term.0) {
            return;
        }
        if register.is_sealing() {
            let from = register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default();
            let note = register.failover.clone().filter(|note| note.claimed_at_ms.is_none());
            self.failover = Some(resumed(register.seal_term, note.unwrap_or_else(|| unnoted(from, now)), now));
        } else if let Some(progress) = claimed(register, now) {
            self.failover = Some(progress);
        }
    }

    /// For how long this has been waited for, in milliseconds, from when it was asked for the first time in a row.
    pub fn waited_ms(&mut self, what: &str, now: Now) -> u64 {
        let since = self.waiting.take().filter(|(known, _)| known == what).map_or(now.monotonic_ms, |(_, since)| since);
        self.waiting = Some((what.to_owned(), since));
        now.monotonic_ms.saturating_sub(since)
    }

    /// For how long a pod's agent has not answered, in milliseconds.
    #[must_use]
    pub fn unreachable_ms(&self, pod: &str) -> Option<u64> {
        self.observation.as_ref()?.unreachable_ms(pod)
    }
}

impl FailoverProgress {
    /// What the register is to say of it.
    #[must_use]
    pub fn note(&self, now: Now) -> FailoverNote {
        let ago = i64::try_from(now.monotonic_ms.saturating_sub(self.sealed_at_ms)).unwrap_or(0);
        FailoverNote {
            reason: self.reason.clone(),
            kind: self.kind,
            detect_ms: self.detect_ms,
            began_at_ms: now.wall.as_millisecond().saturating_sub(ago),
            ..unnoted(self.from.clone(), now)
        }
    }

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
            forced: (self.kind == FailoverKind::Forced).then_some(true),
            divergent_bytes: None,
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

/// A time of the note on the monotonic clock of this process. Clocks of people are good enough for the record.
fn monotonic(at_ms: i64, now: Now) -> u64 {
    let ago = now.wall.as_millisecond().saturating_sub(at_ms);
    now.monotonic_ms.saturating_sub(u64::try_from(ago).unwrap_or(0))
}

fn unnoted(from: String, now: Now) -> FailoverNote {
    FailoverNote {
        from,
        reason: "the register does not say why".to_owned(),
        detect_ms: 0,
        began_at_ms: now.wall.as_millisecond(),
        claimed_at_ms: None,
        kind: FailoverKind::Unknown,
        candidates: Vec::new(),
        possible_loss_bytes: None,
        again: false,
    }
}

fn resumed(term: Term, note: FailoverNote, now: Now) -> FailoverProgress {
    FailoverProgress {
        term,
        sealed_at_ms: monotonic(note.began_at_ms, now),
        from: note.from,
        reason: note.reason,
        kind: note.kind,
        detect_ms: note.detect_ms,
        claimed: None,
    }
}

/// The failover whose winner the register names, as long as it is not too old to tell its times.
fn claimed(register: &Register, now: Now) -> Option<FailoverProgress> {
    let (note, holder) = (register.failover.clone()?, register.holder.as_ref()?);
    let claimed_at_ms = note.claimed_at_ms?;
    let at_ms = monotonic(claimed_at_ms, now);
    let age_ms = now.wall.as_millisecond().saturating_sub(claimed_at_ms);
    let claimed = Claimed {
        to: holder.pod.clone(),
        to_uid: holder.pod_uid.clone(),
        candidates: note.candidates.clone(),
        possible_loss_bytes: note.possible_loss_bytes.unwrap_or(0),
        at: Timestamp::from_millisecond(claimed_at_ms).unwrap_or(now.wall),
        at_ms,
        promoted_at_ms: None,
    };
    // Another operator's clock may be ahead of this one's.
    (age_ms < RECORDED_WITHIN_MS)
        .then(|| FailoverProgress { claimed: Some(claimed), ..resumed(register.term, note, now) })
}

//! A cluster `shop` made by hand, as a round would see it: a register, pods and what their agents say.

use jiff::Timestamp;
use pgherd_core::{
    failover::Probe,
    instance::{AppliedQuorum, InstanceStatus, Phase, Receiver, SealReport, Standby},
    lsn::Lsn,
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};

use super::{Observed, ObservedClaim, ObservedPod};
use crate::{context::Now, kubernetes::register::stored_for_test};

pub(crate) const SYSTEM: &str = "7300000000000000001";

/// `ms` after the start of the clock.
pub(crate) fn at(ms: u64) -> Now {
    Now { wall: Timestamp::from_millisecond(1_700_000_000_000 + ms as i64).unwrap(), monotonic_ms: ms }
}

pub(crate) fn pod_name(ordinal: u32) -> String {
    format!("shop-{ordinal}")
}

pub(crate) fn voter(ordinal: u32) -> Voter {
    Voter { member: MemberId(format!("m{ordinal}")), pod: pod_name(ordinal) }
}

pub(crate) fn voters(ordinals: &[u32], acks: u32) -> VoterSet {
    VoterSet { voters: ordinals.iter().map(|ordinal| voter(*ordinal)).collect(), acks }
}

/// The register of term 1 held by shop-0, with these voters.
pub(crate) fn held_by_0(quorum: VoterSet) -> Register {
    let holder = Holder {
        pod: pod_name(0),
        pod_uid: "u0".into(),
        boot_nonce: String::new(),
        address: None,
        member: Some(MemberId("m0".into())),
    };
    Register {
        term: Term(1),
        seal_term: Term(1),
        holder: Some(holder),
        timeline: Some(TimelineId(1)),
        system_id: Some(SYSTEM.into()),
        quorum,
        ..Register::default()
    }
}

/// An agent that has nothing yet.
pub(crate) fn empty_agent(ordinal: u32) -> InstanceStatus {
    InstanceStatus {
        pod: pod_name(ordinal),
        pod_uid: format!("u{ordinal}"),
        boot_nonce: "n".into(),
        member: None,
        phase: Phase::Waiting,
        message: String::new(),
        system_id: None,
        server_version: None,
        postgres_up: false,
        is_primary: false,
        term: Term(0),
        sealed_term: Term(0),
        history: None,
        received_lsn: Lsn::ZERO,
        replayed_lsn: Lsn::ZERO,
        receiver: None,
        standbys: Vec::new(),
        applied_quorum: None,
        source: None,
        progress: None,
        archive: Default::default(),
        vouch: None,
        admits_clients: false,
        cancelled_waits: 0,
        pending_restart: Vec::new(),
        refused_parameters: Vec::new(),
        stale_collations: None,
        weak_commits: None,
        silence: None,
        divergent: None,
    }
}

/// A replica that streams.
pub(crate) fn replica(ordinal: u32) -> InstanceStatus {
    InstanceStatus {
        member: Some(MemberId(format!("m{ordinal}"))),
        phase: Phase::Replica,
        system_id: Some(SYSTEM.into()),
        server_version: Some(170_011),
        postgres_up: true,
        term: Term(1),
        history: Some(TimelineHistory::root(TimelineId(1))),
        received_lsn: Lsn(0x300_0000),
        replayed_lsn: Lsn(0x300_0000),
        receiver: Some(Receiver { streaming: true, silent_ms: 10, upstream: pod_name(0) }),
        ..empty_agent(ordinal)
    }
}

/// The primary of term 1, which streams to these members and runs with this quorum.
pub(crate) fn primary(ordinal: u32, standbys: &[u32], quorum: &VoterSet) -> InstanceStatus {
    let standby = |ordinal: &u32| Standby {
        member: MemberId(format!("m{ordinal}")),
        term: Some(Term(1)),
        state: "streaming".into(),
        flush_lsn: Lsn(0x300_0000),
        replay_lsn: Lsn(0x300_0000),
    };
    InstanceStatus {
        phase: Phase::Primary,
        is_primary: true,
        admits_clients: true,
        receiver: None,
        standbys: standbys.iter().map(standby).collect(),
        applied_quorum: Some(AppliedQuorum {
            voters: quorum.voters.iter().map(|voter| voter.member.clone()).collect(),
            acks: quorum.acks,
            barrier_passed: true,
        }),
        ..replica(ordinal)
    }
}

/// A pod whose agent says this; None for an agent that does not answer.
pub(crate) fn pod(ordinal: u32, role: Option<&str>, status: Option<InstanceStatus>) -> ObservedPod {
    ObservedPod {
        name: pod_name(ordinal),
        uid: format!("u{ordinal}"),
        ordinal,
        node: Some(format!("node-{ordinal}")),
        role: role.map(str::to_owned),
        ip: Some([10, 0, 0, ordinal as u8].into()),
        ready: status.is_some(),
        terminating: false,
        problem: None,
        revision: Some("r1".to_owned()),
        probe: status.map_or(Probe::Unreachable, |status| Probe::Reachable(Box::new(status))),
        unreachable_why: None,
    }
}

/// A round at `now` that read this register at this version.
pub(crate) fn observed(now: Now, register: &Register, version: &str, pods: Vec<ObservedPod>) -> Observed {
    let stored = stored_for_test(register, version, Lsn(0x300_0000), at(0).wall);
    Observed { register: Some(stored), read_at_ms: now.monotonic_ms, pods, ..Observed::default() }
}

/// shop-0 is the primary, shop-1 and shop-2 stream, all are routed and vote.
pub(crate) fn settled(now: Now, version: &str, acks: u32) -> Observed {
    let quorum = voters(&[1, 2], acks);
    let pods = vec![
        pod(0, Some("primary"), Some(primary(0, &[1, 2], &quorum))),
        pod(1, Some("replica"), Some(replica(1))),
        pod(2, Some("replica"), Some(replica(2))),
    ];
    observed(now, &held_by_0(quorum), version, pods)
}

/// A claim made this many milliseconds after the Lease.
pub(crate) fn claim(after_ms: i64) -> ObservedClaim {
    let created = Timestamp::from_millisecond(at(0).wall.as_millisecond() + after_ms).unwrap();
    ObservedClaim { created_at: Some(created) }
}

/// What a sealed replica reports for term 2.
pub(crate) fn sealed(ordinal: u32, lsn: u64) -> SealReport {
    SealReport {
        member: MemberId(format!("m{ordinal}")),
        pod: pod_name(ordinal),
        sealed_term: Term(2),
        term: Term(1),
        history: TimelineHistory::root(TimelineId(1)),
        received_lsn: Lsn(lsn),
        replayed_lsn: Lsn(lsn),
    }
}

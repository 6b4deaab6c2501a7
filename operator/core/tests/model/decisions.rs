//! The questions to the real decisions of `pgherd_core`, and their answers, in the model's small types. What was asked before
//! is remembered: the decisions are pure.

use std::{cell::RefCell, collections::BTreeMap, collections::HashMap};

use pgherd_core::{
    election::ElectionRules,
    failover::{
        FailoverInput, Observation, PodView, Probe, Step, decide_step, register_claimed, register_observed,
        register_regranted, register_sealed,
    },
    instance::{AppliedQuorum, InstanceStatus, SealReport, Timings},
    lineage::{Fork, register_forked},
    lsn::Lsn,
    quorum::{Membership, Quorums, commit_pending, plan_voters},
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};

use super::state::{Answer, COPIES, Id, PODS, Reg, Set, TERMS, pod_of};

/// One question, complete: equal questions have equal answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// The Lease has run out, early or not, and these members answer.
    Suspected { register: Reg, answering: [Option<Id>; PODS] },
    /// Sealing has begun and these reports came back. The election is held over the first register, which only a switched
    /// off rule makes another one than the second.
    Sealed { elected_over: Reg, register: Reg, reports: [Option<Answer>; PODS] },
    /// The holder serves on this timeline.
    Serving { register: Reg, timeline: u8 },
    /// The holder applies this set.
    Applied { register: Reg, applied: Set, passed: bool },
    /// These members stream, and these are there.
    Members { register: Reg, streaming: u16, present: u16, desired: u8 },
}

thread_local! {
    static KNOWN: RefCell<HashMap<Question, Option<Reg>>> = RefCell::default();
}

/// The register to write; None when there is nothing to write, or when the failover is blocked.
pub(crate) fn decide(question: Question) -> Option<Reg> {
    KNOWN.with_borrow_mut(|known| *known.entry(question).or_insert_with(|| ask(question)))
}

fn ask(question: Question) -> Option<Reg> {
    let next = match question {
        Question::Suspected { register, answering } => suspected(&from(register), answering)?,
        Question::Sealed { elected_over, register, reports } => {
            let Step::Claim { pod, pod_uid, member, fork, .. } = elected(&from(elected_over), reports) else {
                return None;
            };
            register_forked(register_claimed(&from(register), &pod, &pod_uid, &member), fork)
        }
        Question::Serving { register, timeline } => register_observed(&from(register), &serving(register, timeline))?,
        Question::Applied { register, applied, passed } => {
            let voters = voters(applied.voters).map(|voter| voter.member).collect();
            let applied = AppliedQuorum { voters, acks: u32::from(applied.acks), barrier_passed: passed };
            let register = from(register);
            with_quorums(commit_pending(&register, &applied)?, register)
        }
        Question::Members { register, streaming, present, desired } => {
            let (streaming, present): (Vec<_>, Vec<_>) = (voters(streaming).collect(), voters(present).collect());
            let members = Membership { streaming: &streaming, present: &present, removed_pods: &[] };
            let register = from(register);
            with_quorums(plan_voters(&register, &members, u32::from(desired))?, register)
        }
    };
    Some(into(&next))
}

fn with_quorums(quorums: Quorums, register: Register) -> Register {
    Register { quorum: quorums.quorum, pending: quorums.pending, ..register }
}

fn suspected(register: &Register, answering: [Option<Id>; PODS]) -> Option<Register> {
    let view = |(pod, id): (usize, &Option<Id>)| {
        let probe = match id {
            Some(id) => Probe::Reachable(Box::new(status(*id, register.term, false))),
            None => Probe::Unreachable,
        };
        (pod_name(pod), PodView { uid: uid(pod), probe })
    };
    let pods: BTreeMap<String, PodView> = answering.iter().enumerate().map(view).collect();
    match step(register, &pods, None) {
        Step::Seal { term, .. } => {
            let sealed = register_sealed(register);
            assert_eq!(sealed.seal_term, term, "the step and the register agree");
            Some(sealed)
        }
        Step::Regrant { pod, pod_uid, .. } => Some(register_regranted(register, &pod, &pod_uid)),
        _ => None,
    }
}

fn elected(register: &Register, reports: [Option<Answer>; PODS]) -> Step {
    let view = |pod| (pod_name(pod), PodView { uid: uid(pod), probe: Probe::Unreachable });
    let pods = (0..PODS).map(view).collect();
    let reports: Vec<SealReport> = reports.iter().flatten().map(|answer| report(answer, register.seal_term)).collect();
    step(register, &pods, Some(&reports))
}

fn step(register: &Register, pods: &BTreeMap<String, PodView>, seals: Option<&[SealReport]>) -> Step {
    // Any time may have passed: safety must not rest on it.
    let long = 1_000_000;
    let unreachable_since_ms = pods.keys().map(|pod| (pod.clone(), 0)).collect();
    let observation =
        Observation { now_ms: long, lease_version: "v".to_owned(), lease_since_ms: 0, unreachable_since_ms };
    decide_step(&FailoverInput {
        register,
        observation: &observation,
        pods,
        routed_pods: &[],
        seals,
        timings: &Timings::default(),
        delay_ms: 0,
        rules: ElectionRules::default(),
    })
}

fn report(answer: &Answer, sealed_term: Term) -> SealReport {
    let position = Lsn(u64::from(answer.wal.len()));
    SealReport {
        member: member(answer.id),
        pod: pod_name(pod_of(answer.id)),
        sealed_term,
        term: Term(u64::from(answer.term)),
        history: answer.wal.history(),
        received_lsn: position,
        replayed_lsn: position,
    }
}

fn serving(register: Reg, timeline: u8) -> InstanceStatus {
    let history = Some(TimelineHistory::root(TimelineId(u32::from(timeline))));
    InstanceStatus { history, ..status(register.holder, Term(u64::from(register.term)), true) }
}

fn status(id: Id, term: Term, primary: bool) -> InstanceStatus {
    let (pod, phase) = (pod_of(id), if primary { "Primary" } else { "Replica" });
    let text = format!(
        r#"{{"pod":"{}","podUid":"{}","bootNonce":"n","member":"{}","phase":"{phase}","systemId":"7","postgresUp":true,
            "isPrimary":{primary},"term":{term},"sealedTerm":0}}"#,
        pod_name(pod),
        uid(pod),
        member(id)
    );
    serde_json::from_str(&text).expect("a status")
}

fn member(id: Id) -> MemberId {
    MemberId(format!("m{id:02}"))
}

fn id_of(member: &MemberId) -> Id {
    member.0[1..].parse().expect("a member of the model")
}

fn pod_name(pod: usize) -> String {
    format!("c-{pod}")
}

fn uid(pod: usize) -> String {
    format!("u{pod}")
}

fn voters(mask: u16) -> impl Iterator<Item = Voter> {
    let ids = 0..COPIES * u8::try_from(PODS).expect("few pods");
    ids.filter(move |id| mask & 1 << id != 0).map(|id| Voter { member: member(id), pod: pod_name(pod_of(id)) })
}

fn from(reg: Reg) -> Register {
    let set = |set: Set| VoterSet { voters: voters(set.voters).collect(), acks: u32::from(set.acks) };
    let pod = pod_of(reg.holder);
    let holder = Holder {
        pod: pod_name(pod),
        pod_uid: uid(pod),
        boot_nonce: if reg.taken_up { "n".to_owned() } else { String::new() },
        address: None,
        member: Some(member(reg.holder)),
    };
    Register {
        term: Term(u64::from(reg.term)),
        seal_term: Term(u64::from(reg.seal)),
        holder: Some(holder),
        released: reg.released,
        timeline: reg.timeline.map(|timeline| TimelineId(u32::from(timeline))),
        system_id: Some("7".to_owned()),
        quorum: set(reg.quorum),
        pending: reg.pending.map(set),
        forks: forks(reg.forks),
        ..Register::default()
    }
}

fn forks(known: [(u8, u8); TERMS]) -> Vec<Fork> {
    let claimed = (0_u64..).zip(known).filter(|(_, fork)| *fork != (0, 0));
    let fork = |(term, (parent_term, parent_timeline))| Fork {
        term: Term(term),
        parent_term: Term(u64::from(parent_term)),
        parent_timeline: TimelineId(u32::from(parent_timeline)),
    };
    claimed.map(fork).collect()
}

fn into(register: &Register) -> Reg {
    let small = |number: u64| u8::try_from(number).expect("small bounds");
    let set = |set: &VoterSet| Set {
        voters: set.voters.iter().fold(0, |mask, voter| mask | 1 << id_of(&voter.member)),
        acks: small(u64::from(set.acks)),
    };
    let holder = register.holder.as_ref().and_then(|holder| holder.member.as_ref()).expect("a holder");
    let mut forks = [(0, 0); TERMS];
    for fork in &register.forks {
        forks[usize::from(small(fork.term.0))] = (small(fork.parent_term.0), small(u64::from(fork.parent_timeline.0)));
    }
    Reg {
        term: small(register.term.0),
        seal: small(register.seal_term.0),
        holder: id_of(holder),
        released: register.released,
        taken_up: register.holder.as_ref().is_some_and(|holder| !holder.boot_nonce.is_empty()),
        timeline: register.timeline.map(|timeline| small(u64::from(timeline.0))),
        quorum: set(&register.quorum),
        pending: register.pending.as_ref().map(set),
        forks,
    }
}

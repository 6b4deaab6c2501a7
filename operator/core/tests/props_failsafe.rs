//! Properties of going on by promises, against the election itself: while the holder may go on, nobody else can be
//! elected by any answers of those who did not promise; and one promise fewer would not do.

use std::collections::BTreeSet;

use pgherd_core::{
    election::{Election, ElectionRules, elect},
    failsafe::{Failsafe, Promise, build_others, is_vouched_for, may_go_on},
    instance::{SealReport, Vouch},
    lsn::Lsn,
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};
use proptest::prelude::*;

const INSTANCES: u32 = 6;

fn member(ordinal: u32) -> MemberId {
    MemberId(format!("m{ordinal}"))
}

/// Any set of the six instances as voters, the holder c-0 among them too, and any W.
fn voter_set() -> impl Strategy<Value = VoterSet> {
    (prop::collection::btree_set(0..INSTANCES, 0..6), 0_u32..4).prop_map(|(ordinals, acks)| {
        let voter = |ordinal: u32| Voter { member: member(ordinal), pod: format!("c-{ordinal}") };
        VoterSet { voters: ordinals.into_iter().map(voter).collect(), acks }
    })
}

fn register() -> impl Strategy<Value = Register> {
    (voter_set(), prop::option::of(voter_set())).prop_map(|(quorum, pending)| Register {
        term: Term(3),
        seal_term: Term(3),
        holder: Some(Holder {
            pod: "c-0".into(),
            pod_uid: "u".into(),
            boot_nonce: "n".into(),
            address: None,
            member: Some(member(0)),
        }),
        quorum,
        pending,
        ..Register::default()
    })
}

fn vouch(ordinal: u32) -> Vouch {
    Vouch { term: Term(3), member: Some(member(ordinal)), remaining_ms: 10_000 }
}

fn goes_on(register: &Register, promising: &BTreeSet<u32>) -> bool {
    let promise = |ordinal: &u32| Promise { pod: format!("c-{ordinal}"), vouch: vouch(*ordinal) };
    let promises: Vec<Promise> = promising.iter().map(promise).collect();
    let others = build_others(register, "c", INSTANCES, &[], "c-0");
    may_go_on(&Failsafe { register, others: &others, promises: &promises, at_least_ms: 10_000 }).is_ok()
}

/// The election that these would be in, once the register is sealed.
fn is_elected(register: &Register, sealing: &BTreeSet<u32>, lsn: u64) -> bool {
    let sealed = Register { seal_term: Term(4), ..register.clone() };
    let report = |ordinal: &u32| SealReport {
        member: member(*ordinal),
        pod: format!("c-{ordinal}"),
        sealed_term: Term(4),
        term: Term(3),
        history: TimelineHistory::root(TimelineId(1)),
        received_lsn: Lsn(lsn + u64::from(*ordinal)),
        replayed_lsn: Lsn(lsn),
    };
    let reports: Vec<SealReport> = sealing.iter().map(report).collect();
    matches!(elect(&sealed, &reports, ElectionRules::default()), Election::Winner { .. })
}

/// Everybody but the holder and those who promised.
fn rest(promising: &BTreeSet<u32>) -> BTreeSet<u32> {
    (1..INSTANCES).filter(|ordinal| !promising.contains(ordinal)).collect()
}

fn others() -> impl Strategy<Value = BTreeSet<u32>> {
    prop::collection::btree_set(1..INSTANCES, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn while_the_holder_goes_on_nobody_else_can_be_elected(
        register in register(), promising in others(), answering in others(), lsn in 1_u64..100,
    ) {
        if goes_on(&register, &promising) {
            let sealing: BTreeSet<u32> = answering.intersection(&rest(&promising)).copied().collect();
            prop_assert!(!is_elected(&register, &sealing, lsn), "{register:?} {promising:?} {sealing:?}");
        }
    }

    #[test]
    fn more_promises_never_take_the_permission_away(register in register(), promising in others(), more in others()) {
        let all: BTreeSet<u32> = promising.union(&more).copied().collect();
        prop_assert!(!goes_on(&register, &promising) || goes_on(&register, &all));
    }

    #[test]
    fn a_holder_that_goes_on_is_vouched_for_in_the_eyes_of_the_operator(register in register(), promising in others()) {
        let vouches: Vec<Vouch> = promising.iter().map(|ordinal| vouch(*ordinal)).collect();
        let proper = register.quorum.acks as usize <= register.quorum.voters.len();
        let by_others = register.quorum.voters.iter().all(|voter| voter.member != member(0));
        if proper && by_others && !promising.is_empty() && goes_on(&register, &promising) {
            prop_assert!(is_vouched_for(&register, &vouches), "{register:?} {promising:?}");
        }
    }

    #[test]
    fn who_is_vouched_for_in_the_eyes_of_the_operator_cannot_be_replaced(
        register in register(), promising in others(), lsn in 1_u64..100,
    ) {
        let vouches: Vec<Vouch> = promising.iter().map(|ordinal| vouch(*ordinal)).collect();
        let with_quorum = register.quorum.acks > 0 && register.pending.as_ref().is_none_or(|set| set.acks > 0);
        if with_quorum && is_vouched_for(&register, &vouches) {
            prop_assert!(!is_elected(&register, &rest(&promising), lsn), "{register:?} {promising:?}");
        }
    }

    #[test]
    fn one_promise_fewer_than_w_would_let_another_one_be_elected(
        (voters, acks) in (1_u32..5).prop_flat_map(|voters| (Just(voters), 1..=voters)), lsn in 1_u64..100,
    ) {
        let voter = |ordinal: u32| Voter { member: member(ordinal), pod: format!("c-{ordinal}") };
        let quorum = VoterSet { voters: (1..=voters).map(voter).collect(), acks };
        let holder = Holder { pod: "c-0".into(), pod_uid: "u".into(), boot_nonce: "n".into(), address: None, member: Some(member(0)) };
        let register =
            Register { term: Term(3), seal_term: Term(3), holder: Some(holder), quorum, ..Register::default() };
        let enough: BTreeSet<u32> = (1..=acks).collect();
        let too_few: BTreeSet<u32> = (1..acks).collect();
        prop_assert!(goes_on(&register, &enough) && !goes_on(&register, &too_few));
        prop_assert!(!is_elected(&register, &rest(&enough), lsn) && is_elected(&register, &rest(&too_few), lsn));
    }
}

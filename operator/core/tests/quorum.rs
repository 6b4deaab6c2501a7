//! Voters and how they change, by example.
#![allow(clippy::cloned_ref_to_slice_refs, reason = "sets of one and of more voters read alike")]

use pgherd_core::{
    instance::AppliedQuorum,
    quorum::{
        Membership, Quorums, after_promotion, commit_pending, initial_quorum, parse_receiver_name, plan_voters, proves,
        receiver_name, synchronous_standby_names,
    },
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
};

fn member(name: &str) -> MemberId {
    MemberId(name.to_owned())
}

fn voter(pod: u32, name: &str) -> Voter {
    Voter { member: member(name), pod: format!("shop-{pod}") }
}

fn set(voters: &[Voter], acks: u32) -> VoterSet {
    VoterSet { voters: voters.to_vec(), acks }
}

fn register(quorum: VoterSet, pending: Option<VoterSet>) -> Register {
    let holder = Holder {
        pod: "shop-0".into(),
        pod_uid: "uid".into(),
        boot_nonce: "n".into(),
        address: None,
        member: Some(member("a")),
    };
    Register { term: Term(1), seal_term: Term(1), holder: Some(holder), quorum, pending, ..Register::default() }
}

fn planned(
    register: &Register,
    streaming: &[Voter],
    present: &[Voter],
    removed: &[&str],
    acks: u32,
) -> Option<Quorums> {
    let removed_pods: Vec<String> = removed.iter().map(|pod| (*pod).to_owned()).collect();
    plan_voters(register, &Membership { streaming, present, removed_pods: &removed_pods }, acks)
}

#[test]
fn the_sum_of_sealed_and_acknowledgements_must_exceed_the_voters() {
    assert!(proves(2, 1, 2) && proves(3, 2, 2) && proves(1, 1, 1));
    assert!(!proves(2, 1, 1) && !proves(3, 1, 2) && !proves(2, 0, 2));
}

#[test]
fn standby_names_are_quoted_and_never_too_few() {
    let two = [voter(1, "b"), voter(2, "it\"s")];
    let names = |set: &VoterSet| synchronous_standby_names(set, Term(7));
    assert_eq!(names(&set(&two, 0)), "");
    assert_eq!(names(&set(&two, 1)), r#"ANY 1 ("b/7", "it""s/7")"#);
    assert_eq!(names(&initial_quorum(1)), r#"ANY 1 ("pgherd_no_voter")"#);
    assert_eq!(names(&set(&two[..1], 3)), r#"ANY 3 ("b/7", "pgherd_no_voter", "pgherd_no_voter_1")"#);
}

#[test]
fn a_receiver_s_name_says_whose_it_is_and_in_which_term() {
    let b = member("b/1");
    assert_eq!(parse_receiver_name(&receiver_name(&b, Term(7))), (b, Some(Term(7))));
    for other in ["b", "b/", "b/x", ""] {
        assert_eq!(parse_receiver_name(other), (member(other), None));
    }
}

#[test]
fn a_streaming_replica_becomes_a_pending_voter_and_nothing_changes_after_that() {
    let (b, holder) = (voter(1, "b"), voter(0, "a"));
    let streaming = [b.clone(), holder];
    let next = planned(&register(initial_quorum(1), None), &streaming, &streaming, &[], 1).expect("a change");
    assert_eq!(next, Quorums { quorum: initial_quorum(1), pending: Some(set(std::slice::from_ref(&b), 1)) });
    assert_eq!(planned(&register(next.quorum, next.pending), &streaming, &streaming, &[], 1), None);
    assert_eq!(planned(&register(set(&[b], 1), None), &streaming, &streaming, &[], 1), None);
}

#[test]
fn an_unreachable_voter_stays_and_a_recloned_or_removed_one_goes() {
    let (b, c, d) = (voter(1, "b"), voter(2, "c"), voter(3, "d"));
    let committed = register(set(&[b.clone(), c.clone(), d], 1), None);
    assert_eq!(planned(&committed, &[], &[], &[], 1), None);
    let recloned = voter(2, "c2");
    let next =
        planned(&committed, &[recloned.clone()], &[b.clone(), recloned.clone()], &["shop-3"], 1).expect("a change");
    assert_eq!(next.pending, Some(set(&[b, recloned], 1)));
}

#[test]
fn a_change_under_way_is_waited_for_unless_it_cannot_pass() {
    let (b, c, e) = (voter(1, "b"), voter(2, "c"), voter(4, "e"));
    let changing = register(set(&[b.clone()], 1), Some(set(&[b.clone(), c.clone()], 1)));
    assert_eq!(planned(&changing, &[b.clone(), c.clone(), e.clone()], &[], &[], 1), None);
    let recloned = voter(2, "c2");
    let next = planned(&changing, &[], &[recloned], &[], 1).expect("a change");
    assert_eq!(next, Quorums { quorum: set(&[b.clone(), c], 1), pending: Some(set(&[b.clone()], 1)) });
    let short = register(set(&[b.clone()], 1), Some(set(&[b.clone()], 2)));
    let next = planned(&short, &[e.clone()], &[], &[], 2).expect("a change");
    assert_eq!(next, Quorums { quorum: set(&[b.clone()], 1), pending: Some(set(&[b, e], 2)) });
}

#[test]
fn a_change_whose_voters_do_not_stream_makes_way_for_replicas_that_do() {
    let (b, c, d) = (voter(1, "b"), voter(2, "c"), voter(3, "d"));
    let promoted = register(set(&[b.clone(), c.clone()], 1), Some(set(&[c.clone()], 1)));
    let next = planned(&promoted, &[d.clone()], &[c.clone(), d.clone()], &[], 1).unwrap();
    assert_eq!(next, Quorums { quorum: set(&[b, c.clone()], 1), pending: Some(set(&[c.clone(), d.clone()], 1)) });
    assert_eq!(planned(&promoted, &[], &[c.clone(), d.clone()], &[], 1), None, "nobody else streams");
    assert_eq!(planned(&promoted, &[c.clone(), d.clone()], &[c, d], &[], 1), None, "it will pass as it is");
}

#[test]
fn a_pending_set_is_committed_only_as_it_runs_and_past_its_barrier() {
    let (b, c) = (voter(1, "b"), voter(2, "c"));
    let changing = register(set(&[b.clone()], 1), Some(set(&[b.clone(), c.clone()], 1)));
    let applied = |names: &[&str], acks, barrier_passed| {
        let voters = names.iter().map(|name| member(name)).collect();
        commit_pending(&changing, &AppliedQuorum { voters, acks, barrier_passed })
    };
    assert_eq!(applied(&["c", "b"], 1, true), Some(Quorums { quorum: set(&[b, c], 1), pending: None }));
    assert_eq!(applied(&["b", "c"], 1, false), None);
    assert_eq!(applied(&["b"], 1, true), None);
    assert_eq!(applied(&["b", "c"], 2, true), None);
}

#[test]
fn after_a_promotion_the_old_voters_stay_to_be_proven_until_the_new_ones_have_caught_up() {
    let (b, c, d) = (voter(1, "b"), voter(2, "c"), voter(3, "d"));
    let next = after_promotion(&register(set(&[b.clone(), c.clone()], 1), None), &member("b"));
    assert_eq!(next, Quorums { quorum: set(&[b.clone(), c.clone()], 1), pending: Some(set(&[c.clone()], 1)) });
    let changing = register(set(&[b.clone(), c.clone()], 1), Some(set(&[c.clone(), d.clone()], 2)));
    let next = after_promotion(&changing, &member("b"));
    assert_eq!(next, Quorums { quorum: set(&[b, c.clone(), d.clone()], 1), pending: Some(set(&[c, d], 2)) });
}

#[test]
fn a_pending_way_back_to_off_takes_nothing_from_the_promise() {
    let b = voter(1, "b");
    let leaving = register(set(&[b.clone()], 1), Some(set(&[b.clone()], 0)));
    assert_eq!(after_promotion(&leaving, &member("z")).quorum, set(&[b], 1));
}

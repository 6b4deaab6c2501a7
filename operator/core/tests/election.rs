//! Elections by example: who wins, who is refused, and what people are told.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

use pgherd_core::{
    election::{Election, ElectionRules, elect},
    failover::register_claimed,
    instance::SealReport,
    lineage::{Fork, register_forked},
    lsn::Lsn,
    register::{Holder, MemberId, Position, Register, Term, Voter, VoterSet},
    timeline::{HistoryEntry, TimelineHistory, TimelineId},
};

fn member(ordinal: u32) -> MemberId {
    MemberId(format!("member-{ordinal}"))
}

fn voter(ordinal: u32) -> Voter {
    Voter { member: member(ordinal), pod: format!("shop-{ordinal}") }
}

fn set(ordinals: &[u32], acks: u32) -> VoterSet {
    VoterSet { voters: ordinals.iter().map(|ordinal| voter(*ordinal)).collect(), acks }
}

/// shop-0 holds term 4, sealing for term 5 has begun.
fn register(quorum: VoterSet) -> Register {
    let holder = Holder {
        pod: "shop-0".into(),
        pod_uid: "uid-0".into(),
        boot_nonce: "n".into(),
        address: None,
        member: Some(member(0)),
    };
    Register {
        term: Term(4),
        seal_term: Term(5),
        holder: Some(holder),
        timeline: Some(TimelineId(3)),
        quorum,
        ..Register::default()
    }
}

fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
    let entry = |&(timeline, lsn)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
    TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.iter().map(entry).collect() }
}

fn report(ordinal: u32, lsn: u64) -> SealReport {
    SealReport {
        member: member(ordinal),
        pod: format!("shop-{ordinal}"),
        sealed_term: Term(5),
        term: Term(4),
        history: history(3, &[(1, 100), (2, 200)]),
        received_lsn: Lsn(lsn),
        replayed_lsn: Lsn(lsn),
    }
}

#[track_caller]
fn winner(register: &Register, reports: &[SealReport]) -> (String, Vec<(String, String)>) {
    match elect(register, reports, ElectionRules::default()) {
        Election::Winner { winner, candidates, .. } => {
            (winner.pod, candidates.into_iter().map(|c| (c.pod, c.why)).collect())
        }
        Election::Blocked { why, .. } => panic!("blocked: {why}"),
    }
}

#[track_caller]
fn blocked(register: &Register, reports: &[SealReport]) -> (Vec<String>, String) {
    match elect(register, reports, ElectionRules::default()) {
        Election::Blocked { missing, why, .. } => (missing.into_iter().map(|voter| voter.pod).collect(), why),
        Election::Winner { winner, .. } => panic!("{} won", winner.pod),
    }
}

fn pair(pod: &str, why: &str) -> (String, String) {
    (pod.to_owned(), why.to_owned())
}

#[test]
fn the_voter_that_is_furthest_ahead_wins_and_the_others_are_told_why_not() {
    let (pod, candidates) = winner(&register(set(&[1, 2], 1)), &[report(1, 1000), report(2, 1000 + 48 * 1024)]);
    assert_eq!(pod, "shop-2");
    assert_eq!(candidates, [pair("shop-2", "furthest ahead"), pair("shop-1", "48 KiB behind shop-2")]);
}

#[test]
fn without_a_quorum_nobody_wins_and_the_missing_voters_are_named() {
    let (missing, why) = blocked(&register(set(&[1, 2], 1)), &[report(2, 1000)]);
    assert_eq!(missing, ["shop-1"]);
    assert!(why.contains("1 of 2 registered voters") && why.contains("at least 2"), "{why}");
}

#[test]
fn the_former_holder_proves_everything_and_takes_over_again() {
    let (pod, candidates) = winner(&register(set(&[1, 2], 1)), &[report(0, 5000), report(2, 1000)]);
    assert_eq!(pod, "shop-0");
    assert_eq!(candidates.last(), Some(&pair("shop-1", "did not answer")));
}

#[test]
fn the_former_holder_stands_back_where_the_voters_prove_it_without_it() {
    let (pod, candidates) = winner(&register(set(&[1, 2], 1)), &[report(0, 5000), report(1, 4000), report(2, 4500)]);
    assert_eq!(pod, "shop-2");
    assert_eq!(candidates[1], pair("shop-0", "the former primary, 500 B away: the voters do without it"));
}

#[test]
fn a_holder_that_is_still_a_voter_of_its_own_election_is_not_done_without_by_its_own_vote() {
    let pending = Some(set(&[2], 1));
    let promoted = Register { pending, ..register(set(&[0, 2], 1)) };
    assert_eq!(winner(&promoted, &[report(0, 5000), report(2, 1000)]).0, "shop-0");
    assert_eq!(blocked(&promoted, &[report(2, 1000)]).0, ["shop-0"]);
}

#[test]
fn a_replica_that_is_no_voter_never_stands_with_a_quorum() {
    let (pod, candidates) = winner(&register(set(&[1], 1)), &[report(1, 1000), report(3, 9000)]);
    assert_eq!(pod, "shop-1");
    assert_eq!(candidates[1], pair("shop-3", "not a registered voter: it may miss acknowledged commits"));
}

#[test]
fn a_recloned_voter_has_forgotten_what_it_acknowledged() {
    let recloned = SealReport { member: MemberId("new".into()), ..report(1, 9000) };
    let (missing, _) = blocked(&register(set(&[1, 2], 1)), &[recloned, report(2, 1000)]);
    assert_eq!(missing, ["shop-1"]);
}

#[test]
fn a_promise_for_another_term_does_not_count() {
    let stale = SealReport { sealed_term: Term(4), ..report(1, 9000) };
    let (missing, _) = blocked(&register(set(&[1, 2], 1)), &[stale, report(2, 1000)]);
    assert_eq!(missing, ["shop-1"]);
}

#[test]
fn both_sets_must_be_proven_while_the_voters_change() {
    let changing = Register { pending: Some(set(&[2, 3], 1)), ..register(set(&[1, 2], 1)) };
    assert_eq!(blocked(&changing, &[report(1, 10), report(2, 20)]).0, ["shop-3"]);
    assert_eq!(winner(&changing, &[report(1, 10), report(2, 20), report(3, 30)]).0, "shop-3");
}

#[test]
fn a_branch_that_left_the_history_loses_however_far_it_got() {
    let strayed = SealReport { term: Term(3), history: history(2, &[(1, 100)]), ..report(1, 9000) };
    let (pod, candidates) = winner(&register(set(&[1, 2], 1)), &[strayed, report(2, 300)]);
    assert_eq!(pod, "shop-2");
    assert_eq!(candidates[1], pair("shop-1", "left the history of shop-2 at 0/C8"));
}

#[test]
fn the_same_timeline_number_of_an_abandoned_term_loses() {
    let phantom = SealReport { term: Term(3), ..report(1, 9000) };
    let (pod, candidates) = winner(&register(set(&[1, 2], 1)), &[phantom, report(2, 300)]);
    assert_eq!(pod, "shop-2");
    assert_eq!(candidates[1], pair("shop-1", "on a branch that was left: its timeline 3 is not that of term 4"));
}

#[test]
fn a_branch_that_was_left_loses_to_the_history_though_its_timeline_number_is_higher() {
    let left = SealReport { term: Term(2), history: history(2, &[(1, 100)]), ..report(1, 150) };
    let on_history = SealReport { term: Term(4), history: history(1, &[]), ..report(2, 120) };
    assert_eq!(winner(&register(set(&[1, 2], 1)), &[left, on_history]).0, "shop-2");
}

#[test]
fn of_an_abandoned_branch_the_part_before_it_counts() {
    let phantom = SealReport { term: Term(3), ..report(1, 9000) };
    let behind = |lsn| SealReport { history: history(2, &[(1, 100)]), ..report(2, lsn) };
    let register = with_two_timelines_3(register(set(&[1, 2], 1)));
    assert_eq!(winner(&register, &[phantom.clone(), behind(150)]).0, "shop-1");
    assert_eq!(winner(&register, &[phantom, behind(250)]).0, "shop-2");
}

/// The terms 3 and 4 were both claimed on timeline 2 and have both opened a timeline 3, at one and the same position.
fn with_two_timelines_3(register: Register) -> Register {
    let fork = |term| Fork { term: Term(term), parent_term: Term(2), parent_timeline: TimelineId(2) };
    register_forked(register_forked(register, fork(3)), fork(4))
}

/// Found by the model: the operator had not recorded the timeline of term 4 when its primary was lost.
#[test]
fn a_phantom_loses_although_the_timeline_of_the_current_term_was_never_recorded() {
    let phantom = SealReport { term: Term(3), ..report(1, 9000) };
    let unrecorded = Register { timeline: None, ..with_two_timelines_3(register(set(&[1, 3, 4], 2))) };
    assert_eq!(winner(&unrecorded, &[phantom, report(3, 300)]).0, "shop-3");
}

/// Found by the model: term 5 was claimed and never led, and with it what was recorded of term 4 was forgotten.
#[test]
fn a_phantom_loses_although_a_later_claim_came_to_nothing() {
    let phantom = SealReport { term: Term(3), sealed_term: Term(6), ..report(1, 9000) };
    let holds_the_commit = SealReport { sealed_term: Term(6), ..report(3, 300) };
    let before = with_two_timelines_3(register(set(&[1, 3, 4], 2)));
    let fork = Fork { term: Term(5), parent_term: Term(4), parent_timeline: TimelineId(3) };
    let failed = register_forked(Register { term: Term(5), seal_term: Term(6), timeline: None, ..before }, fork);
    assert_eq!(winner(&failed, &[phantom, holds_the_commit]).0, "shop-3");
}

#[test]
fn a_fresh_copy_that_never_followed_anybody_counts_with_all_it_has() {
    let copy = SealReport { term: Term(0), ..report(1, 9000) };
    assert_eq!(winner(&register(set(&[1, 2], 1)), &[copy, report(2, 300)]).0, "shop-1");
}

#[test]
fn a_replica_that_knows_the_newest_term_but_has_no_wal_of_it_does_not_outrank_more_wal() {
    let early = SealReport { term: Term(4), history: history(2, &[(1, 100)]), ..report(1, 150) };
    let ahead = SealReport { term: Term(3), history: history(2, &[(1, 100)]), ..report(2, 190) };
    let fork = Fork { term: Term(4), parent_term: Term(3), parent_timeline: TimelineId(2) };
    for timeline in [Some(TimelineId(3)), None] {
        let register = register_forked(Register { timeline, ..register(set(&[1, 2], 1)) }, fork);
        assert_eq!(winner(&register, &[early.clone(), ahead.clone()]).0, "shop-2");
    }
}

/// It may have the acknowledged commits, or those of a promotion that was given up.
#[test]
fn who_is_ahead_in_a_term_that_is_not_remembered_counts_as_if_it_had_not_answered() {
    let early = SealReport { term: Term(4), history: history(2, &[(1, 100)]), ..report(1, 150) };
    let ahead = SealReport { term: Term(3), history: history(2, &[(1, 100)]), ..report(2, 190) };
    let (missing, why) = blocked(&register(set(&[1, 2], 1)), &[early.clone(), ahead.clone()]);
    assert_eq!(missing, ["shop-2"]);
    assert!(why.contains("shop-2 does not count: it is ahead on timeline 2"), "{why}");
    let (pod, candidates) = winner(&register(set(&[1, 2], 2)), &[early, ahead]);
    assert_eq!((pod.as_str(), candidates[1].0.as_str()), ("shop-1", "shop-2"));
    assert!(candidates[1].1.contains("not remembered"), "{candidates:?}");
}

#[test]
fn a_phantom_is_not_trusted_however_many_claims_came_to_nothing_since() {
    let claims = |taken_up: bool| {
        let before = with_two_timelines_3(Register { timeline: None, ..register(set(&[1, 2, 3, 4], 2)) });
        (5..300).fold(before, |known, term| {
            let nonce = if taken_up { "n" } else { "" };
            let holder = Holder { boot_nonce: nonce.into(), member: Some(member(3)), ..Holder::default() };
            let sealed = Register { seal_term: Term(term), ..known };
            let claimed = register_claimed(&sealed, "shop-3", "u", &member(3));
            let parent_term = if taken_up { Term(term - 1) } else { Term(4) };
            let fork = Fork { term: Term(term), parent_term, parent_timeline: TimelineId(3) };
            register_forked(Register { holder: Some(holder), ..claimed }, fork)
        })
    };
    for taken_up in [false, true] {
        let register = Register { seal_term: Term(300), holder: None, ..claims(taken_up) };
        let followed = |ordinal, term| SealReport { term, sealed_term: Term(300), ..report(ordinal, 300) };
        let phantom = SealReport { received_lsn: Lsn(9000), ..followed(1, Term(3)) };
        let last = if taken_up { Term(299) } else { Term(4) };
        let all = [phantom, followed(2, Term(4)), followed(3, last), followed(4, Term(4))];
        assert_eq!(winner(&register, &all).0, "shop-2", "taken up: {taken_up}");
        assert_eq!(winner(&register, &all[1..]).0, "shop-2", "taken up: {taken_up}");
    }
}

/// Term 3 promoted twice in a row on a branch that was left, so that the number that term 4 took as well lies below its own.
#[test]
fn a_phantom_of_a_higher_timeline_number_loses_too() {
    let fork = |term, parent_term, timeline| Fork {
        term: Term(term),
        parent_term: Term(parent_term),
        parent_timeline: TimelineId(timeline),
    };
    let forks = [fork(2, 1, 1), fork(3, 2, 2), fork(4, 1, 1)];
    let register = forks.into_iter().fold(register(set(&[1, 2, 3, 4], 2)), register_forked);
    let phantom = SealReport { term: Term(3), history: history(3, &[(1, 100), (2, 250)]), ..report(1, 9000) };
    let holds_the_commit = |ordinal| SealReport { history: history(2, &[(1, 100)]), ..report(ordinal, 200) };
    assert_eq!(winner(&register, &[phantom, holds_the_commit(2), holds_the_commit(3)]).0, "shop-2");
}

/// shop-1, ahead by a byte, was chosen for term 4 and is still on what it was on then.
fn chosen_in_vain(quorum: VoterSet) -> (Register, SealReport, SealReport) {
    let holder = Holder { pod: "shop-1".into(), member: Some(member(1)), ..Holder::default() };
    let fork = Fork { term: Term(4), parent_term: Term(3), parent_timeline: TimelineId(3) };
    let claimed = Register { holder: Some(holder), timeline: None, ..register(quorum) };
    let of_term_3 = |ordinal, lsn| SealReport { term: Term(3), ..report(ordinal, lsn) };
    (register_forked(claimed, fork), of_term_3(1, 1001), of_term_3(2, 1000))
}

#[test]
fn without_a_promise_who_was_chosen_in_vain_is_chosen_again_only_where_nobody_else_answers() {
    let rules = ElectionRules { last: Position { flushed: Lsn(1001), limit: Lsn(1100) }, max_lag: Some(50) };
    let choose = |register: &Register, reports: &[SealReport]| match elect(register, reports, rules) {
        Election::Winner { winner, possible_loss_bytes, .. } => (winner.pod, possible_loss_bytes),
        Election::Blocked { why, .. } => panic!("{why}"),
    };
    let (register, vain, other) = chosen_in_vain(set(&[1, 2], 0));
    assert_eq!(choose(&register, &[vain.clone(), other.clone()]), ("shop-2".to_owned(), 100));
    assert_eq!(choose(&register, std::slice::from_ref(&vain)), ("shop-1".to_owned(), 99));
    let far_behind = SealReport { received_lsn: Lsn(900), replayed_lsn: Lsn(900), ..other.clone() };
    assert_eq!(choose(&register, &[vain.clone(), far_behind]), ("shop-1".to_owned(), 99));
    let led = SealReport { history: history(4, &[(1, 100), (2, 200), (3, 1001)]), term: Term(4), ..vain };
    assert_eq!(choose(&register, &[led, other]).0, "shop-1", "it has led, though nobody saw it");
}

#[test]
fn with_a_promise_who_was_chosen_in_vain_is_chosen_again_where_only_it_can_have_everything() {
    let (register, vain, other) = chosen_in_vain(set(&[1, 2], 1));
    let (pod, candidates) = winner(&register, &[vain.clone(), other.clone()]);
    assert_eq!(pod, "shop-1");
    assert_eq!(candidates[0].1, "chosen again, since nobody else can be, though it did not become primary in term 4");
    let (register, ..) = chosen_in_vain(set(&[1, 2], 2));
    let (pod, candidates) = winner(&register, &[vain, other]);
    assert_eq!(pod, "shop-2");
    assert_eq!(candidates[1].1, "was chosen for term 4 and did not become primary; shop-2 can be chosen instead");
}

#[test]
fn a_tie_goes_to_the_lowest_ordinal() {
    let (pod, _) = winner(&register(set(&[2, 10], 1)), &[report(10, 1000), report(2, 1000)]);
    assert_eq!(pod, "shop-2");
}

#[test]
fn replayed_counts_where_a_restarted_replica_forgot_what_it_received() {
    let restarted = SealReport { received_lsn: Lsn(900), replayed_lsn: Lsn(1500), ..report(1, 0) };
    assert_eq!(winner(&register(set(&[1, 2], 1)), &[restarted, report(2, 1000)]).0, "shop-1");
}

#[test]
fn without_a_promise_the_furthest_member_wins_within_the_lag_bound() {
    let off = register(set(&[], 0));
    let rules = ElectionRules { last: Position { flushed: Lsn(2000), limit: Lsn(2300) }, max_lag: Some(500) };
    match elect(&off, &[report(1, 1600), report(2, 1400)], rules) {
        Election::Winner { winner, possible_loss_bytes, .. } => {
            assert_eq!((winner.pod.as_str(), possible_loss_bytes), ("shop-1", 700))
        }
        Election::Blocked { why, .. } => panic!("{why}"),
    }
    match elect(&off, &[report(2, 1400)], rules) {
        Election::Blocked { why, .. } => assert!(why.contains("failover.maxLag"), "{why}"),
        Election::Winner { winner, .. } => panic!("{} won", winner.pod),
    }
}

#[test]
fn without_any_answer_nobody_wins() {
    assert_eq!(blocked(&register(set(&[], 0)), &[]).1, "no member has answered");
    assert_eq!(blocked(&register(set(&[1, 2], 1)), &[]).0, ["shop-1", "shop-2"]);
}

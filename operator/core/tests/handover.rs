//! Planned changes of the primary, forced promotions and the W of mode `Preferred`, by example and by properties.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

use std::collections::BTreeMap;

use pgherd_core::{
    election::{Election, ElectionRules, elect},
    failover::{
        ForceError, HandoverInput, HandoverVerdict, PodView, Probe, decide_force, decide_handover,
        handover::{MAX_REPLAY_LAG, PATIENCE_MS},
        parse_force, register_claimed, register_forced, register_handed_over, register_handover_withdrawn,
        register_regranted, register_sealed,
    },
    instance::{InstanceStatus, Phase, Receiver, SealReport, Standby},
    lsn::Lsn,
    preferred::{Attendance, MISSING_MS, decide_acks},
    quorum::proves,
    register::{FailoverKind, FailoverNote, Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};
use proptest::prelude::*;

const HERE: u64 = 0x1000_0000;

fn member(ordinal: u32) -> MemberId {
    MemberId(format!("m{ordinal}"))
}

fn voters(ordinals: &[u32], acks: u32) -> VoterSet {
    let voter = |ordinal: &u32| Voter { member: member(*ordinal), pod: format!("c-{ordinal}") };
    VoterSet { voters: ordinals.iter().map(voter).collect(), acks }
}

fn status(ordinal: u32) -> InstanceStatus {
    let primary = ordinal == 0;
    let json = format!(
        r#"{{"pod":"c-{ordinal}","podUid":"u{ordinal}","bootNonce":"n","member":"m{ordinal}","phase":"{}",
            "postgresUp":true,"isPrimary":{primary},"term":2,"sealedTerm":0,"history":{{"timeline":3}}}}"#,
        if primary { "Primary" } else { "Replica" }
    );
    let mut status: InstanceStatus = serde_json::from_str(&json).expect("a status");
    (status.received_lsn, status.replayed_lsn) = (Lsn(HERE), Lsn(HERE));
    status.receiver = (!primary).then(|| Receiver { streaming: true, silent_ms: 100, upstream: "c-0".into() });
    let standby = |ordinal| Standby {
        member: member(ordinal),
        term: Some(status.term),
        state: "streaming".into(),
        flush_lsn: Lsn(HERE),
        replay_lsn: Lsn(HERE),
    };
    status.standbys = if primary { (1..5).map(standby).collect() } else { Vec::new() };
    status
}

/// c-0 holds term 2; the others stream from it and vote.
struct Scene {
    register: Register,
    pods: BTreeMap<String, PodView>,
    barred: BTreeMap<String, String>,
    waited_ms: u64,
}

impl Scene {
    fn new(instances: u32, acks: u32) -> Self {
        let holder = Holder {
            pod: "c-0".into(),
            pod_uid: "u0".into(),
            boot_nonce: "n".into(),
            address: None,
            member: Some(member(0)),
        };
        let quorum = voters(&(1..instances).collect::<Vec<_>>(), acks);
        let register =
            Register { term: Term(2), seal_term: Term(2), holder: Some(holder), quorum, ..Register::default() };
        let view = |ordinal| PodView { uid: format!("u{ordinal}"), probe: Probe::Reachable(Box::new(status(ordinal))) };
        let pods = (0..instances).map(|ordinal| (format!("c-{ordinal}"), view(ordinal))).collect();
        Self { register, pods, barred: BTreeMap::new(), waited_ms: 0 }
    }

    fn change(&mut self, ordinal: u32, change: impl FnOnce(&mut InstanceStatus)) {
        let view = self.pods.get_mut(&format!("c-{ordinal}")).expect("the pod");
        let Probe::Reachable(status) = &mut view.probe else { panic!("c-{ordinal} does not answer") };
        change(status);
    }

    fn lose(&mut self, ordinal: u32) {
        self.pods.get_mut(&format!("c-{ordinal}")).expect("the pod").probe = Probe::Unreachable;
    }

    fn ask(&self, target: Option<&str>) -> HandoverVerdict {
        decide_handover(&HandoverInput {
            register: &self.register,
            pods: &self.pods,
            target,
            barred: &self.barred,
            waited_ms: self.waited_ms,
            patience_ms: Some(PATIENCE_MS),
        })
    }

    #[track_caller]
    fn refused(&self, target: Option<&str>) -> String {
        let HandoverVerdict::Refuse { why } = self.ask(target) else { panic!("{:?}", self.ask(target)) };
        why
    }

    #[track_caller]
    fn waits(&self, target: Option<&str>) -> String {
        let HandoverVerdict::Wait { why } = self.ask(target) else { panic!("{:?}", self.ask(target)) };
        why
    }
}

#[track_caller]
fn begins(verdict: &HandoverVerdict) -> &str {
    let HandoverVerdict::Begin { target, .. } = verdict else { panic!("{verdict:?}") };
    target
}

#[test]
fn a_replica_that_streams_and_votes_may_take_over() {
    for acks in [0, 1, 2] {
        assert_eq!(begins(&Scene::new(3, acks).ask(Some("c-2"))), "c-2");
        assert_eq!(begins(&Scene::new(3, acks).ask(None)), "c-1");
    }
}

#[test]
fn what_can_never_be_done_is_refused_at_once() {
    let mut scene = Scene::new(3, 1);
    assert!(scene.refused(Some("c-0")).contains("primary already"));
    assert!(scene.refused(Some("c-7")).contains("does not exist"));
    scene.change(2, |status| status.phase = Phase::Cloning);
    assert!(scene.refused(Some("c-2")).contains("no replica"));
    scene.barred.insert("c-1".into(), "its node kn1 is being drained".into());
    assert!(scene.refused(Some("c-1")).contains("kn1"));
    assert!(scene.refused(None).contains("kn1"));
    assert!(Scene::new(1, 0).refused(None).contains("no other instance"));
}

#[test]
fn during_a_failover_nothing_is_handed_over() {
    let mut scene = Scene::new(3, 1);
    scene.register.released = true;
    assert!(scene.refused(Some("c-1")).contains("failover"));
    scene.register.released = false;
    scene.register = register_sealed(&scene.register);
    assert!(scene.refused(None).contains("failover"));
}

#[test]
fn what_may_pass_is_waited_for_and_refused_after_a_minute() {
    let changes: [fn(&mut InstanceStatus); 4] = [
        |status| status.receiver = None,
        |status| status.term = Term(1),
        |status| status.replayed_lsn = Lsn(HERE - MAX_REPLAY_LAG - 1),
        |status| status.phase = Phase::Starting,
    ];
    for change in changes {
        let mut scene = Scene::new(3, 1);
        scene.change(2, change);
        scene.waits(Some("c-2"));
        scene.waited_ms = PATIENCE_MS;
        assert!(scene.refused(Some("c-2")).contains("60 s"));
    }
    let mut scene = Scene::new(3, 1);
    scene.change(2, |status| status.replayed_lsn = Lsn(HERE - MAX_REPLAY_LAG));
    assert_eq!(begins(&scene.ask(Some("c-2"))), "c-2", "just within the bound");
}

#[test]
fn a_replica_that_does_not_vote_yet_is_waited_for_only_where_commits_wait_for_voters() {
    let mut scene = Scene::new(3, 1);
    scene.register.quorum = voters(&[1], 1);
    assert!(scene.waits(Some("c-2")).contains("registered voter"));
    scene.register.quorum.acks = 0;
    assert_eq!(begins(&scene.ask(Some("c-2"))), "c-2");
}

#[test]
fn nothing_is_handed_over_while_the_others_could_not_decide_without_the_primary() {
    let mut scene = Scene::new(3, 1);
    scene.lose(2);
    assert!(scene.waits(Some("c-1")).contains("1 of 2 registered voters"));
    scene.register.quorum.acks = 2;
    assert_eq!(begins(&scene.ask(Some("c-1"))), "c-1", "with two acknowledgements each voter has everything");
}

#[test]
fn a_primary_that_does_not_serve_is_waited_for() {
    let mut scene = Scene::new(3, 1);
    scene.lose(0);
    assert!(scene.waits(Some("c-1")).contains("c-0"));
}

#[test]
fn without_a_target_the_one_with_less_to_replay_is_taken_but_a_little_lag_does_not_decide() {
    let mut scene = Scene::new(3, 0);
    scene.change(1, |status| status.replayed_lsn = Lsn(HERE - 100));
    assert_eq!(begins(&scene.ask(None)), "c-1");
    scene.change(1, |status| status.replayed_lsn = Lsn(HERE - (4 << 20)));
    assert_eq!(begins(&scene.ask(None)), "c-2");
}

fn report(ordinal: u32, lsn: u64) -> SealReport {
    SealReport {
        member: member(ordinal),
        pod: format!("c-{ordinal}"),
        sealed_term: Term(3),
        term: Term(2),
        history: TimelineHistory::root(TimelineId(3)),
        received_lsn: Lsn(lsn),
        replayed_lsn: Lsn(lsn),
    }
}

fn handed_over(target: &str, acks: u32) -> Register {
    let asked = register_handed_over(&Scene::new(3, acks).register, Some(target), "switchover requested");
    register_sealed(&Register { released: true, ..asked.expect("nothing is under way") })
}

#[track_caller]
fn winner(register: &Register, reports: &[SealReport]) -> String {
    match elect(register, reports, ElectionRules::default()) {
        Election::Winner { winner, .. } => winner.pod,
        Election::Blocked { why, .. } => panic!("{why}"),
    }
}

#[test]
fn among_level_candidates_the_target_wins_and_never_when_it_is_behind() {
    for acks in [0, 1] {
        let register = handed_over("c-2", acks);
        assert_eq!(winner(&register, &[report(0, 100), report(1, 100), report(2, 100)]), "c-2");
        assert_eq!(winner(&register, &[report(1, 101), report(2, 100)]), "c-1");
    }
}

#[test]
fn a_handover_ends_with_the_claim_or_is_withdrawn_while_the_primary_still_runs() {
    let asked = register_handed_over(&Scene::new(3, 1).register, None, "why").expect("nothing is under way");
    assert_eq!(register_handed_over(&asked, None, "why"), None, "one at a time");
    assert_eq!(register_handover_withdrawn(&asked), Some(Scene::new(3, 1).register));
    let released = Register { released: true, ..asked };
    assert_eq!(register_handover_withdrawn(&released), None, "it has stopped");
    assert_eq!(register_claimed(&register_sealed(&released), "c-1", "u1", &member(1)).handover, None);
}

#[test]
fn the_note_of_a_failover_outlives_the_claim_but_not_the_next_grant() {
    let note = FailoverNote {
        from: "c-0".into(),
        reason: "why".into(),
        detect_ms: 1,
        began_at_ms: 2,
        claimed_at_ms: None,
        kind: FailoverKind::Silent,
        candidates: Vec::new(),
        possible_loss_bytes: None,
        again: false,
    };
    let sealed = Register { failover: Some(note.clone()), ..register_sealed(&Scene::new(3, 1).register) };
    let claimed = register_claimed(&sealed, "c-1", "u1", &member(1));
    assert_eq!(claimed.failover, Some(note));
    assert_eq!(register_regranted(&claimed, "c-1", "u1").failover, None);
}

#[test]
fn a_register_of_an_older_version_is_read() {
    let text = r#"{"term":2,"sealTerm":2,"failover":{"from":"c-0","reason":"why","detectMs":1,"beganAtMs":2}}"#;
    let register: Register = serde_json::from_str(text).expect("a register");
    assert_eq!(register.failover.map(|note| note.kind), Some(FailoverKind::Unknown));
}

#[test]
fn a_forced_promotion_names_its_pod_and_the_present_term() {
    let register = register_sealed(&Scene::new(3, 1).register);
    let reports = [report(2, 100)];
    let ask = |text: &str| {
        parse_force(text, register.term).and_then(|request| decide_force(&register, Some(&reports), &request).cloned())
    };
    assert_eq!(ask("c-2@2"), Ok(report(2, 100)));
    assert_eq!(ask("c-2@1"), Err(ForceError::Term { asked: Term(1), present: Term(2) }));
    assert_eq!(ask("c-2@3"), Err(ForceError::Term { asked: Term(3), present: Term(2) }));
    assert_eq!(ask("c-1@2"), Err(ForceError::NotSealed { pod: "c-1".into(), sealed: "c-2".into() }));
    for text in ["", "c-2", "@2", "c-2@", "c-2@two", "c-2@+2", "c-2@-1"] {
        assert_eq!(ask(text), Err(ForceError::Malformed(text.into(), Term(2))), "{text}");
    }
    let request = parse_force("c-2@2", Term(2)).expect("a request");
    assert_eq!(decide_force(&register, None, &request), Err(ForceError::NotBlocked));
    let settled = Scene::new(3, 1).register;
    assert_eq!(decide_force(&settled, Some(&reports), &request), Err(ForceError::NotBlocked));
}

#[test]
fn after_a_forced_promotion_the_lost_voters_are_not_asked_for_any_more() {
    let register = register_sealed(&Scene::new(3, 1).register);
    let forced = register_forced(&register, "c-2", "u2", &member(2));
    assert_eq!((forced.term, forced.seal_term, forced.pending.is_none()), (Term(3), Term(3), true));
    assert_eq!(forced.quorum, voters(&[], 1), "commits wait for voters that join anew");
}

fn acks(wanted: u32, in_force: &VoterSet, streaming: &[u32], since: &[(u64, &[u32])], now_ms: u64) -> u32 {
    let members = |ordinals: &[u32]| ordinals.iter().map(|ordinal| member(*ordinal)).collect::<Vec<_>>();
    let known: Vec<MemberId> = in_force.voters.iter().map(|voter| voter.member.clone()).collect();
    let seen = since.iter().fold(Attendance::default(), |seen, (at, there)| seen.update(*at, &known, &members(there)));
    decide_acks(wanted, in_force, &members(streaming), &seen, now_ms)
}

#[test]
fn preferred_falls_only_after_three_seconds_and_rises_at_once() {
    let both = voters(&[1, 2], 2);
    assert_eq!(acks(2, &both, &[1, 2], &[(0, &[1, 2])], 0), 2);
    assert_eq!(acks(2, &both, &[1], &[(1_000, &[1])], 1_000 + MISSING_MS - 1), 2, "it may come back");
    assert_eq!(acks(2, &both, &[1], &[(1_000, &[1])], 1_000 + MISSING_MS), 1);
    assert_eq!(
        acks(2, &both, &[1], &[(1_000, &[1]), (2_000, &[1, 2]), (3_000, &[1])], 4_500),
        2,
        "it was there between"
    );
    assert_eq!(acks(1, &both, &[1], &[(0, &[1])], 9_000), 1, "one of two is enough");
    assert_eq!(acks(1, &voters(&[1], 1), &[], &[(0, &[])], 9_000), 0);
    assert_eq!(acks(1, &voters(&[], 0), &[1], &[(0, &[1])], 0), 1);
    assert_eq!(acks(1, &voters(&[], 1), &[], &[], 0), 0, "there is no voter that could come back");
}

proptest! {
    #[test]
    fn preferred_never_asks_for_more_than_is_wanted_or_less_than_is_there(
        wanted in 0_u32..4,
        force in 0_u32..4,
        streaming in proptest::sample::subsequence(vec![1_u32, 2, 3, 4], 0..=4),
        there in proptest::sample::subsequence(vec![1_u32, 2, 3, 4], 0..=4),
        now in 0_u64..10_000,
    ) {
        let in_force = voters(&[1, 2, 3], force);
        let asked = acks(wanted, &in_force, &streaming, &[(0, &there)], now);
        prop_assert!(asked <= wanted);
        prop_assert!(asked >= wanted.min(streaming.len() as u32));
        if now >= MISSING_MS {
            prop_assert_eq!(asked, wanted.min(streaming.len() as u32));
        }
    }

    /// Whatever the instances say: a handover begins only when the target could be elected by those that stream.
    #[test]
    fn a_handover_that_begins_can_be_completed_without_the_old_primary(
        size in 1_u32..5,
        acks in 0_u32..3,
        lost in proptest::collection::vec(any::<bool>(), 5),
        silent in proptest::collection::vec(any::<bool>(), 5),
        registered in proptest::sample::subsequence(vec![1_u32, 2, 3, 4], 0..=4),
        target in proptest::option::of(0_u32..6),
    ) {
        let mut scene = Scene::new(size, acks);
        scene.register.quorum = voters(&registered, acks);
        for ordinal in 1..size {
            if silent[ordinal as usize] {
                scene.change(ordinal, |status| status.receiver = None);
            }
            if lost[ordinal as usize] {
                scene.lose(ordinal);
            }
        }
        let target = target.map(|ordinal| format!("c-{ordinal}"));
        if let HandoverVerdict::Begin { target: chosen, .. } = scene.ask(target.as_deref()) {
            prop_assert!(target.is_none_or(|target| target == chosen));
            prop_assert_ne!(&chosen, "c-0");
            let streaming = |ordinal: u32| !silent[ordinal as usize] && !lost[ordinal as usize];
            let sealed: Vec<SealReport> = (1..size).filter(|o| streaming(*o)).map(|o| report(o, 100)).collect();
            prop_assert!(acks == 0 || proves(registered.len(), acks, sealed.iter().filter(|r| registered.iter().any(|o| member(*o) == r.member)).count()));
            let asked = register_handed_over(&scene.register, Some(&chosen), "why").expect("nothing is under way");
            let register = register_sealed(&Register { released: true, ..asked });
            prop_assert_eq!(winner(&register, &sealed), chosen);
        }
    }

    #[test]
    fn a_text_that_asks_for_force_is_read_back_or_refused(text in ".{0,20}", term in any::<u64>()) {
        if let Ok(request) = parse_force(&text, Term(term)) {
            prop_assert_eq!(format!("{}@{}", request.pod, request.term).len() <= text.trim().len(), true);
        }
        let request = parse_force(&format!("shop-2@{term}"), Term(0)).expect("well formed");
        prop_assert_eq!((request.pod.as_str(), request.term), ("shop-2", Term(term)));
    }
}

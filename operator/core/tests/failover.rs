//! Suspicion and the steps of a failover, by example, on a cluster of three.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

use std::collections::BTreeMap;

use pgherd_core::{
    election::ElectionRules,
    failover::{
        FailoverInput, Observation, PodView, Probe, RebuildError, Step, Suspicion, SuspicionReason, decide_rebuild,
        decide_step, decide_suspicion, register_bootstrapped, register_claimed, register_observed, register_regranted,
        register_sealed,
    },
    instance::{InstanceStatus, Phase, Receiver, SealReport, Standby, Timings, UpstreamSilence, Vouch},
    lineage::{Fork, register_forked},
    lsn::Lsn,
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};

fn member(ordinal: u32) -> MemberId {
    MemberId(format!("m{ordinal}"))
}

fn status(ordinal: u32) -> InstanceStatus {
    let primary = ordinal == 0;
    let json = format!(
        r#"{{"pod":"c-{ordinal}","podUid":"u{ordinal}","bootNonce":"n","member":"m{ordinal}","phase":"{}","systemId":"7",
            "postgresUp":true,"isPrimary":{primary},"term":2,"sealedTerm":0,"history":{{"timeline":3}}}}"#,
        if primary { "Primary" } else { "Replica" }
    );
    let mut status: InstanceStatus = serde_json::from_str(&json).expect("a status");
    status.receiver = (!primary).then(|| Receiver { streaming: true, silent_ms: 100, upstream: "c-0".into() });
    status
}

fn reachable(status: InstanceStatus) -> PodView {
    PodView { uid: status.pod_uid.clone(), probe: Probe::Reachable(Box::new(status)) }
}

struct Scene {
    register: Register,
    pods: BTreeMap<String, PodView>,
    routed: Vec<String>,
    lease_ms: u64,
    unreachable_ms: u64,
    delay_ms: u64,
}

impl Scene {
    /// c-0 holds term 2 of a cluster of three; W is `acks`.
    fn new(acks: u32) -> Self {
        let voter = |ordinal| Voter { member: member(ordinal), pod: format!("c-{ordinal}") };
        let quorum = VoterSet { voters: vec![voter(1), voter(2)], acks };
        let holder = Holder {
            pod: "c-0".into(),
            pod_uid: "u0".into(),
            boot_nonce: "n".into(),
            address: None,
            member: Some(member(0)),
        };
        let register =
            Register { term: Term(2), seal_term: Term(2), holder: Some(holder), quorum, ..Register::default() };
        let pods = (0..3).map(|ordinal| (format!("c-{ordinal}"), reachable(status(ordinal)))).collect();
        Self { register, pods, routed: vec!["c-0".into()], lease_ms: 1_000, unreachable_ms: 0, delay_ms: 0 }
    }

    fn lose(&mut self, ordinal: u32) {
        let view = self.pods.get_mut(&format!("c-{ordinal}")).expect("the pod");
        view.probe = Probe::Unreachable;
    }

    fn vouch(&mut self, ordinal: u32, term: u64, remaining_ms: u64) {
        let view = self.pods.get_mut(&format!("c-{ordinal}")).expect("the pod");
        if let Probe::Reachable(status) = &mut view.probe {
            status.vouch = Some(Vouch { term: Term(term), member: status.member.clone(), remaining_ms });
        }
    }

    fn silence(&mut self, silent_ms: u64) {
        for view in self.pods.values_mut() {
            if let Probe::Reachable(status) = &mut view.probe {
                status.receiver.iter_mut().for_each(|receiver| receiver.silent_ms = silent_ms);
            }
        }
    }

    /// The replicas' receivers have ended, and nothing was heard for so long.
    fn deafen(&mut self, ms: u64) {
        for (pod, view) in &mut self.pods {
            if let Probe::Reachable(status) = &mut view.probe
                && pod != "c-0"
            {
                status.receiver = None;
                status.silence = Some(UpstreamSilence { upstream: "c-0".into(), ms });
            }
        }
    }

    fn observation(&self) -> Observation {
        let now_ms = 1_000_000;
        let lost = self.pods.iter().filter(|(_, view)| view.status().is_none());
        let since = now_ms - self.unreachable_ms;
        Observation {
            now_ms,
            lease_version: "v".into(),
            lease_since_ms: now_ms - self.lease_ms,
            unreachable_since_ms: lost.map(|(pod, _)| (pod.clone(), since)).collect(),
        }
    }

    fn suspicion(&self) -> Suspicion {
        decide_suspicion(&self.observation(), &self.register, &self.pods, &Timings::default(), self.delay_ms)
    }

    fn step(&self, seals: Option<&[SealReport]>) -> Step {
        decide_step(&FailoverInput {
            register: &self.register,
            observation: &self.observation(),
            pods: &self.pods,
            routed_pods: &self.routed,
            seals,
            timings: &Timings::default(),
            delay_ms: self.delay_ms,
            rules: ElectionRules::default(),
        })
    }
}

fn seal(ordinal: u32, lsn: u64) -> SealReport {
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

#[test]
fn a_primary_that_renews_is_not_suspected() {
    assert_eq!(Scene::new(1).suspicion(), Suspicion::None);
    assert_eq!(Scene::new(1).step(None), Step::Nothing);
}

#[test]
fn a_released_lease_is_suspected_at_once_with_and_without_a_quorum() {
    for acks in [0, 1] {
        let mut scene = Scene::new(acks);
        scene.register.released = true;
        assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::Released, detect_ms: 0 });
    }
}

#[test]
fn an_unchanged_lease_is_suspected_after_the_take_over_time_and_the_delay() {
    let mut scene = Scene::new(0);
    scene.lease_ms = 11_999;
    assert!(
        matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(1), .. }),
        "{:?}",
        scene.suspicion()
    );
    scene.lease_ms = 12_000;
    assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::LeaseExpired, detect_ms: 12_000 });
    scene.delay_ms = 1;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
}

#[test]
fn a_primary_that_its_peers_vouch_for_keeps_its_label_until_the_promises_lapse() {
    for acks in [0, 1] {
        let mut scene = Scene::new(acks);
        scene.lease_ms = 60_000;
        scene.vouch(1, 2, 1);
        match scene.step(None) {
            Step::Wait { why, .. } => assert!(why.contains("vouched for by c-1"), "{why}"),
            other => panic!("{other:?}"),
        }
        scene.vouch(1, 2, 0);
        assert!(matches!(scene.step(None), Step::Seal { reason: SuspicionReason::LeaseExpired, .. }));
        scene.vouch(1, 1, 9_000);
        assert!(matches!(scene.step(None), Step::Seal { .. }), "a promise to an earlier term says nothing");
    }
}

#[test]
fn vouchers_that_an_election_can_do_without_do_not_hold_it_up() {
    let mut scene = Scene::new(2);
    scene.register.quorum.voters.push(Voter { member: member(3), pod: "c-3".into() });
    scene.lease_ms = 12_000;
    scene.vouch(1, 2, 9_000);
    assert!(matches!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::LeaseExpired, .. }));
    scene.vouch(2, 2, 9_000);
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
}

#[test]
fn a_released_lease_is_suspected_whoever_vouches() {
    let mut scene = Scene::new(1);
    scene.vouch(1, 2, 9_000);
    scene.register.released = true;
    assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::Released, detect_ms: 0 });
}

#[test]
fn a_silent_or_vanished_primary_that_is_vouched_for_is_watched_but_nothing_leads_to_a_vanished_pod_for_ever() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.silence(9_000);
    scene.unreachable_ms = 9_000;
    scene.vouch(2, 2, 9_000);
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
    scene.pods.remove("c-0");
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
    scene.lease_ms = 12_000;
    assert!(matches!(scene.suspicion(), Suspicion::Suspect { .. }));
}

#[test]
fn a_replica_is_built_anew_when_commits_do_not_wait_for_it() {
    let standby = |ordinal| Standby {
        member: member(ordinal),
        term: Some(Term(2)),
        state: "streaming".into(),
        flush_lsn: Lsn(9),
        replay_lsn: Lsn(9),
    };
    let mut scene = Scene::new(1);
    let ask = |scene: &Scene, pod: &str| decide_rebuild(&scene.register, &scene.pods, pod);
    let show = |scene: &mut Scene, standbys: Vec<Standby>| {
        let view = scene.pods.get_mut("c-0").expect("the pod");
        if let Probe::Reachable(status) = &mut view.probe {
            (status.term, status.standbys) = (Term(2), standbys);
        }
    };
    show(&mut scene, vec![standby(1), standby(2)]);
    assert_eq!(ask(&scene, "c-1"), Ok(()));
    assert_eq!(ask(&scene, "c-0"), Err(RebuildError::Primary("c-0".into())));
    assert_eq!(ask(&scene, "c-7"), Err(RebuildError::NoInstance("c-7".into())));
    show(&mut scene, vec![standby(1)]);
    let wait = RebuildError::CommitsWouldWait { pod: "c-1".into(), acks: 1, left: 0 };
    assert_eq!(ask(&scene, "c-1"), Err(wait));
    assert_eq!(ask(&scene, "c-2"), Ok(()), "the one that does not stream may go");
    scene.register.seal_term = Term(3);
    assert!(matches!(ask(&scene, "c-2"), Err(RebuildError::NoPrimary(_))));
    scene.register.seal_term = Term(2);
    scene.lose(2);
    assert_eq!(ask(&scene, "c-2"), Err(RebuildError::Silent("c-2".into())));
    scene.lose(0);
    assert!(matches!(ask(&scene, "c-1"), Err(RebuildError::NoPrimary(_))));
}

#[test]
fn a_silent_primary_is_suspected_early_only_with_a_quorum() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.silence(4_000);
    scene.unreachable_ms = 3_999;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(1), .. }));
    scene.unreachable_ms = 4_000;
    assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::Silent, detect_ms: 4_000 });
    scene.register.quorum.acks = 0;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
}

#[test]
fn voters_that_have_heard_nothing_for_long_speak_for_an_observer_that_has_only_just_begun() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.deafen(4_000);
    scene.unreachable_ms = 999;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(1), .. }));
    scene.unreachable_ms = 1_000;
    assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::Silent, detect_ms: 1_000 });
    scene.deafen(3_999);
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(3_000), .. }));
    scene.deafen(4_000);
    scene.register.holder.iter_mut().for_each(|holder| holder.pod = "c-7".into());
    assert!(!matches!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::Silent, .. }), "of another pod");
}

#[test]
fn a_primary_that_a_replica_still_hears_is_not_suspected_early() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.silence(200);
    scene.unreachable_ms = 10_000;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
}

#[test]
fn a_primary_is_looked_at_again_when_the_last_replica_will_have_heard_nothing_for_long_enough() {
    for (silent_ms, unreachable_ms, after_ms) in [(3_700, 4_100, 300), (200, 4_100, 3_800), (3_900, 3_000, 1_000)] {
        let mut scene = Scene::new(1);
        scene.lose(0);
        scene.silence(silent_ms);
        (scene.unreachable_ms, scene.lease_ms) = (unreachable_ms, 4_000);
        let Suspicion::Watching { recheck_after_ms, .. } = scene.suspicion() else { panic!("{:?}", scene.suspicion()) };
        assert_eq!(recheck_after_ms, Some(after_ms));
    }
}

#[test]
fn too_few_voters_to_prove_anything_do_not_suspect_early() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.lose(2);
    scene.silence(9_000);
    scene.unreachable_ms = 9_000;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { .. }));
}

#[test]
fn a_vanished_pod_is_suspected_at_once_with_a_quorum_and_by_its_lease_without() {
    let mut scene = Scene::new(1);
    scene.pods.get_mut("c-0").expect("the pod").uid = "twin".into();
    assert_eq!(scene.suspicion(), Suspicion::Suspect { reason: SuspicionReason::HolderPodGone, detect_ms: 1_000 });
    scene.register.quorum.acks = 0;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(11_000), .. }));
}

#[test]
fn a_primary_that_is_gone_while_nobody_else_answers_names_the_voters_that_are_missing() {
    for acks in [0, 1] {
        let mut scene = Scene::new(acks);
        (0..3).for_each(|ordinal| scene.lose(ordinal));
        scene.lease_ms = 11_999;
        assert!(matches!(scene.step(None), Step::Wait { .. }), "no failover would begin yet");
        scene.lease_ms = 12_000;
        let Step::Stranded { missing, why, .. } = scene.step(None) else { panic!("{:?}", scene.step(None)) };
        let missing: Vec<&str> = missing.iter().map(|voter| voter.pod.as_str()).collect();
        assert_eq!(missing, ["c-1", "c-2"]);
        assert!(why.contains("waiting for c-0, or for c-1, c-2"), "{why}");
        scene.pods.insert("c-0".into(), reachable(status(0)));
        assert!(!matches!(scene.step(None), Step::Stranded { .. }), "it serves");
    }
    let mut alone = Scene::new(0);
    alone.register.quorum.voters.clear();
    (0..3).for_each(|ordinal| alone.lose(ordinal));
    alone.lease_ms = 60_000;
    assert!(matches!(alone.step(None), Step::Wait { .. }), "nobody was ever there to take over");
}

#[test]
fn nobody_is_sealed_while_those_who_answer_are_too_few_to_elect_anybody() {
    let mut scene = Scene::new(1);
    scene.lose(0);
    scene.lose(2);
    for released in [false, true] {
        scene.register.released = released;
        scene.lease_ms = if released { 1_000 } else { 60_000 };
        let Step::Stranded { missing, unproven: true, why, .. } = scene.step(None) else {
            panic!("{:?}", scene.step(None))
        };
        assert_eq!(missing.iter().map(|voter| voter.pod.as_str()).collect::<Vec<_>>(), ["c-2"]);
        assert!(why.contains("waiting for c-0, or for c-2"), "{why}");
    }
    let begins = |scene: &Scene| matches!(scene.step(None), Step::Seal { .. });
    let with = |change: &dyn Fn(&mut Scene)| {
        let mut scene = Scene { register: scene.register.clone(), pods: scene.pods.clone(), ..Scene::new(1) };
        change(&mut scene);
        begins(&scene)
    };
    assert!(!with(&|_| {}));
    assert!(with(&|scene| drop(scene.pods.insert("c-2".into(), reachable(status(2))))), "the other voter");
    assert!(with(&|scene| drop(scene.pods.insert("c-0".into(), reachable(status(0))))), "the former primary");
    assert!(with(&|scene| scene.register.quorum.acks = 2), "each voter has every acknowledged commit");
    assert!(with(&|scene| scene.register.quorum.acks = 0), "nobody has to prove anything");
    // Just chosen, and still a voter of the set that it was chosen by: it alone may have what it acknowledged.
    let mut chosen = Scene::new(1);
    chosen.register.quorum.voters.retain(|voter| voter.pod == "c-2");
    chosen.register.quorum.voters.push(Voter { member: member(0), pod: "c-0".into() });
    chosen.lose(0);
    chosen.lease_ms = 60_000;
    let Step::Stranded { missing, why, .. } = chosen.step(None) else { panic!("{:?}", chosen.step(None)) };
    assert!(missing.is_empty() && why.ends_with("waiting for c-0"), "{why}");
    // A voter whose data directory was replaced proves nothing.
    let copied = |scene: &mut Scene| {
        let status = InstanceStatus { member: Some(member(7)), ..status(2) };
        scene.pods.insert("c-2".into(), reachable(status));
    };
    assert!(!with(&copied));
}

#[test]
fn a_role_that_is_granted_again_before_it_was_taken_up_keeps_what_is_known_of_its_claim() {
    let fork = |term| Fork { term: Term(term), parent_term: Term(1), parent_timeline: TimelineId(2) };
    let claimed = Register { timeline: None, ..register_forked(Scene::new(1).register, fork(2)) };
    let untaken = Holder { boot_nonce: String::new(), ..claimed.holder.clone().expect("a holder") };
    assert_eq!(register_regranted(&claimed, "c-0", "u9").forks, [fork(2)]);
    let untaken = Register { holder: Some(untaken), ..claimed };
    assert_eq!(register_regranted(&untaken, "c-0", "u9").forks, [fork(3)]);
}

#[test]
fn a_single_instance_gets_its_role_again_when_it_released_it_or_when_its_pod_was_replaced() {
    let mut scene = Scene::new(0);
    scene.pods.retain(|pod, _| pod == "c-0");
    scene.register.quorum.voters.clear();
    scene.lease_ms = 60_000;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: None, .. }), "it resumes by itself");
    scene.register.released = true;
    let again = Suspicion::RestartHolder { pod: "c-0".into(), pod_uid: "u0".into(), reason: SuspicionReason::Released };
    assert_eq!(scene.suspicion(), again);
    scene.register.released = false;
    scene.pods.get_mut("c-0").expect("the pod").uid = "u9".into();
    assert!(matches!(scene.step(None), Step::Regrant { pod_uid, .. } if pod_uid == "u9"));
    scene.lease_ms = 3_000;
    assert!(matches!(scene.suspicion(), Suspicion::Watching { recheck_after_ms: Some(9_000), .. }));
}

#[test]
fn the_steps_of_a_failover_follow_from_the_register_alone() {
    let mut scene = Scene::new(1);
    scene.register.released = true;
    let reason = SuspicionReason::Released;
    assert_eq!(scene.step(None), Step::Seal { unroute: "c-0".into(), term: Term(3), reason, detect_ms: 0 });
    scene.register = register_sealed(&scene.register);
    assert_eq!(register_sealed(&scene.register), scene.register);
    assert_eq!(scene.step(None), Step::Unroute { pods: vec!["c-0".into()] });
    scene.routed.clear();
    scene.lose(0);
    assert_eq!(scene.step(None), Step::CollectSeals { term: Term(3), pods: vec!["c-1".into(), "c-2".into()] });
    assert!(matches!(scene.step(Some(&[seal(2, 10)])), Step::Blocked { missing, .. } if missing.len() == 1));
    match scene.step(Some(&[seal(1, 10), seal(2, 20)])) {
        Step::Claim { pod, pod_uid, member: winner, .. } => {
            assert_eq!((pod.as_str(), pod_uid.as_str(), &winner), ("c-2", "u2", &member(2)));
            scene.register = register_claimed(&scene.register, &pod, &pod_uid, &winner);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((scene.register.term, scene.register.seal_term, scene.register.released), (Term(3), Term(3), false));
    assert_eq!(scene.register.pending.as_ref().map(|set| set.voters.len()), Some(1));
    scene.lease_ms = 0;
    assert_eq!(scene.step(None), Step::Nothing);
    let mut promoted = status(2);
    (promoted.is_primary, promoted.phase, promoted.term, promoted.receiver) = (true, Phase::Primary, Term(3), None);
    scene.pods.insert("c-2".into(), reachable(promoted));
    assert_eq!(scene.step(None), Step::Route { pod: "c-2".into() });
    scene.routed = vec!["c-0".into(), "c-2".into()];
    assert_eq!(scene.step(None), Step::Unroute { pods: vec!["c-0".into()] });
}

#[test]
fn the_lowest_ordinal_bootstraps_a_new_cluster_and_data_is_never_initialised_over() {
    let mut scene = Scene::new(0);
    scene.register = Register::default();
    assert!(matches!(scene.step(None), Step::Wait { why, .. } if why.contains("holds a data directory")));
    for view in scene.pods.values_mut() {
        if let Probe::Reachable(status) = &mut view.probe {
            status.member = None;
        }
    }
    assert_eq!(scene.step(None), Step::Bootstrap { pod: "c-0".into(), pod_uid: "u0".into() });
    scene.register.system_id = Some("7".into());
    assert!(matches!(scene.step(None), Step::Wait { .. }));
    let fresh = register_bootstrapped(&Register::default(), "c-0", "u0", 1);
    assert_eq!((fresh.term, fresh.seal_term, fresh.quorum.acks), (Term(1), Term(1), 1));
}

#[test]
fn the_register_learns_from_its_holder_and_from_nobody_else() {
    let fresh = register_bootstrapped(&Register::default(), "c-0", "u0", 1);
    let mut holder = status(0);
    holder.term = Term(1);
    let learned = register_observed(&fresh, &holder).expect("a change");
    assert_eq!((learned.system_id.as_deref(), learned.timeline), (Some("7"), Some(TimelineId(3))));
    assert_eq!(learned.holder.as_ref().and_then(|h| h.member.clone()), Some(member(0)));
    assert_eq!(register_observed(&learned, &holder), None);
    assert_eq!(register_observed(&learned, &InstanceStatus { system_id: Some("8".into()), ..holder.clone() }), None);
    assert_eq!(register_observed(&fresh, &InstanceStatus { pod_uid: "twin".into(), ..holder.clone() }), None);
    assert_eq!(register_observed(&register_sealed(&fresh), &holder), None);
    let again = register_regranted(&learned, "c-0", "u9");
    assert_eq!((again.term, again.holder.as_ref().and_then(|h| h.member.clone())), (Term(2), Some(member(0))));
}

#[test]
fn time_counts_only_while_the_observer_looks() {
    let scene = Scene::new(1);
    let first = Observation::update(None, 1_000, "v1", &scene.pods);
    let second = Observation::update(Some(&first), 3_000, "v1", &scene.pods);
    assert_eq!(second.lease_unchanged_ms(), 2_000);
    assert_eq!(Observation::update(Some(&second), 4_000, "v2", &scene.pods).lease_unchanged_ms(), 0);
    assert_eq!(Observation::update(Some(&second), 60_000, "v1", &scene.pods).lease_unchanged_ms(), 0);
    let mut lost = Scene::new(1);
    lost.lose(0);
    let third = Observation::update(Some(&second), 4_000, "v1", &lost.pods);
    let fourth = Observation::update(Some(&third), 6_500, "v1", &lost.pods);
    assert_eq!(fourth.unreachable_ms("c-0"), Some(2_500));
    assert_eq!(Observation::update(Some(&fourth), 7_000, "v1", &scene.pods).unreachable_ms("c-0"), None);
}

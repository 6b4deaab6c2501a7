//! Restoring in place: each step from the register and from what answers.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

use std::collections::BTreeMap;

use pgherd_core::{
    failover::{
        Observation, PodView, Probe, RestoreInput, RestoreRequest, RestoreStep, decide_restore, register_observed,
    },
    instance::{InstanceStatus, RecoveryTarget, RestoreAnswer, RestoreQuestion},
    register::{Holder, MemberId, Register, RestoreMark, Term, Voter, VoterSet},
    timeline::TimelineId,
};

const TAKE_OVER_MS: u64 = 12_000;
const RUNNING: RestoreStep = RestoreStep::Running { ask: None };

fn status(ordinal: u32) -> InstanceStatus {
    let json = format!(
        r#"{{"pod":"c-{ordinal}","podUid":"u{ordinal}","bootNonce":"n","member":"m{ordinal}","phase":"Replica",
            "postgresUp":true,"isPrimary":false,"term":2,"sealedTerm":0,"history":{{"timeline":3}}}}"#
    );
    serde_json::from_str(&json).expect("a status")
}

struct Scene {
    register: Register,
    pods: BTreeMap<String, PodView>,
    request: Option<RestoreRequest>,
    answer: Option<RestoreAnswer>,
    unchanged_ms: u64,
}

impl Scene {
    /// c-0 holds term 2, c-1 votes, and a restore is asked for.
    fn new() -> Self {
        let holder = Holder {
            pod: "c-0".into(),
            pod_uid: "u0".into(),
            boot_nonce: "n".into(),
            address: None,
            member: Some(MemberId("m0".into())),
        };
        let voter = Voter { member: MemberId("m1".into()), pod: "c-1".into() };
        let register = Register {
            term: Term(2),
            seal_term: Term(2),
            holder: Some(holder),
            timeline: Some(TimelineId(3)),
            system_id: Some("7".into()),
            quorum: VoterSet { voters: vec![voter], acks: 1 },
            ..Register::default()
        };
        let view = |ordinal| PodView { uid: format!("u{ordinal}"), probe: Probe::Reachable(Box::new(status(ordinal))) };
        let pods = (0..3).map(|ordinal| (format!("c-{ordinal}"), view(ordinal))).collect();
        Self { register, pods, request: Some(request("one")), answer: None, unchanged_ms: 0 }
    }

    fn decide(&self) -> RestoreStep {
        let mut observation = Observation::update(None, 100_000, "1", &self.pods);
        observation.lease_since_ms -= self.unchanged_ms;
        decide_restore(&RestoreInput {
            request: self.request.as_ref(),
            register: &self.register,
            observation: &observation,
            pods: &self.pods,
            answer: self.answer.as_ref(),
            take_over_ms: TAKE_OVER_MS,
        })
    }

    fn write(&mut self) -> &Register {
        match self.decide() {
            RestoreStep::Stop { register } | RestoreStep::Begin { register } => self.register = *register,
            other => panic!("nothing is written: {other:?}"),
        }
        &self.register
    }

    fn lose(&mut self, pod: &str) {
        self.pods.get_mut(pod).expect("the pod").probe = Probe::Unreachable;
    }

    /// Up to where c-0 is to restore in term 3.
    fn begun() -> Self {
        let mut scene = Self::new();
        scene.answer = Some(possible());
        scene.write();
        scene.register.released = true;
        scene.write();
        scene
    }
}

fn request(id: &str) -> RestoreRequest {
    let question = RestoreQuestion { backup_id: None, target: RecoveryTarget::Latest, timeline: None };
    RestoreRequest { id: id.into(), question }
}

fn possible() -> RestoreAnswer {
    RestoreAnswer::Possible { backup_id: "b".into(), timeline: TimelineId(3) }
}

#[test]
fn the_cluster_serves_until_an_instance_has_found_that_it_can_be_done() {
    let mut scene = Scene::new();
    assert_eq!(scene.decide(), RestoreStep::Check { pod: "c-0".into() });
    scene.lose("c-0");
    assert_eq!(scene.decide(), RestoreStep::Check { pod: "c-1".into() });
    scene.answer = Some(RestoreAnswer::Refused("no backup".into()));
    assert_eq!(scene.decide(), RestoreStep::Refused { why: "no backup".into() });
    assert!(!scene.decide().takes_over());
    scene.request = None;
    assert_eq!(scene.decide(), RestoreStep::Nothing);
}

#[test]
fn the_holder_stops_first_and_the_next_term_has_no_voter_of_before() {
    let mut scene = Scene::new();
    scene.answer = Some(possible());
    let ordered = scene.write().clone();
    assert!(ordered.awaits_restore() && ordered.handover.is_some() && ordered.term == Term(2));
    assert_eq!(scene.decide(), RestoreStep::Stopping);
    // What was ordered is carried out, whatever stands in the spec meanwhile.
    for request in [None, Some(request("two"))] {
        scene.request = request;
        assert_eq!(scene.decide(), RestoreStep::Stopping);
    }
    scene.register.released = true;
    let begun = scene.write();
    assert_eq!((begun.term, begun.seal_term, begun.released), (Term(3), Term(3), false));
    assert!(begun.quorum.voters.is_empty() && begun.quorum.acks == 1 && begun.pending.is_none());
    assert_eq!(begun.restore_of_term().map(|order| order.backup_id.as_str()), Some("b"));
    assert!(begun.handover.is_none() && begun.holder.as_ref().is_some_and(|holder| holder.member.is_none()));
    assert_eq!(begun.forks.last().map(|fork| (fork.term, fork.parent_term)), Some((Term(3), Term(2))));
    scene.request = Some(request("one"));
    assert_eq!(scene.decide(), RUNNING);
}

#[test]
fn a_holder_that_is_gone_before_or_while_it_restores_is_replaced_once_it_must_be_fenced() {
    let mut scene = Scene::begun();
    scene.lose("c-0");
    scene.unchanged_ms = TAKE_OVER_MS - 1;
    assert_eq!(scene.decide(), RUNNING);
    scene.unchanged_ms = TAKE_OVER_MS;
    let next = scene.write();
    assert_eq!(next.holder.as_ref().map(|holder| holder.pod.as_str()), Some("c-1"));
    assert_eq!((next.term, next.restore_of_term().is_some()), (Term(4), true));
}

#[test]
fn what_was_carried_out_is_never_carried_out_again() {
    let mut scene = Scene::begun();
    let mut primary = status(0);
    (primary.is_primary, primary.term, primary.member) = (true, Term(3), Some(MemberId("new".into())));
    primary.system_id = Some("7".into());
    scene.register = register_observed(&scene.register, &primary).expect("a record");
    assert_eq!(scene.decide(), RestoreStep::Nothing);
    scene.register.term = Term(9);
    assert_eq!(scene.decide(), RestoreStep::Nothing, "terms later");
    scene.request = Some(request("two"));
    assert!(matches!(scene.decide(), RestoreStep::Stop { .. }), "but another one is");
}

#[test]
fn an_id_from_before_the_register_is_ignored() {
    let mut scene = Scene::new();
    scene.answer = Some(possible());
    scene.register.restore = Some(RestoreMark { id: "one".into(), order: None });
    assert_eq!(scene.decide(), RestoreStep::Nothing);
}

#[test]
fn a_restore_that_cannot_succeed_gives_way_to_another() {
    let mut scene = Scene::begun();
    (scene.request, scene.answer) = (Some(request("two")), None);
    assert_eq!(scene.decide(), RestoreStep::Running { ask: Some("c-0".into()) });
    scene.answer = Some(RestoreAnswer::Refused("no".into()));
    assert_eq!(scene.decide(), RUNNING, "the first one goes on");
    scene.answer = Some(possible());
    let next = scene.write();
    assert_eq!(next.restore.as_ref().map(|mark| mark.id.as_str()), Some("two"));
    assert_eq!(next.term, Term(4));
}

#[test]
fn a_role_that_is_moving_comes_first() {
    let mut scene = Scene::new();
    scene.answer = Some(possible());
    scene.register.seal_term = Term(3);
    assert!(matches!(scene.decide(), RestoreStep::Wait { .. }));
}

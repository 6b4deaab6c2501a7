//! The decisions over rounds made by hand.

use std::collections::BTreeMap;

use pgherd_core::{
    instance::InstanceStatus,
    lsn::Lsn,
    register::{FailoverKind, FailoverNote, Holder, MemberId, Register, Term},
};

use super::*;
use crate::controllers::postgres_cluster::{
    observe::{
        ObservedPod,
        testing::{at, claim, empty_agent, held_by_0, observed, pod, primary, replica, sealed, settled, voter, voters},
    },
    test_support::{MINIMAL, validated},
};

const REQUIRED: &str = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 1}}";

fn plan(spec: &str, seen: &Observed, memory: &mut Memory) -> Plan {
    let now = at(seen.read_at_ms);
    decide(&validated(spec), seen, memory, now)
}

/// The plan after the same has been seen every second up to `until_ms`.
fn plan_after(spec: &str, until_ms: u64, seen: impl Fn(u64) -> Observed) -> Plan {
    let mut memory = Memory::default();
    let mut last = Plan::default();
    for ms in (0..=until_ms).step_by(1_000) {
        last = plan(spec, &seen(ms + 1), &mut memory);
    }
    last
}

fn labels(plan: &Plan) -> Vec<(&str, Option<&str>)> {
    plan.roles.iter().map(|change| (change.pod.as_str(), change.role)).collect()
}

/// The settled cluster, but shop-0 does not answer and its Lease is not renewed any more.
fn primary_lost(ms: u64, acks: u32, receivers_silent_ms: u64) -> Observed {
    let mut seen = settled(at(ms), "same", acks);
    seen.pods[0] = pod(0, Some("primary"), None);
    for pod in &mut seen.pods[1..] {
        let mut status = pod.status().unwrap().clone();
        status.receiver.as_mut().unwrap().silent_ms = receivers_silent_ms;
        pod.probe = pgherd_core::failover::Probe::Reachable(Box::new(status));
    }
    seen
}

#[test]
fn a_settled_cluster_needs_nothing() {
    for (spec, acks) in [(MINIMAL, 0), (REQUIRED, 1)] {
        let plan = plan_after(spec, 30_000, |ms| settled(at(ms), &ms.to_string(), acks));
        assert_eq!(plan, Plan { replicas: 3, acks, requeue_after_ms: POLL_MS, ..Plan::default() });
    }
}

#[test]
fn in_mode_off_a_silent_primary_is_left_alone_until_the_take_over_time() {
    let plan = plan_after(MINIMAL, 11_000, |ms| primary_lost(ms, 0, 60_000));
    assert_eq!(plan.action, Action::Nothing);
    assert!(plan.roles.is_empty(), "its label stays: its Lease may still be good");
    let plan = plan_after(MINIMAL, 12_000, |ms| primary_lost(ms, 0, 60_000));
    assert!(matches!(plan.action, Action::Failover(Step::Seal { .. })), "{:?}", plan.action);
}

#[test]
fn in_mode_required_a_silent_primary_is_sealed_and_unrouted_first() {
    let plan = plan_after(REQUIRED, 4_000, |ms| primary_lost(ms, 1, 4_500));
    let Action::Failover(Step::Seal { term, reason, .. }) = &plan.action else { panic!("{:?}", plan.action) };
    assert_eq!((*term, *reason), (Term(2), SuspicionReason::Silent));
    assert_eq!(labels(&plan), [("shop-0", None)]);
}

#[test]
fn a_primary_that_its_replicas_still_hear_is_not_sealed() {
    let plan = plan_after(REQUIRED, 8_000, |ms| primary_lost(ms, 1, 100));
    assert_eq!(plan.action, Action::Nothing);
}

#[test]
fn a_suspended_cluster_decides_no_failover() {
    let spec = "{instances: 3, storage: {size: 10Gi}, suspend: true}";
    let plan = plan_after(spec, 20_000, |ms| primary_lost(ms, 0, 60_000));
    assert_eq!((plan.action, plan.roles), (Action::Nothing, Vec::new()));
}

#[test]
fn a_primary_that_is_gone_together_with_all_voters_blocks_the_failover_and_names_them() {
    let seen = |ms| {
        let pods = (0..3).map(|ordinal| pod(ordinal, None, None)).collect();
        observed(at(ms), &held_by_0(voters(&[1, 2], 0)), "same", pods)
    };
    assert_eq!(plan_after(MINIMAL, 11_000, seen).blocked, None);
    let blocked = plan_after(MINIMAL, 12_000, seen).blocked.unwrap();
    assert_eq!((blocked.reason, blocked.missing.join(" ").as_str()), (NOBODY_ANSWERS, "shop-1 shop-2"));
    assert!(blocked.why.contains("or for shop-1, shop-2"), "{}", blocked.why);
}

fn sealing(acks: u32) -> Observed {
    let mut seen = primary_lost(1, acks, 9_000);
    let register = Register { seal_term: Term(2), ..held_by_0(voters(&[1, 2], acks)) };
    seen.register = observed(at(1), &register, "2", Vec::new()).register;
    seen.pods[0].role = None;
    seen
}

fn step_with(seen: &Observed, seals: &[SealReport]) -> Step {
    let mut memory = Memory::default();
    let lease = &seen.register.as_ref().unwrap().view;
    memory.observe(lease, seen, at(1));
    decide_failover_step(&validated(REQUIRED), lease, seen, memory.observation.as_ref().unwrap(), Some(seals))
}

#[test]
fn another_replica_of_the_operator_goes_on_with_the_sealing() {
    let mut memory = Memory::default();
    let plan = plan(REQUIRED, &sealing(1), &mut memory);
    let Action::Failover(Step::CollectSeals { term, pods }) = &plan.action else { panic!("{:?}", plan.action) };
    assert_eq!((*term, pods.as_slice()), (Term(2), ["shop-1".to_owned(), "shop-2".to_owned()].as_slice()));
    assert_eq!(memory.failover.unwrap().from, "shop-0");
}

#[test]
fn of_those_that_sealed_the_furthest_is_claimed() {
    let step = step_with(&sealing(1), &[sealed(1, 0x300_0000), sealed(2, 0x300_0100)]);
    let Step::Claim { pod, candidates, possible_loss_bytes, .. } = step else { panic!("{step:?}") };
    assert_eq!((pod.as_str(), possible_loss_bytes, candidates.len()), ("shop-2", 0, 2));
}

#[test]
fn a_quorum_that_did_not_seal_blocks_and_is_named() {
    let step = step_with(&sealing(1), &[sealed(1, 0x300_0000)]);
    let Step::Blocked { missing, why, .. } = step else { panic!("{step:?}") };
    assert_eq!(missing, [voter(2)]);
    assert!(why.contains("shop-2"), "{why}");
}

#[test]
fn a_claimed_winner_is_routed_to_once_it_serves_in_its_term() {
    let register = Register {
        term: Term(2),
        seal_term: Term(2),
        holder: Some(Holder {
            pod: "shop-2".into(),
            pod_uid: "u2".into(),
            boot_nonce: String::new(),
            address: None,
            member: Some(MemberId("m2".into())),
        }),
        ..held_by_0(voters(&[1], 1))
    };
    let mut winner = primary(2, &[1], &voters(&[1], 1));
    let seen = |winner| {
        let pods =
            vec![pod(0, None, None), pod(1, Some("replica"), Some(replica(1))), pod(2, Some("replica"), Some(winner))];
        observed(at(1), &register, "3", pods)
    };
    let early = plan(REQUIRED, &seen(winner.clone()), &mut Memory::default());
    assert_eq!(labels(&early), [("shop-2", None)], "it serves an older term");
    winner.term = Term(2);
    let plan = plan(REQUIRED, &seen(winner), &mut Memory::default());
    assert_eq!(labels(&plan), [("shop-2", Some("primary"))]);
}

#[test]
fn a_primary_that_lets_no_client_in_yet_is_not_routed_to_and_keeps_the_label_that_it_has() {
    let mut seen = settled(at(1), "1", 1);
    let promoted = |phase| InstanceStatus { phase, ..primary(0, &[1, 2], &voters(&[1, 2], 1)) };
    for phase in [Phase::Promoting, Phase::Starting] {
        seen.pods[0] = pod(0, None, Some(promoted(phase)));
        assert!(labels(&plan(REQUIRED, &seen, &mut Memory::default())).is_empty());
        seen.pods[0] = pod(0, Some("primary"), Some(promoted(phase)));
        assert!(labels(&plan(REQUIRED, &seen, &mut Memory::default())).is_empty());
    }
    seen.pods[0] = pod(0, None, Some(promoted(Phase::Primary)));
    assert_eq!(labels(&plan(REQUIRED, &seen, &mut Memory::default())), [("shop-0", Some("primary"))]);
}

#[test]
fn a_former_primary_loses_its_label_before_the_new_one_gets_it() {
    let mut seen = settled(at(1), "1", 0);
    let register = &mut seen.register.as_mut().unwrap().view.register;
    register.holder = Some(Holder {
        pod: "shop-1".into(),
        pod_uid: "u1".into(),
        boot_nonce: String::new(),
        address: None,
        member: Some(MemberId("m1".into())),
    });
    seen.pods[1] = pod(1, None, Some(primary(1, &[], &voters(&[], 0))));
    let plan = plan(MINIMAL, &seen, &mut Memory::default());
    assert_eq!(labels(&plan), [("shop-0", None), ("shop-1", Some("primary"))]);
}

#[test]
fn a_pod_made_again_under_the_holders_name_is_not_the_holder() {
    let mut seen = settled(at(1), "1", 0);
    seen.pods[0].uid = "another".into();
    assert!(seen.serving_holder().is_none());
    assert_eq!(labels(&plan(MINIMAL, &seen, &mut Memory::default())), [("shop-0", None)]);
}

#[test]
fn a_winner_that_never_becomes_primary_is_sealed_in_the_next_term() {
    // Its timeline is not known before it was primary.
    let register = Register { timeline: None, ..held_by_0(voters(&[1, 2], 1)) };
    let seen = |ms: u64| seen_as(&register, Phase::Promoting, ms);
    assert!(!matches!(plan_after(REQUIRED, 30_000, seen).action, Action::Failover(_)));
    let plan = plan_after(REQUIRED, 31_000, seen);
    assert!(matches!(plan.action, Action::Failover(Step::Seal { term: Term(2), .. })), "{:?}", plan.action);
}

#[test]
fn a_primary_that_takes_its_time_to_stop_is_not_sealed() {
    let register = held_by_0(voters(&[1, 2], 1));
    let plan = plan_after(REQUIRED, 60_000, |ms| seen_as(&register, Phase::Stopped, ms));
    assert!(!matches!(plan.action, Action::Failover(_)), "{:?}", plan.action);
}

/// The holder is no primary and in this phase, and renews, so that its Lease never runs out.
fn seen_as(register: &Register, phase: Phase, ms: u64) -> Observed {
    let holder = InstanceStatus { phase, ..replica(0) };
    let pods = vec![pod(0, None, Some(holder)), pod(1, None, Some(replica(1))), pod(2, None, Some(replica(2)))];
    observed(at(ms), register, &ms.to_string(), pods)
}

#[test]
fn a_primary_that_recovers_after_a_crash_is_left_to_do_so() {
    let register = held_by_0(voters(&[1, 2], 1));
    let plan = plan_after(REQUIRED, 60_000, |ms| seen_as(&register, Phase::Starting, ms));
    assert!(!matches!(plan.action, Action::Failover(_)), "{:?}", plan.action);
}

#[test]
fn without_a_lease_an_empty_register_is_made() {
    let plan = plan(MINIMAL, &Observed::default(), &mut Memory::default());
    assert_eq!(plan.action, Action::CreateRegister);
}

#[test]
fn an_unreadable_register_stops_everything_and_is_left_as_it_is() {
    let seen = Observed { register_problem: Some("its annotation is not JSON".into()), ..Observed::default() };
    let plan = plan(MINIMAL, &seen, &mut Memory::default());
    assert_eq!(plan.action, Action::Nothing);
    assert_eq!(plan.stalled.unwrap().reason, "RegisterUnreadable");
}

/// An empty register, new claims, and these agents.
fn unborn(pods: Vec<ObservedPod>) -> Observed {
    let claims: BTreeMap<_, _> = (0..3).map(|ordinal| (ordinal, claim(1_000))).collect();
    Observed { claims, ..observed(at(1), &Register::default(), "1", pods) }
}

fn changed(plan: &Plan) -> Option<(ChangeKind, &Register)> {
    match &plan.action {
        Action::Change { register, kind } => Some((*kind, register)),
        _ => None,
    }
}

#[test]
fn a_new_cluster_is_begun_by_the_lowest_ordinal_that_answers() {
    let pods = vec![pod(0, None, None), pod(1, None, Some(empty_agent(1))), pod(2, None, Some(empty_agent(2)))];
    let plan = plan(REQUIRED, &unborn(pods), &mut Memory::default());
    let (kind, register) = changed(&plan).unwrap();
    assert_eq!((kind, register.holder.as_ref().unwrap().pod.as_str()), (ChangeKind::Bootstrap, "shop-1"));
    assert_eq!((register.term, register.quorum.acks), (Term(1), 1));
}

#[test]
fn nothing_is_begun_while_an_old_claim_may_hold_data() {
    let mut seen = unborn(vec![pod(0, None, Some(empty_agent(0))), pod(1, None, None)]);
    seen.claims.insert(1, claim(-1_000));
    let plan = plan(MINIMAL, &seen, &mut Memory::default());
    assert_eq!(plan.action, Action::Nothing);
    assert!(plan.note.unwrap().contains("shop-1"));
}

#[test]
fn a_cluster_that_was_initialised_once_is_never_initialised_again() {
    let seen = unborn(vec![pod(0, None, Some(empty_agent(0)))]);
    let mut cluster = validated(MINIMAL);
    cluster.status.system_id = Some("7300000000000000001".into());
    let plan = decide(&cluster, &seen, &mut Memory::default(), at(1));
    assert_eq!(plan.action, Action::Nothing);
    assert_eq!(plan.stalled.unwrap().reason, "DataLost");
}

#[test]
fn a_lost_register_is_made_again_so_that_everybody_must_seal() {
    let mut far = replica(1);
    (far.term, far.sealed_term) = (Term(4), Term(5));
    let plan =
        plan(MINIMAL, &unborn(vec![pod(0, None, Some(replica(0))), pod(1, None, Some(far))]), &mut Memory::default());
    let (kind, register) = changed(&plan).unwrap();
    assert_eq!((kind, register.term, register.seal_term), (ChangeKind::Rebuild, Term(5), Term(6)));
    assert_eq!(register.quorum, voters(&[0, 1], 1));
    assert_eq!(register.holder.as_ref().unwrap().pod_uid, "", "no pod may take itself for the holder");
    assert_eq!(register.system_id.as_deref(), Some("7300000000000000001"));
}

#[test]
fn a_lost_register_waits_for_every_instance() {
    let plan = plan(MINIMAL, &unborn(vec![pod(0, None, Some(replica(0))), pod(1, None, None)]), &mut Memory::default());
    assert_eq!(plan.action, Action::Nothing);
    assert!(plan.note.unwrap().contains("shop-1"));
}

#[test]
fn volumes_of_different_clusters_are_not_mixed() {
    let mut foreign = replica(1);
    foreign.system_id = Some("1".into());
    let plan = plan(
        MINIMAL,
        &unborn(vec![pod(0, None, Some(replica(0))), pod(1, None, Some(foreign))]),
        &mut Memory::default(),
    );
    assert_eq!(plan.stalled.unwrap().reason, "RegisterLost");
}

#[test]
fn what_the_first_primary_is_gets_written_down() {
    let mut seen = settled(at(1), "1", 0);
    let register = &mut seen.register.as_mut().unwrap().view.register;
    (register.system_id, register.timeline) = (None, None);
    let plan = plan(MINIMAL, &seen, &mut Memory::default());
    let (kind, register) = changed(&plan).unwrap();
    assert_eq!(kind, ChangeKind::Record);
    assert_eq!(register.system_id.as_deref(), Some("7300000000000000001"));
    assert!(register.timeline.is_some());
}

#[test]
fn a_replica_that_streams_becomes_a_voter_in_two_steps() {
    let quorum = voters(&[1], 1);
    let mut seen = settled(at(1), "1", 1);
    seen.register = observed(at(1), &held_by_0(quorum.clone()), "1", Vec::new()).register;
    seen.pods[0] = pod(0, Some("primary"), Some(primary(0, &[1, 2], &quorum)));
    let first = plan(REQUIRED, &seen, &mut Memory::default());
    let (kind, register) = changed(&first).unwrap();
    assert_eq!(
        (kind, &register.quorum, register.pending.as_ref()),
        (ChangeKind::Voters, &quorum, Some(&voters(&[1, 2], 1)))
    );

    let register = register.clone();
    seen.register = observed(at(1), &register, "2", Vec::new()).register;
    assert_eq!(
        plan(REQUIRED, &seen, &mut Memory::default()).action,
        Action::Nothing,
        "the primary has not applied it yet"
    );
    seen.pods[0] = pod(0, Some("primary"), Some(primary(0, &[1, 2], &voters(&[1, 2], 1))));
    let second = plan(REQUIRED, &seen, &mut Memory::default());
    let (_, register) = changed(&second).unwrap();
    assert_eq!((&register.quorum, &register.pending), (&voters(&[1, 2], 1), &None));
}

#[test]
fn a_voter_leaves_the_register_before_its_pod_is_stopped() {
    let spec = "{instances: 2, storage: {size: 10Gi}}";
    let seen = settled(at(1), "1", 0);
    let before = plan(spec, &seen, &mut Memory::default());
    assert_eq!(before.replicas, 3);
    let (kind, register) = changed(&before).unwrap();
    assert_eq!((kind, register.pending.as_ref().unwrap()), (ChangeKind::Voters, &voters(&[1], 0)));
    let seen = observed(at(1), &held_by_0(voters(&[1], 0)), "2", seen.pods.clone());
    assert_eq!(plan(spec, &seen, &mut Memory::default()).replicas, 2);
}

#[test]
fn a_single_instance_that_released_its_lease_gets_the_role_again() {
    let spec = "{instances: 1, storage: {size: 10Gi}}";
    let register = Register { released: true, ..held_by_0(voters(&[], 0)) };
    let mut down = replica(0);
    (down.phase, down.postgres_up, down.receiver) = (Phase::Stopped, false, None);
    let seen = observed(at(1), &register, "1", vec![pod(0, Some("primary"), Some(down))]);
    let plan = plan(spec, &seen, &mut Memory::default());
    let (kind, next) = changed(&plan).unwrap();
    assert_eq!((kind, next.term, next.released), (ChangeKind::Regrant, Term(2), false));
}

#[test]
fn a_released_primary_whose_pod_ends_keeps_its_label_until_its_successor_has_one() {
    let released = Register { released: true, ..held_by_0(voters(&[1, 2], 1)) };
    let mut down = replica(0);
    (down.phase, down.postgres_up, down.receiver) = (Phase::Stopped, false, None);
    let seen = |register: &Register, terminating, winner: Option<&str>| {
        let mut pods = vec![pod(0, Some("primary"), Some(down.clone())), pod(1, winner, Some(replica(1)))];
        pods[0].terminating = terminating;
        observed(at(1), register, "1", pods)
    };
    let unrouted = |seen: Observed| {
        let plan = plan(REQUIRED, &seen, &mut Memory::default());
        labels(&plan).contains(&("shop-0", None))
    };
    assert!(!unrouted(seen(&released, true, None)));
    assert!(unrouted(seen(&released, false, None)), "it may start again as a standby that serves reads");
    let mut claimed = held_by_0(voters(&[1, 2], 1));
    assert!(unrouted(seen(&Register { seal_term: Term(2), ..claimed.clone() }, false, None)));
    (claimed.term, claimed.seal_term) = (Term(2), Term(2));
    claimed.holder = Some(Holder { pod: "shop-1".into(), pod_uid: "u1".into(), ..claimed.holder.unwrap() });
    assert!(!unrouted(seen(&claimed, true, None)));
    assert!(unrouted(seen(&claimed, true, Some("primary"))));
}

#[test]
fn data_of_another_cluster_is_not_routed_to() {
    let mut seen = settled(at(1), "1", 0);
    seen.register.as_mut().unwrap().view.register.system_id = Some("9".into());
    seen.pods[0].role = None;
    let plan = plan(MINIMAL, &seen, &mut Memory::default());
    assert!(plan.roles.is_empty());
    assert_eq!(plan.action, Action::Nothing);
    assert_eq!(plan.stalled.unwrap().reason, "ForeignData");
}

#[test]
fn a_failover_is_recorded_with_its_times() {
    let progress = FailoverProgress {
        term: Term(2),
        from: "shop-0".into(),
        reason: "it fell silent".into(),
        kind: FailoverKind::Silent,
        detect_ms: 4_100,
        sealed_at_ms: 10_000,
        claimed: Some(Claimed {
            to: "shop-2".into(),
            to_uid: "u2".into(),
            candidates: Vec::new(),
            possible_loss_bytes: Lsn(5).0,
            at: at(10_200).wall,
            at_ms: 10_200,
            promoted_at_ms: Some(10_900),
        }),
    };
    let record = progress.completed(10_950).unwrap();
    assert_eq!((record.detect_ms, record.seal_ms, record.promote_ms, record.route_ms), (4_100, 200, 700, 50));
    assert_eq!((record.from.as_str(), record.to.as_str(), record.term), ("shop-0", "shop-2", 2));
}

#[test]
fn no_pod_is_stopped_while_the_register_is_lost() {
    let seen = Observed { pods: settled(at(1), "1", 0).pods, ..Observed::default() };
    assert_eq!(plan("{instances: 1, storage: {size: 10Gi}}", &seen, &mut Memory::default()).replicas, 3);
}

/// What an operator that has gone left in the register, five seconds after sealing and two after the claim.
fn noted(claimed: bool) -> FailoverNote {
    let before = |ms: i64| at(10_000).wall.as_millisecond() - ms;
    FailoverNote {
        from: "shop-0".into(),
        reason: "switchover requested".into(),
        detect_ms: 300,
        began_at_ms: before(5_000),
        claimed_at_ms: claimed.then(|| before(2_000)),
        kind: FailoverKind::Switchover,
        candidates: Vec::new(),
        possible_loss_bytes: claimed.then_some(7),
        again: false,
    }
}

#[test]
fn a_failover_that_another_operator_began_keeps_its_reason_and_its_times() {
    let sealing = Register { seal_term: Term(2), failover: Some(noted(false)), ..held_by_0(voters(&[1, 2], 1)) };
    let mut memory = Memory::default();
    memory.resume(&sealing, Some(1), at(10_000));
    let progress = memory.failover.clone().unwrap();
    assert_eq!((progress.reason.as_str(), progress.detect_ms), ("switchover requested", 300));
    assert_eq!(progress.sealed_at_ms, 5_000);
    let holder =
        Holder { pod: "shop-1".into(), pod_uid: "u1".into(), boot_nonce: String::new(), address: None, member: None };
    let claimed = Register {
        term: Term(2),
        seal_term: Term(2),
        holder: Some(holder),
        failover: Some(noted(true)),
        ..held_by_0(voters(&[2], 1))
    };
    let mut memory = Memory::default();
    memory.resume(&claimed, Some(1), at(10_000));
    let mut progress = memory.failover.clone().unwrap();
    progress.claimed.as_mut().unwrap().promoted_at_ms = Some(8_400);
    let record = progress.completed(8_500).unwrap();
    assert_eq!((record.seal_ms, record.promote_ms, record.route_ms), (3_000, 400, 100));
    assert_eq!((record.to.as_str(), record.possible_loss_bytes), ("shop-1", 7));
    let mut memory = Memory::default();
    memory.resume(&claimed, Some(2), at(10_000));
    assert_eq!(memory.failover, None, "it is on record already");
    memory.resume(&claimed, None, at(3_600_000));
    assert_eq!(memory.failover, None, "that was an hour ago");
}

/// The settled cluster on nodes of which these are cordoned.
fn cordoned(ms: u64, acks: u32, nodes: &[&str]) -> Observed {
    let draining = Some(nodes.iter().map(|node| (*node).to_owned()).collect());
    Observed { draining, ..settled(at(ms), &ms.to_string(), acks) }
}

#[test]
fn the_primary_is_kept_from_being_evicted_only_where_a_drain_would_be_noticed_and_somebody_could_take_over() {
    let protects = |spec: &str, seen: Observed| plan(spec, &seen, &mut Memory::default()).protect_primary;
    assert!(protects(MINIMAL, cordoned(1, 0, &[])));
    assert!(!protects(MINIMAL, settled(at(1), "1", 0)), "nodes can't be read");
    assert!(!protects("{instances: 1, storage: {size: 10Gi}}", cordoned(1, 0, &[])));
}

#[test]
fn a_drain_that_waits_for_ten_minutes_in_vain_is_let_through() {
    let all = ["node-0", "node-1", "node-2"];
    let plan = plan_after(MINIMAL, 599_000, |ms| cordoned(ms, 0, &all));
    assert!(plan.protect_primary);
    let waiting = plan.switchover.unwrap();
    assert_eq!((waiting.phase.as_str(), waiting.reason.as_str()), ("Waiting", "node node-0 is being drained"));
    assert!(!plan_after(MINIMAL, 600_000, |ms| cordoned(ms, 0, &all)).protect_primary);
}

#[test]
fn a_drained_primary_moves_and_a_drained_replica_does_not_matter() {
    let moved = plan_after(REQUIRED, 1_000, |ms| cordoned(ms, 1, &["node-0", "node-1"]));
    let Action::HandOver(HandoverStep::Begin { status, .. }) = &moved.action else { panic!("{:?}", moved.action) };
    assert_eq!(status.target.as_deref(), Some("shop-2"));
    let stays = plan_after(REQUIRED, 1_000, |ms| cordoned(ms, 1, &["node-1"]));
    assert_eq!((stays.action, stays.switchover), (Action::Nothing, None));
}

#[test]
fn a_replica_is_told_to_build_itself_anew_and_the_primary_is_not() {
    let ask = |pod: &str| {
        let mut asked = validated(REQUIRED);
        asked.requests.rebuild = Some(pod.into());
        let plan = decide(&asked, &settled(at(1), "1", 1), &mut Memory::default(), at(1));
        (plan.action, plan.answers.into_iter().filter_map(|answer| answer.refused).collect::<Vec<_>>())
    };
    let (action, refused) = ask("shop-1");
    assert!(matches!(action, Action::Rebuild(request) if request.value == "shop-1"));
    assert_eq!(refused, Vec::<String>::new());
    let (action, refused) = ask("shop-0");
    assert_eq!(
        (action, refused),
        (Action::Nothing, vec!["shop-0 is the primary: ask for a switchover first".to_owned()])
    );
}

#[test]
fn a_suspended_cluster_leaves_requests_as_they_are() {
    let mut suspended = validated("{instances: 3, storage: {size: 10Gi}, suspend: true}");
    suspended.requests.switchover = Some("shop-1".into());
    let plan = decide(&suspended, &settled(at(1), "1", 0), &mut Memory::default(), at(1));
    assert_eq!((plan.action, plan.answers), (Action::Nothing, Vec::new()));
}

#[test]
fn a_request_that_meets_a_failover_is_refused_and_one_that_the_register_holds_is_done_with() {
    let refused = |register: &Register, value: &str| {
        let mut asked = validated(REQUIRED);
        asked.requests.switchover = Some(value.into());
        let mut seen = sealing(1);
        seen.register = observed(at(1), register, "2", Vec::new()).register;
        let plan = decide(&asked, &seen, &mut Memory::default(), at(1));
        plan.answers.into_iter().map(|answer| answer.refused).collect::<Vec<_>>()
    };
    let mut register = Register { seal_term: Term(2), ..held_by_0(voters(&[1, 2], 1)) };
    assert!(refused(&register, "any")[0].as_ref().unwrap().contains("failover"));
    register.handover =
        Some(pgherd_core::register::Handover { target: Some("shop-1".into()), reason: "switchover requested".into() });
    assert_eq!(refused(&register, "any"), [None]);
    assert_eq!(refused(&register, "shop-1"), [None]);
    assert!(refused(&register, "shop-2")[0].as_ref().unwrap().contains("shop-1 already"));
}

const PREFERRED: &str = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Preferred, replicas: 1}}";

#[test]
fn preferred_gives_up_its_promise_after_three_seconds_without_replicas_and_takes_it_up_at_once() {
    let alone = |ms: u64| {
        let quorum = voters(&[1, 2], 1);
        let pods =
            vec![pod(0, Some("primary"), Some(primary(0, &[], &quorum))), pod(1, None, None), pod(2, None, None)];
        observed(at(ms), &held_by_0(quorum), &ms.to_string(), pods)
    };
    assert_eq!(plan_after(PREFERRED, 2_000, alone).action, Action::Nothing);
    let plan_alone = plan_after(PREFERRED, 3_000, alone);
    let (kind, register) = changed(&plan_alone).unwrap();
    assert_eq!(
        (kind, register.pending.as_ref().map(|set| set.acks), plan_alone.acks),
        (ChangeKind::Voters, Some(0), 0)
    );
    let back = plan(PREFERRED, &settled(at(1), "1", 0), &mut Memory::default());
    let (_, register) = changed(&back).unwrap();
    assert_eq!(register.pending, Some(voters(&[1, 2], 1)));
    let first = plan(PREFERRED, &unborn(vec![pod(0, None, Some(empty_agent(0)))]), &mut Memory::default());
    assert_eq!(changed(&first).unwrap().1.quorum.acks, 0, "nobody is there yet to be waited for");
}

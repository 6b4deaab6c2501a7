//! A restore in place beside everything else that a round decides.

use pgherd_core::{
    instance::{RecoveryTarget, RestoreQuestion},
    register::{RestoreOrder, Term},
    timeline::TimelineId,
};
use pgherd_crds::PostgresClusterStatus;

use super::*;
use crate::controllers::postgres_cluster::{
    decide::decide,
    observe::{
        Observed,
        testing::{at, empty_agent, held_by_0, observed, pod, primary, replica, settled, voters},
    },
    test_support::validated,
};

const SPEC: &str = r#"
instances: 3
storage: {size: 10Gi}
synchronous: {mode: Required, replicas: 1}
backup: {objectStore: {endpoint: "https://minio.minio.svc:9000", bucket: backups, credentialsSecretRef: {name: minio}}}
restore: {id: one}
"#;

fn request() -> RestoreRequest {
    let question = RestoreQuestion { backup_id: None, target: RecoveryTarget::Latest, timeline: None };
    RestoreRequest { id: "one".into(), question }
}

fn answered(answer: RestoreAnswer) -> Memory {
    Memory { restore: Some(RestoreMemory { request: request(), answer, at_ms: 0 }), ..Memory::default() }
}

fn possible() -> Memory {
    answered(RestoreAnswer::Possible { backup_id: "b".into(), timeline: TimelineId(1) })
}

fn plan(seen: &Observed, memory: &mut Memory) -> Plan {
    decide(&validated(SPEC), seen, memory, at(seen.read_at_ms))
}

/// The register of term 2, in which shop-0 restores.
fn restoring() -> Register {
    let order = RestoreOrder {
        backup_id: "b".into(),
        target: RecoveryTarget::Latest,
        timeline: TimelineId(1),
        term: Some(Term(2)),
    };
    let mut register = held_by_0(voters(&[], 1));
    (register.term, register.seal_term) = (Term(2), Term(2));
    if let Some(holder) = register.holder.as_mut() {
        holder.member = None;
    }
    Register { restore: Some(RestoreMark { id: "one".into(), order: Some(order) }), ..register }
}

fn phase(plan: &Plan) -> Option<&str> {
    plan.restore.as_ref().map(|restore| restore.phase.as_str())
}

#[test]
fn an_instance_is_asked_while_the_cluster_is_looked_after_as_ever() {
    let asked = plan(&settled(at(1), "1", 1), &mut Memory::default());
    assert_eq!(phase(&asked), Some("Checking"));
    assert_eq!(asked.action, Action::Restore(RestoreAction::Check { pod: "shop-0".into(), request: request() }));
    let refused = plan(&settled(at(1), "1", 1), &mut answered(RestoreAnswer::Refused("no backup".into())));
    assert_eq!((phase(&refused), &refused.action), (Some("Refused"), &Action::Nothing));
    let again = plan(&settled(at(ANSWER_MS), "1", 1), &mut answered(RestoreAnswer::Refused("no backup".into())));
    assert!(matches!(again.action, Action::Restore(_)));
}

#[test]
fn once_it_can_be_done_the_holder_is_asked_to_stop_and_its_label_goes_with_its_role() {
    let stop = plan(&settled(at(1), "1", 1), &mut possible());
    let Action::Change { register, kind: ChangeKind::Restore } = stop.action else { panic!("{:?}", stop.action) };
    assert!(register.awaits_restore() && register.handover.is_some());
    let released = Register { released: true, ..*register };
    let pods = vec![pod(0, Some("primary"), Some(empty_agent(0))), pod(1, Some("replica"), Some(replica(1)))];
    let begin = plan(&observed(at(1), &released, "2", pods), &mut Memory::default());
    assert_eq!(phase(&begin), Some("Restoring"));
    assert!(begin.roles.iter().any(|change| change.pod == "shop-0" && change.role.is_none()));
    let Action::Change { register, .. } = begin.action else { panic!("{:?}", begin.action) };
    assert_eq!(register.restore_of_term().and_then(|order| order.term), Some(Term(2)));
}

#[test]
fn while_it_restores_nobody_is_promoted_whoever_is_silent() {
    let mut memory = Memory::default();
    for ms in (0..11_000).step_by(1_000) {
        let pods = vec![pod(0, None, None), pod(1, None, Some(replica(1))), pod(2, None, Some(replica(2)))];
        let plan = plan(&observed(at(ms + 1), &restoring(), "same", pods), &mut memory);
        assert_eq!((phase(&plan), &plan.action), (Some("Restoring"), &Action::Nothing), "after {ms} ms");
    }
}

#[test]
fn what_was_restored_is_written_down_and_backed_up() {
    let mut status = primary(0, &[], &voters(&[], 1));
    (status.term, status.member) = (Term(2), Some(pgherd_core::register::MemberId("new".into())));
    let seen = |register: &Register| observed(at(1), register, "1", vec![pod(0, None, Some(status.clone()))]);
    let recorded = plan(&seen(&restoring()), &mut Memory::default());
    let Action::Change { register, kind: ChangeKind::Record } = recorded.action else {
        panic!("{:?}", recorded.action)
    };
    let after = plan(&seen(&register), &mut Memory::default());
    assert_eq!(phase(&after), Some("Completed"));
    let mut cluster = validated(SPEC);
    let done = RestoreStatus { id: "one".into(), phase: "Completed".into(), ..RestoreStatus::default() };
    cluster.status = PostgresClusterStatus { restore: Some(done), ..PostgresClusterStatus::default() };
    let mut plan = Plan::default();
    let seen = seen(&register);
    plan_restore_action(&Scene { cluster: &cluster, observed: &seen, register: &register, now: at(1) }, &mut plan);
    assert_eq!(plan.action, Action::Restore(RestoreAction::BackUp { name: "shop-restored-2".into() }));
}

#[test]
fn an_id_that_the_status_calls_complete_is_not_carried_out_by_a_register_that_forgot_it() {
    let mut cluster = validated(SPEC);
    let done = RestoreStatus { id: "one".into(), phase: "Completed".into(), ..RestoreStatus::default() };
    cluster.status = PostgresClusterStatus { restore: Some(done), ..PostgresClusterStatus::default() };
    let plan = decide(&cluster, &settled(at(1), "1", 1), &mut possible(), at(1));
    assert_eq!(plan.action, Action::Nothing);
}

#[test]
fn what_stands_in_the_spec_of_a_new_cluster_is_ignored() {
    let fresh = observed(at(1), &Register::default(), "1", vec![pod(0, None, Some(empty_agent(0)))]);
    let first = plan(&fresh, &mut Memory::default());
    let Action::Change { register, kind: ChangeKind::Bootstrap } = first.action else { panic!("{:?}", first.action) };
    assert_eq!(register.restore, Some(RestoreMark { id: "one".into(), order: None }));
    let settled = settled(at(1), "1", 1);
    let register = Register { restore: register.restore, ..held_by_0(voters(&[1, 2], 1)) };
    let seen = observed(at(1), &register, "1", settled.pods);
    let plan = plan(&seen, &mut possible());
    assert_eq!((phase(&plan), &plan.action), (Some("Ignored"), &Action::Nothing));
}

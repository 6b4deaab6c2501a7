//! Every rule of [`super::decide_local`].

use pgherd_core::{
    instance::RecoveryTarget,
    register::{Handover, Holder, MemberId, Register, RestoreMark, RestoreOrder, Term},
    timeline::TimelineId,
};

use super::*;

const STANDBY: PostgresView = PostgresView::Standby { ready: true, upstream: None };

fn following(pod: &str) -> PostgresView {
    PostgresView::Standby { ready: true, upstream: Some(pod.to_owned()) }
}

fn register(term: u64, holder: &str) -> Register {
    let holder = Holder {
        pod: holder.to_owned(),
        pod_uid: format!("uid-{holder}"),
        boot_nonce: String::new(),
        address: None,
        member: None,
    };
    Register {
        term: Term(term),
        seal_term: Term(term),
        holder: Some(holder),
        system_id: Some("7".to_owned()),
        ..Register::default()
    }
}

fn ready(term: u64, promoted: u64) -> DataView {
    let local = LocalState {
        member: MemberId("m".to_owned()),
        term: Term(term),
        sealed_term: Term(0),
        was_primary: promoted > 0,
        promoted_term: Term(promoted),
    };
    DataView::Ready { local, system_id: "7".to_owned() }
}

fn sealed(data: DataView, promise: u64) -> DataView {
    match data {
        DataView::Ready { mut local, system_id } => {
            local.sealed_term = Term(promise);
            DataView::Ready { local, system_id }
        }
        other => other,
    }
}

/// Decides for the pod `c-1` of a cluster of three.
fn decide(register: &Register, data: &DataView, postgres: &PostgresView) -> LocalAction {
    decide_local(&LocalInput {
        pod: "c-1",
        pod_uid: "uid-c-1",
        register,
        data,
        postgres,
        instances: 3,
        diverged: false,
    })
}

fn is_stop(action: &LocalAction) -> bool {
    matches!(action, LocalAction::StopNow(_))
}

#[test]
fn without_a_holder_everybody_waits() {
    let action = decide(&Register::default(), &DataView::Absent, &PostgresView::Stopped);
    assert!(matches!(action, LocalAction::Wait(_)));
}

#[test]
fn the_holder_of_a_new_cluster_bootstraps_and_starts_over_when_interrupted() {
    let register = Register { system_id: None, ..register(1, "c-1") };
    for data in [DataView::Absent, DataView::Partial] {
        assert_eq!(decide(&register, &data, &PostgresView::Stopped), LocalAction::Bootstrap);
    }
}

#[test]
fn a_cluster_that_has_a_system_id_is_never_initialised_again() {
    let mut register = register(4, "c-1");
    assert!(matches!(decide(&register, &DataView::Absent, &PostgresView::Stopped), LocalAction::Release(_)));
    register.released = true;
    assert!(matches!(decide(&register, &DataView::Absent, &PostgresView::Stopped), LocalAction::Fail(_)));
}

#[test]
fn others_wait_until_the_first_data_directory_is_there() {
    let register = Register { system_id: None, ..register(1, "c-0") };
    assert!(matches!(decide(&register, &DataView::Absent, &PostgresView::Stopped), LocalAction::Wait(_)));
}

#[test]
fn a_new_replica_is_built_and_a_half_built_one_again() {
    for data in [DataView::Absent, DataView::Partial] {
        let action = decide(&register(2, "c-0"), &data, &PostgresView::Stopped);
        assert_eq!(action, LocalAction::BuildReplica { upstream: "c-0".to_owned() });
    }
}

#[test]
fn a_standby_starts_follows_and_changes_whom_it_follows_without_a_restart() {
    let register = register(2, "c-0");
    let upstream = Some("c-0".to_owned());
    assert_eq!(
        decide(&register, &ready(2, 0), &PostgresView::Stopped),
        LocalAction::StartStandby { upstream: upstream.clone() }
    );
    assert_eq!(
        decide(&register, &ready(2, 0), &following("c-0")),
        LocalAction::KeepReplica { upstream: "c-0".to_owned() }
    );
    assert_eq!(
        decide(&register, &ready(1, 0), &following("c-2")),
        LocalAction::SetUpstream { upstream: upstream.clone() }
    );
    assert_eq!(decide(&register, &ready(1, 0), &STANDBY), LocalAction::SetUpstream { upstream });
}

#[test]
fn a_standby_whose_server_died_is_started_again() {
    let action = decide(&register(2, "c-0"), &ready(2, 0), &PostgresView::Died);
    assert_eq!(action, LocalAction::StartStandby { upstream: Some("c-0".to_owned()) });
}

#[test]
fn a_former_primary_stops_and_rejoins_under_a_higher_term() {
    let register = register(3, "c-0");
    assert!(is_stop(&decide(&register, &ready(2, 2), &PostgresView::Primary)));
    for postgres in [PostgresView::Stopped, PostgresView::Died, STANDBY] {
        assert_eq!(decide(&register, &ready(2, 2), &postgres), LocalAction::Rejoin { upstream: "c-0".to_owned() });
    }
}

#[test]
fn a_diverged_standby_rejoins() {
    let (register, data, postgres) = (register(3, "c-0"), ready(2, 0), following("c-0"));
    let input = LocalInput {
        pod: "c-1",
        pod_uid: "uid-c-1",
        register: &register,
        data: &data,
        postgres: &postgres,
        instances: 3,
        diverged: true,
    };
    assert_eq!(decide_local(&input), LocalAction::Rejoin { upstream: "c-0".to_owned() });
}

#[test]
fn the_chosen_standby_is_promoted_once_it_answers() {
    let register = register(3, "c-1");
    assert_eq!(decide(&register, &ready(2, 0), &STANDBY), LocalAction::Promote);
    assert_eq!(decide(&register, &ready(2, 0), &following("c-0")), LocalAction::Promote);
    assert_eq!(decide(&register, &ready(2, 0), &PostgresView::Stopped), LocalAction::StartStandby { upstream: None });
    let starting = PostgresView::Standby { ready: false, upstream: None };
    assert!(matches!(decide(&register, &ready(2, 0), &starting), LocalAction::Wait(_)));
}

#[test]
fn a_promotion_that_was_interrupted_is_done_again_and_not_skipped() {
    let mut data = ready(3, 0);
    if let DataView::Ready { local, .. } = &mut data {
        local.was_primary = true;
    }
    assert_eq!(
        decide(&register(3, "c-1"), &data, &PostgresView::Stopped),
        LocalAction::StartStandby { upstream: None }
    );
    assert_eq!(decide(&register(3, "c-1"), &data, &STANDBY), LocalAction::Promote);
}

#[test]
fn a_primary_resumes_its_own_term_without_a_new_timeline() {
    let register = register(3, "c-1");
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Stopped), LocalAction::StartPrimary);
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Primary), LocalAction::KeepPrimary);
}

#[test]
fn another_pod_of_the_same_name_waits_until_it_is_granted_the_role() {
    let mut register = register(3, "c-1");
    register.holder.as_mut().unwrap().pod_uid = "uid-of-the-former-pod".to_owned();
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Stopped), LocalAction::StartStandby { upstream: None });
    assert!(matches!(decide(&register, &ready(3, 3), &STANDBY), LocalAction::Wait(_)));
    assert!(is_stop(&decide(&register, &ready(3, 3), &PostgresView::Primary)));
}

#[test]
fn a_former_primary_that_is_granted_the_next_term_goes_through_a_promotion() {
    let register = register(4, "c-1");
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Stopped), LocalAction::StartStandby { upstream: None });
    assert_eq!(decide(&register, &ready(3, 3), &STANDBY), LocalAction::Promote);
    assert!(is_stop(&decide(&register, &ready(3, 3), &PostgresView::Primary)));
}

#[test]
fn when_postgres_dies_the_role_is_given_back_if_there_is_anybody_else() {
    let (register, data) = (register(3, "c-1"), ready(3, 3));
    assert!(matches!(decide(&register, &data, &PostgresView::Died), LocalAction::Release(_)));
    let alone = LocalInput {
        pod: "c-1",
        pod_uid: "uid-c-1",
        register: &register,
        data: &data,
        postgres: &PostgresView::Died,
        instances: 1,
        diverged: false,
    };
    assert_eq!(decide_local(&alone), LocalAction::StartPrimary);
}

#[test]
fn a_released_holder_waits_as_a_standby_that_can_be_asked() {
    let register = Register { released: true, ..register(3, "c-1") };
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Died), LocalAction::StartStandby { upstream: None });
    assert!(matches!(decide(&register, &ready(3, 3), &STANDBY), LocalAction::Wait(_)));
    assert!(is_stop(&decide(&register, &ready(3, 3), &PostgresView::Primary)));
}

#[test]
fn a_seal_stops_a_primary_and_cuts_a_standby_off() {
    let register = Register { seal_term: Term(4), ..register(3, "c-0") };
    assert!(is_stop(&decide(&register, &ready(3, 3), &PostgresView::Primary)));
    assert_eq!(decide(&register, &ready(3, 0), &following("c-0")), LocalAction::Seal);
    assert_eq!(
        decide(&register, &sealed(ready(3, 0), 4), &following("c-0")),
        LocalAction::SetUpstream { upstream: None }
    );
    assert!(matches!(decide(&register, &sealed(ready(3, 0), 4), &STANDBY), LocalAction::Wait(_)));
}

#[test]
fn a_sealed_member_that_was_restarted_follows_nobody_until_the_decision() {
    let register = Register { seal_term: Term(4), ..register(3, "c-0") };
    assert_eq!(
        decide(&register, &sealed(ready(3, 0), 4), &PostgresView::Stopped),
        LocalAction::StartStandby { upstream: None }
    );
}

#[test]
fn a_promise_outlasts_a_register_that_does_not_show_it() {
    let register = register(3, "c-0");
    assert_eq!(
        decide(&register, &sealed(ready(3, 0), 5), &following("c-0")),
        LocalAction::SetUpstream { upstream: None }
    );
    assert!(matches!(decide(&register, &sealed(ready(3, 0), 5), &STANDBY), LocalAction::Wait(_)));
}

#[test]
fn a_promise_is_fulfilled_when_its_term_has_a_holder() {
    let data = sealed(ready(3, 0), 4);
    assert_eq!(
        decide(&register(4, "c-0"), &data, &STANDBY),
        LocalAction::SetUpstream { upstream: Some("c-0".to_owned()) }
    );
    assert_eq!(decide(&register(4, "c-1"), &data, &STANDBY), LocalAction::Promote);
}

#[test]
fn data_of_another_database_system_is_not_touched() {
    let data = DataView::Ready { local: LocalState::new_member(), system_id: "8".to_owned() };
    assert!(matches!(decide(&register(2, "c-0"), &data, &PostgresView::Stopped), LocalAction::Fail(_)));
    assert!(is_stop(&decide(&register(2, "c-0"), &data, &PostgresView::Primary)));
}

#[test]
fn a_register_that_went_back_is_not_obeyed() {
    assert!(matches!(decide(&register(2, "c-0"), &ready(5, 0), &PostgresView::Stopped), LocalAction::Fail(_)));
    assert!(is_stop(&decide(&register(2, "c-1"), &ready(5, 5), &PostgresView::Primary)));
}

#[test]
fn a_member_that_was_not_chosen_does_not_become_primary_in_its_place() {
    let mut register = register(3, "c-1");
    register.holder.as_mut().unwrap().member = Some(MemberId("another".to_owned()));
    assert!(matches!(decide(&register, &ready(2, 0), &STANDBY), LocalAction::Release(_)));
}

fn handing_over(register: Register) -> Register {
    Register { handover: Some(Handover { target: None, reason: "drained".to_owned() }), ..register }
}

#[test]
fn a_holder_that_is_asked_to_hands_over_and_one_that_is_down_by_then_releases() {
    let register = handing_over(register(3, "c-1"));
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Primary), LocalAction::HandOver("drained".to_owned()));
    for postgres in [PostgresView::Stopped, PostgresView::Died] {
        assert_eq!(decide(&register, &ready(3, 3), &postgres), LocalAction::Release("drained".to_owned()));
    }
}

#[test]
fn a_handover_changes_nothing_for_others_while_sealing_or_once_it_is_released() {
    let asked = handing_over(register(3, "c-0"));
    assert_eq!(
        decide(&asked, &ready(3, 0), &following("c-0")),
        LocalAction::KeepReplica { upstream: "c-0".to_owned() }
    );
    let sealing = Register { seal_term: Term(4), ..handing_over(register(3, "c-1")) };
    assert!(is_stop(&decide(&sealing, &ready(3, 3), &PostgresView::Primary)));
    let released = Register { released: true, ..handing_over(register(3, "c-1")) };
    assert_eq!(decide(&released, &ready(3, 3), &PostgresView::Stopped), LocalAction::StartStandby { upstream: None });
}

#[test]
fn the_only_instance_does_not_hand_over() {
    let (register, data) = (handing_over(register(3, "c-1")), ready(3, 3));
    let alone = LocalInput {
        pod: "c-1",
        pod_uid: "uid-c-1",
        register: &register,
        data: &data,
        postgres: &PostgresView::Primary,
        instances: 1,
        diverged: false,
    };
    assert_eq!(decide_local(&alone), LocalAction::KeepPrimary);
}

#[test]
fn a_new_term_of_the_same_pod_is_entered_before_its_wal_counts() {
    let step = decide(&register(3, "c-0"), &ready(2, 0), &following("c-0"));
    assert_eq!(step, LocalAction::SetUpstream { upstream: Some("c-0".to_owned()) });
}

fn restoring(term: Option<u64>) -> Register {
    let order = RestoreOrder {
        backup_id: "b".to_owned(),
        target: RecoveryTarget::Latest,
        timeline: TimelineId(1),
        term: term.map(Term),
    };
    Register { restore: Some(RestoreMark { id: "r".to_owned(), order: Some(order) }), ..register(3, "c-1") }
}

#[test]
fn the_holder_of_a_term_that_begins_with_a_restore_restores_whatever_it_holds_and_once() {
    let register = restoring(Some(3));
    for data in [ready(2, 2), ready(3, 2), DataView::Partial, DataView::Absent] {
        for postgres in [PostgresView::Stopped, PostgresView::Died, STANDBY] {
            let action = decide(&register, &data, &postgres);
            assert!(matches!(action, LocalAction::Restore(_)), "{data:?} {postgres:?}: {action:?}");
        }
        assert!(is_stop(&decide(&register, &data, &PostgresView::Primary)));
    }
    assert_eq!(decide(&register, &ready(3, 3), &PostgresView::Stopped), LocalAction::StartPrimary);
    let later = Register { term: Term(4), seal_term: Term(4), ..register };
    assert_eq!(decide(&later, &ready(3, 3), &STANDBY), LocalAction::Promote);
}

#[test]
fn a_primary_stops_for_a_restore_even_where_nobody_could_take_over() {
    let handover = Handover { target: Some("c-1".to_owned()), reason: "restore r".to_owned() };
    let register = Register { handover: Some(handover), ..restoring(None) };
    let alone = |register: &Register, postgres: &PostgresView| {
        decide_local(&LocalInput {
            pod: "c-1",
            pod_uid: "uid-c-1",
            register,
            data: &ready(3, 3),
            postgres,
            instances: 1,
            diverged: false,
        })
    };
    assert!(matches!(alone(&register, &PostgresView::Primary), LocalAction::HandOver(_)));
    assert!(matches!(alone(&register, &PostgresView::Stopped), LocalAction::Release(_)));
    let plain = Register { restore: None, ..register };
    assert_eq!(alone(&plain, &PostgresView::Primary), LocalAction::KeepPrimary);
}

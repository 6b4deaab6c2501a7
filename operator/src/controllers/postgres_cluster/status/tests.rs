//! Statuses over rounds made by hand.

use pgherd_core::{
    failover::Probe,
    instance::{ArchiveStatus, Phase, SourceReport},
    timeline::TimelineId,
};

use super::*;
use crate::controllers::postgres_cluster::{
    decide::{Blocked, NOBODY_ANSWERS},
    observe::{
        PodProblem,
        testing::{at, empty_agent, pod, replica, settled, voters},
    },
    test_support::{FULL, MINIMAL, cluster, validated},
};

const REQUIRED: &str = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 1}}";

struct Round {
    cluster: ValidatedCluster,
    observed: Observed,
    plan: Plan,
    executed: Executed,
    applied: Applied,
    memory: Memory,
}

impl Round {
    fn new(spec: &str, observed: Observed) -> Self {
        let mut memory = Memory::default();
        if let Some(stored) = &observed.register {
            memory.observe(&stored.view, &observed, at(observed.read_at_ms));
        }
        let (plan, executed, applied) = (Plan::default(), Executed::default(), Applied::default());
        Self { cluster: validated(spec), observed, plan, executed, applied, memory }
    }

    fn status(&self) -> PostgresClusterStatus {
        build_status(StatusInput {
            cluster: &self.cluster,
            observed: &self.observed,
            plan: &self.plan,
            executed: Some(&self.executed),
            applied: &self.applied,
            memory: &self.memory,
            now: at(self.observed.read_at_ms),
        })
    }

    /// The status of the next round, a second later, published.
    fn next(&mut self) -> PostgresClusterStatus {
        self.observed.read_at_ms += 1_000;
        let now = at(self.observed.read_at_ms);
        let mut view = self.observed.register.clone().unwrap().view;
        view.version.push_str(&self.observed.read_at_ms.to_string());
        self.memory.observe(&view, &self.observed, now);
        self.cluster.status = self.status();
        self.cluster.status.clone()
    }
}

fn condition<'a>(status: &'a PostgresClusterStatus, type_: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
}

fn value<'a>(status: &'a PostgresClusterStatus, type_: &str) -> (&'a str, &'a str) {
    let condition = condition(status, type_);
    (&condition.status, &condition.reason)
}

#[test]
fn a_settled_cluster_is_ready_and_its_status_stays_the_same() {
    for (spec, acks) in [(MINIMAL, 0), (REQUIRED, 1)] {
        let mut round = Round::new(spec, settled(at(1), "1", acks));
        let status = round.next();
        assert_eq!(value(&status, "Ready"), ("True", "Ready"));
        assert_eq!(value(&status, "Reconciling"), ("False", "Settled"));
        assert_eq!((status.ready_instances.as_deref(), status.primary.as_deref()), (Some("3/3"), Some("shop-0")));
        assert_eq!((status.version.as_deref(), status.timeline), (Some("17.11"), Some(1)));
        assert_eq!(status.endpoint.as_deref(), Some("shop-rw.web.svc:5432"));
        assert!(status.members.iter().skip(1).all(|member| member.voter && member.role == "replica"));
        assert_eq!(round.next(), status);
    }
}

#[test]
fn collations_of_another_version_are_told_until_the_primary_says_that_they_are_none() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let mut with = |stale: Option<&[&str]>| {
        if let Probe::Reachable(status) = &mut round.observed.pods[0].probe {
            status.stale_collations = stale.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        }
        let status = round.next();
        let found = status.conditions.iter().find(|condition| condition.type_ == "CollationsCurrent");
        found.map(|condition| (condition.status.clone(), condition.message.clone()))
    };
    assert_eq!((with(None), with(Some(&[]))), (None, None));
    let told = with(Some(&["app (made with 2.31, now 2.36)"])).unwrap();
    assert!(told.0 == "False" && told.1.contains("app (made with 2.31, now 2.36)"), "{told:?}");
    assert_eq!(with(None), Some(told), "while a new primary has not looked yet");
    assert_eq!(with(Some(&[])), None);
}

#[test]
fn roles_whose_commits_wait_for_nobody_are_named_where_commits_are_to_wait() {
    for (spec, acks, named) in [(MINIMAL, 0, false), (REQUIRED, 1, true)] {
        let mut round = Round::new(spec, settled(at(1), "1", acks));
        let mut with = |weak: Option<&[&str]>| {
            if let Probe::Reachable(status) = &mut round.observed.pods[0].probe {
                status.weak_commits = weak.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            }
            round.next().synchronous.unwrap().exempt
        };
        let wanted: &[&str] = if named { &["role app: synchronous_commit=off"] } else { &[] };
        assert!(with(Some(&[])).is_empty());
        assert_eq!(with(Some(&["role app: synchronous_commit=off"])), wanted);
        assert_eq!(with(None), wanted, "while a new primary has not looked yet");
        assert!(with(Some(&[])).is_empty());
    }
}

#[test]
fn what_takes_effect_with_a_restart_is_said_and_no_reason_to_be_unready() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    round.observed.revision = Some("r1".to_owned());
    assert_eq!(value(&round.status(), "InstancesCurrent"), ("True", "Current"));
    round.observed.pods[2].revision = Some("r0".to_owned());
    if let Probe::Reachable(status) = &mut round.observed.pods[0].probe {
        status.pending_restart = vec!["max_connections".to_owned()];
    }
    let status = round.status();
    assert_eq!(value(&status, "InstancesCurrent"), ("False", "RestartNeeded"));
    let message = &condition(&status, "InstancesCurrent").message;
    assert!(message.contains("shop-0 runs with an earlier value of max_connections"), "{message}");
    assert!(message.contains("shop-2 still run") && !message.contains("shop-1"), "{message}");
    assert_eq!(value(&status, "Ready").0, "True");
}

#[test]
fn what_postgresql_does_not_take_is_named_by_its_field_and_no_reason_to_be_unready() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    for pod in &mut round.observed.pods {
        if let Probe::Reachable(status) = &mut pod.probe {
            status.refused_parameters = vec!["work_mem: invalid value for parameter \"work_mem\": \"lots\"".to_owned()];
            status.pending_restart = vec!["max_connections".to_owned()];
        }
    }
    let status = round.status();
    assert_eq!(value(&status, "InstancesCurrent"), ("False", "ParametersRefused"));
    let message = &condition(&status, "InstancesCurrent").message;
    assert_eq!(message.matches("spec.postgresql.parameters.work_mem: invalid value").count(), 1, "{message}");
    assert!(message.contains("shop-0 runs with an earlier value of max_connections"), "{message}");
    assert_eq!(value(&status, "Ready").0, "True");
}

#[test]
fn a_primary_that_is_not_routed_to_is_not_available() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    round.observed.pods[0].role = None;
    assert_eq!(value(&round.status(), "PrimaryAvailable").0, "False");
    assert_eq!(value(&round.status(), "Ready").0, "False");
    round.executed.roles.insert("shop-0".into(), Some("primary".into()));
    assert_eq!(value(&round.status(), "Ready").0, "True", "it was routed to in this round");
}

#[test]
fn a_replica_on_another_timeline_is_not_ready() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let mut stale = round.observed.pods[2].status().unwrap().clone();
    stale.history = Some(pgherd_core::timeline::TimelineHistory::root(TimelineId(2)));
    round.observed.pods[2] = pod(2, Some("replica"), Some(stale));
    let status = round.status();
    assert_eq!(value(&status, "Ready"), ("False", "NotStreaming"));
    assert!(condition(&status, "ReplicasReady").message.contains("shop-2"));
}

#[test]
fn a_missed_answer_does_not_make_the_status_flicker_but_a_long_silence_shows() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let status = round.next();
    round.observed.pods[2] = pod(2, Some("replica"), None);
    for _ in 0..3 {
        assert_eq!(round.next(), status);
    }
    for _ in 0..4 {
        round.next();
    }
    let status = round.next();
    assert_eq!((status.members[2].phase.as_str(), value(&status, "Ready").0), ("Unreachable", "False"));
}

#[test]
fn how_a_replica_was_built_is_remembered_for_the_same_data_directory_only() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let plain = round.observed.pods[2].status().unwrap().clone();
    let mut built = plain.clone();
    built.source = Some(SourceReport {
        source: "backup".into(),
        from: "b1".into(),
        reason: "cheaper".into(),
        wal_bytes: Some(4),
        copy_bytes: None,
        took_ms: Some(900),
        last_transaction: None,
    });
    round.observed.pods[2] = pod(2, Some("replica"), Some(built));
    round.next();
    round.observed.pods[2] = pod(2, Some("replica"), Some(plain.clone()));
    assert_eq!(round.next().members[2].source.as_ref().unwrap().from, "b1");
    let mut recloned = plain;
    recloned.member = Some(pgherd_core::register::MemberId("other".into()));
    round.observed.pods[2] = pod(2, Some("replica"), Some(recloned));
    assert_eq!(round.next().members[2].source, None);
}

#[test]
fn an_image_that_cannot_be_pulled_stalls_with_its_name() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let problem = PodProblem {
        reason: "ImagePullBackOff".into(),
        message: "container postgres of image no/where: not found".into(),
    };
    round.observed.pods[2] = pod(2, None, None);
    (round.observed.pods[2].problem, round.observed.pods[2].ip) = (Some(problem), None);
    let status = round.status();
    assert_eq!(value(&status, "Stalled"), ("True", "ImagePullBackOff"));
    assert_eq!(value(&status, "Ready"), ("False", "ImagePullBackOff"));
    assert!(condition(&status, "Ready").message.contains("no/where"));
    assert_eq!(value(&status, "PrimaryAvailable").0, "True", "the primary serves all the same");
}

#[test]
fn an_agent_that_gave_up_is_quoted() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let mut failed = empty_agent(1);
    (failed.phase, failed.message) = (Phase::Failed, "the image has no PostgreSQL server programs".into());
    round.observed.pods[1] = pod(1, None, Some(failed));
    let status = round.status();
    assert_eq!(value(&status, "Stalled"), ("True", "InstanceFailed"));
    assert_eq!(condition(&status, "Stalled").message, "shop-1: the image has no PostgreSQL server programs");
}

#[test]
fn a_blocked_failover_names_the_missing_and_is_not_ready() {
    let mut round = Round::new(REQUIRED, settled(at(1), "1", 1));
    round.executed.blocked = Some(Blocked {
        reason: "QuorumMissing",
        missing: vec!["shop-2".into()],
        why: "shop-2 is missing".into(),
        candidates: Vec::new(),
    });
    let status = round.status();
    assert_eq!((value(&status, "FailoverBlocked").0, value(&status, "Ready").1), ("True", "FailoverBlocked"));
    assert_eq!(condition(&status, "FailoverBlocked").message, "shop-2 is missing");
}

#[test]
fn a_failover_that_cannot_begin_stays_blocked_for_an_operator_that_has_only_just_begun() {
    let mut round = Round::new(REQUIRED, settled(at(1), "1", 1));
    round.observed.pods = (0..3).map(|ordinal| pod(ordinal, None, None)).collect();
    let (missing, why) = (vec!["shop-1".into(), "shop-2".into()], "waiting for shop-1".to_owned());
    round.executed.blocked = Some(Blocked { reason: NOBODY_ANSWERS, missing, why, candidates: Vec::new() });
    round.cluster.status = round.status();
    assert_eq!(value(&round.cluster.status, "FailoverBlocked"), ("True", "NobodyAnswers"));
    round.executed.blocked = None;
    assert_eq!(condition(&round.status(), "FailoverBlocked").message, "waiting for shop-1");
    round.observed.pods[1] = pod(1, None, Some(replica(1)));
    assert_eq!(value(&round.status(), "FailoverBlocked"), ("False", "NotBlocked"));
}

#[test]
fn who_is_chosen_again_and_does_not_become_primary_is_named() {
    use pgherd_core::register::{FailoverKind, FailoverNote};
    let mut round = Round::new(REQUIRED, settled(at(1), "1", 1));
    round.observed.pods[0] = pod(0, None, Some(replica(0)));
    let note = |again| FailoverNote {
        from: "shop-0".into(),
        reason: "why".into(),
        detect_ms: 0,
        began_at_ms: 0,
        claimed_at_ms: Some(1),
        kind: FailoverKind::LeaseExpired,
        candidates: Vec::new(),
        possible_loss_bytes: Some(0),
        again,
    };
    for (again, timeline, shown) in [(true, None, "True"), (false, None, "False"), (true, Some(1), "False")] {
        let register = &mut round.observed.register.as_mut().unwrap().view.register;
        (register.failover, register.timeline) = (Some(note(again)), timeline.map(TimelineId));
        let status = round.status();
        assert_eq!(value(&status, "FailoverBlocked").0, shown);
        assert!(
            shown == "False" || condition(&status, "FailoverBlocked").message.starts_with("shop-0 was chosen again")
        );
    }
}

#[test]
fn a_change_of_voters_under_way_is_not_ready_yet() {
    let mut round = Round::new(REQUIRED, settled(at(1), "1", 1));
    round.observed.register.as_mut().unwrap().view.register.pending = Some(voters(&[1], 1));
    assert_eq!(value(&round.status(), "Ready"), ("False", "ChangingVoters"));
}

#[test]
fn wal_that_does_not_reach_the_store_shows_its_error() {
    let mut round = Round::new(FULL, settled(at(1), "1", 2));
    let mut primary = round.observed.pods[0].status().unwrap().clone();
    primary.archive = ArchiveStatus { last_error: Some("access denied".into()), ..ArchiveStatus::default() };
    round.observed.pods[0] = pod(0, Some("primary"), Some(primary));
    let status = round.status();
    assert_eq!(value(&status, "Archiving"), ("False", "ArchiveFailing"));
    assert!(condition(&status, "Archiving").message.contains("access denied"));
}

#[test]
fn what_a_former_primary_has_yet_to_archive_is_named() {
    let mut round = Round::new(FULL, settled(at(1), "1", 2));
    let mut primary = round.observed.pods[0].status().unwrap().clone();
    primary.archive =
        ArchiveStatus { last_archived: Some("000000020000000000000003".into()), ..ArchiveStatus::default() };
    round.observed.pods[0] = pod(0, Some("primary"), Some(primary));
    assert_eq!(condition(&round.status(), "Archiving").message, "WAL reaches the object store");
    let mut former = round.observed.pods[1].status().unwrap().clone();
    former.archive.left_over = 3;
    round.observed.pods[1] = pod(1, Some("replica"), Some(former));
    let status = round.status();
    assert_eq!(value(&status, "Archiving"), ("True", "Archiving"));
    assert!(condition(&status, "Archiving").message.contains("; that of shop-1's time as primary"));
}

#[test]
fn what_is_waited_for_has_no_number_that_changes() {
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    round.observed.pods[0].role = None;
    round.plan.note = Some("shop-0 has not answered for 1234 ms".into());
    let message = condition(&round.status(), "Ready").message.clone();
    assert!(message.ends_with("shop-0 has not answered"), "{message}");
}

#[test]
fn a_refused_spec_keeps_the_rest_of_the_status() {
    let mut refused = cluster(MINIMAL);
    refused.status = Some(Round::new(MINIMAL, settled(at(1), "1", 0)).status());
    let status = build_stalled_status(&refused, None, "InvalidSpec", "instances is 0", at(5_000));
    assert_eq!(
        (value(&status, "Ready"), value(&status, "Stalled")),
        (("False", "InvalidSpec"), ("True", "InvalidSpec"))
    );
    assert_eq!(value(&status, "PrimaryAvailable").0, "True");
    assert_eq!(status.primary.as_deref(), Some("shop-0"));
    // The next round sees everything well again, and the spec is still refused: nothing has changed.
    let seen = refused.status.replace(status.clone());
    assert_eq!(build_stalled_status(&refused, seen, "InvalidSpec", "instances is 0", at(6_000)), status);
}

#[test]
fn preferred_shows_what_commits_wait_for_now_and_is_ready_as_long_as_that_is_all_there_is_to_have() {
    let spec = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Preferred, replicas: 2}}";
    let mut round = Round::new(spec, settled(at(1), "1", 1));
    round.plan.acks = 1;
    let status = round.status();
    let shown = status.synchronous.clone().unwrap();
    assert_eq!((shown.mode, shown.replicas, shown.effective), (round.cluster.synchronous_mode, 2, 1));
    assert_eq!(value(&status, "Ready").0, "True");
    round.plan.acks = 2;
    assert_eq!(value(&round.status(), "Ready"), ("False", "ChangingVoters"));
    // The primary applies what is pending: the weaker of the two holds.
    round.observed.register.as_mut().unwrap().view.register.pending = Some(voters(&[1, 2], 0));
    assert_eq!(round.status().synchronous.unwrap().effective, 0);
}

#[test]
fn what_the_old_primary_had_of_its_own_is_added_to_the_record_and_stays() {
    use pgherd_core::{
        instance::DivergentTail,
        lsn::Lsn,
        register::Term,
        timeline::{TimelineHistory, TimelineId},
    };
    use pgherd_crds::v1alpha1::postgres_cluster::FailoverCandidate;
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let register = &mut round.observed.register.as_mut().unwrap().view.register;
    (register.term, register.seal_term) = (Term(2), Term(2));
    let candidate = FailoverCandidate { pod: "shop-0".into(), timeline: Some(1), ..FailoverCandidate::default() };
    let failover =
        LastFailover { from: "shop-2".into(), term: 2, candidates: vec![candidate], ..LastFailover::default() };
    round.cluster.status.last_failover = Some(failover);
    let plain = round.observed.pods[2].status().unwrap().clone();
    let mut came_back = plain.clone();
    came_back.history = Some(TimelineHistory::root(TimelineId(2)));
    came_back.divergent = Some(DivergentTail {
        timeline: TimelineId(1),
        from_lsn: Lsn(0x100),
        to_lsn: Lsn(0x180),
        kept_at: Some("shop/divergent".into()),
        error: None,
    });
    round.observed.pods[2] = pod(2, Some("replica"), Some(came_back));
    let status = round.next();
    assert_eq!(status.last_failover.clone().unwrap().divergent_bytes, Some(0x80));
    assert_eq!(status.members[2].divergent.as_ref().unwrap().kept_at.as_deref(), Some("shop/divergent"));
    round.observed.pods[2] = pod(2, Some("replica"), Some(plain));
    assert_eq!(round.next().last_failover.unwrap().divergent_bytes, Some(0x80));
}

#[test]
fn the_outcome_of_a_switchover_is_told_from_the_register() {
    use pgherd_core::register::{FailoverKind, FailoverNote, Handover};
    use pgherd_crds::v1alpha1::postgres_cluster::SwitchoverStatus;
    let mut round = Round::new(MINIMAL, settled(at(1), "1", 0));
    let running = SwitchoverStatus { phase: "Running".into(), reason: "why".into(), ..SwitchoverStatus::default() };
    round.cluster.status.switchover = Some(running.clone());
    let register = |round: &mut Round| round.observed.register.as_mut().unwrap().view.register.clone();
    let mut open = register(&mut round);
    open.handover = Some(Handover { target: None, reason: "why".into() });
    round.observed.register.as_mut().unwrap().view.register = open.clone();
    assert_eq!(round.status().switchover, Some(running));
    open.handover = None;
    round.observed.register.as_mut().unwrap().view.register = open.clone();
    assert_eq!(round.status().switchover.unwrap().phase, "Withdrawn");
    open.failover = Some(FailoverNote {
        from: "shop-1".into(),
        reason: "why".into(),
        detect_ms: 0,
        began_at_ms: 0,
        claimed_at_ms: Some(1),
        kind: FailoverKind::Switchover,
        candidates: Vec::new(),
        possible_loss_bytes: Some(0),
        again: false,
    });
    round.observed.register.as_mut().unwrap().view.register = open;
    let done = round.status().switchover.unwrap();
    assert_eq!((done.phase.as_str(), done.message.unwrap().contains("shop-0 took over")), ("Completed", true));
}

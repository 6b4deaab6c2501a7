//! Decisions, status and objects of a Backup.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::ContainerStateTerminated, apimachinery::pkg::apis::meta::v1::OwnerReference};
use pgherd_core::{
    backup::{ClusterLocation, EncryptionConfig, StoreConfig},
    instance::{ArchiveBarrier, paths},
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_crds::{
    BackupSpec, BackupStatus, PostgresCluster,
    v1alpha1::{backup::BackupPhase, backup_schedule::BackupTarget, postgres_cluster::PostgresClusterSpec},
};
use serde_json::json;

use super::{
    archive::judge_archive,
    build::{JobInput, build_account, build_job, render_job_name},
    decide::{
        AttemptFacts, AttemptState, BackupFacts, ClusterFacts, Decision, PodFacts, PodRole, decide, decide_next_look,
        decide_source,
    },
    observe::{JobEnd, conclude_attempt},
    reconcile::decide_local,
    status::{Report, build_patch, build_status},
};
use crate::jobs::backup::{
    config::{BackupJobConfig, CompressionConfig, IncrementalConfig},
    outcome::{BackupFailure, BackupOutcome, render_outcome, tests::summary},
};

fn now() -> Timestamp {
    "2026-11-22T02:00:00Z".parse().unwrap()
}

fn pod(name: &str, role: PodRole, ready: bool) -> PodFacts {
    PodFacts { name: name.to_owned(), role, ready }
}

fn pods() -> Vec<PodFacts> {
    vec![
        pod("shop-0", PodRole::Primary, true),
        pod("shop-1", PodRole::Replica, false),
        pod("shop-2", PodRole::Replica, true),
        pod("shop-3", PodRole::Replica, true),
        pod("shop-4", PodRole::Unknown, true),
    ]
}

fn facts() -> BackupFacts {
    BackupFacts {
        phase: BackupPhase::Pending,
        announced: false,
        pitr_ready: None,
        completed_at: None,
        target: BackupTarget::PreferReplica,
        cluster_name: "shop".to_owned(),
        cluster: Some(ClusterFacts { has_store: true, has_system_id: true, pods: pods(), ..ClusterFacts::default() }),
        older_unfinished: None,
        foreign_job: None,
        attempts: Vec::new(),
    }
}

fn failure(retry: bool) -> BackupFailure {
    BackupFailure { reason: "SourceLost".to_owned(), error: "the server closed the connection".to_owned(), retry }
}

fn failed(number: u32, source_pod: &str, retry: bool, ago: i64) -> AttemptFacts {
    let at = now() - SignedDuration::from_secs(ago);
    AttemptFacts {
        number,
        source_pod: source_pod.to_owned(),
        state: AttemptState::Failed { failure: failure(retry), at },
    }
}

fn wait_reason(facts: &BackupFacts) -> (&'static str, bool) {
    match decide(facts, now()) {
        Decision::Wait(wait) => (wait.reason, wait.stalled),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ready_replica_is_read_before_the_primary() {
    let none: [AttemptFacts; 0] = [];
    assert_eq!(decide_source(&pods(), BackupTarget::PreferReplica, &none).as_deref(), Some("shop-2"));
    assert_eq!(decide_source(&pods(), BackupTarget::Primary, &none).as_deref(), Some("shop-0"));
    let alone = [pod("shop-0", PodRole::Primary, true), pod("shop-1", PodRole::Replica, false)];
    assert_eq!(decide_source(&alone, BackupTarget::PreferReplica, &none).as_deref(), Some("shop-0"));
    assert_eq!(decide_source(&[pod("shop-4", PodRole::Unknown, true)], BackupTarget::PreferReplica, &none), None);
}

#[test]
fn another_attempt_reads_another_source() {
    let one = [failed(1, "shop-2", true, 60)];
    assert_eq!(decide_source(&pods(), BackupTarget::PreferReplica, &one).as_deref(), Some("shop-3"));
    let two = [failed(1, "shop-2", true, 60), failed(2, "shop-3", true, 60)];
    assert_eq!(decide_source(&pods(), BackupTarget::PreferReplica, &two).as_deref(), Some("shop-0"));
}

#[test]
fn what_is_missing_is_named() {
    let with = |cluster: ClusterFacts| BackupFacts { cluster: Some(cluster), ..facts() };
    let cluster = || facts().cluster.unwrap();
    assert_eq!(wait_reason(&BackupFacts { cluster: None, ..facts() }), ("ClusterNotFound", true));
    assert_eq!(wait_reason(&with(ClusterFacts { has_store: false, ..cluster() })), ("NoObjectStore", true));
    assert_eq!(
        wait_reason(&with(ClusterFacts { missing_secret: Some("minio".to_owned()), ..cluster() })),
        ("SecretNotFound", true)
    );
    assert_eq!(wait_reason(&with(ClusterFacts { deleting: true, ..cluster() })), ("ClusterDeleted", true));
    assert_eq!(wait_reason(&with(ClusterFacts { has_system_id: false, ..cluster() })), ("NoPrimary", false));
    assert_eq!(wait_reason(&with(ClusterFacts { pods: Vec::new(), ..cluster() })), ("NoPrimary", false));
    let older = BackupFacts { older_unfinished: Some("shop-a".to_owned()), ..facts() };
    assert_eq!(wait_reason(&older), ("WaitingForBackup", false));
}

#[test]
fn three_attempts_with_pauses_and_then_no_more() {
    let with = |attempts| BackupFacts { attempts, ..facts() };
    assert_eq!(decide(&facts(), now()), Decision::Start { attempt: 1, source_pod: "shop-2".to_owned() });
    assert_eq!(wait_reason(&with(vec![failed(1, "shop-2", true, 2)])), ("Retrying", false));
    let second = Decision::Start { attempt: 2, source_pod: "shop-3".to_owned() };
    assert_eq!(decide(&with(vec![failed(1, "shop-2", true, 10)]), now()), second);
    let three = vec![failed(1, "shop-2", true, 99), failed(2, "shop-3", true, 60), failed(3, "shop-0", true, 0)];
    match decide(&with(three), now()) {
        Decision::Fail(failure) => assert!(failure.error.starts_with("3 attempts failed"), "{}", failure.error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_only_the_user_can_change_fails_at_once() {
    let facts = BackupFacts { attempts: vec![failed(1, "shop-2", false, 0)], ..facts() };
    assert_eq!(decide(&facts, now()), Decision::Fail(failure(false)));
}

#[test]
fn a_success_is_completed_even_if_the_last_patch_was_lost() {
    let state = AttemptState::Succeeded(summary());
    let attempts = vec![AttemptFacts { number: 1, source_pod: "shop-2".to_owned(), state }];
    let facts = BackupFacts { phase: BackupPhase::Running, attempts, ..facts() };
    assert_eq!(decide(&facts, now()), Decision::Complete(Box::new(summary())));
}

#[test]
fn a_finished_backup_rests_once_the_archive_is_known() {
    let completed =
        BackupFacts { phase: BackupPhase::Completed, announced: true, completed_at: Some(now()), ..facts() };
    assert_eq!(decide(&BackupFacts { announced: false, ..completed.clone() }, now()), Decision::Announce);
    let ask = Decision::ProveArchive { primary: Some("shop-0".to_owned()), last_try: false };
    assert_eq!(decide(&completed, now()), ask);
    let late = now() + SignedDuration::from_mins(6);
    assert_eq!(decide(&completed, late), Decision::ProveArchive { primary: Some("shop-0".to_owned()), last_try: true });
    assert_eq!(decide(&BackupFacts { pitr_ready: Some(true), ..completed }, late), Decision::Rest);
    assert_eq!(decide(&BackupFacts { phase: BackupPhase::Failed, ..facts() }, now()), Decision::Rest);
}

#[test]
fn an_archive_that_lagged_is_looked_at_again_for_a_day_and_by_each_operator_once() {
    let completed = |ago| Some(now() - SignedDuration::from_mins(ago));
    let look = |ago, since: Option<i64>| decide_next_look(completed(ago), since.map(SignedDuration::from_mins), now());
    assert_eq!(look(6, Some(1)), Some(SignedDuration::from_mins(9)));
    assert_eq!(look(1_439, Some(12)), Some(SignedDuration::ZERO));
    assert_eq!(look(1_441, Some(12)), None);
    assert_eq!(look(99_999, None), Some(SignedDuration::ZERO), "it may have come while no operator was there");
    let facts = BackupFacts {
        phase: BackupPhase::Completed,
        announced: true,
        pitr_ready: Some(false),
        completed_at: completed(16),
        ..facts()
    };
    let again = Decision::ProveArchive { primary: Some("shop-0".to_owned()), last_try: true };
    assert_eq!(decide(&facts, now()), again);
}

#[test]
fn the_archive_is_proven_by_a_barrier_behind_the_end_on_the_same_timeline() {
    let status = BackupStatus { stop_lsn: Some("0/3000120".to_owned()), timeline: Some(1), ..BackupStatus::default() };
    let barrier = |lsn, timeline, archived| {
        Ok(ArchiveBarrier { lsn: Lsn(lsn), timeline: TimelineId(timeline), archived, missing: None })
    };
    let ready = |answer: Result<ArchiveBarrier, String>, last| judge_archive(&answer, &status, last).ready;
    assert_eq!(ready(barrier(0x400_0000, 1, true), false), Some(true));
    assert_eq!(ready(barrier(0x400_0000, 1, false), false), None);
    assert_eq!(ready(barrier(0x400_0000, 1, false), true), Some(false));
    assert_eq!(ready(barrier(0x300_0000, 1, true), false), None);
    assert_eq!(ready(barrier(0x400_0000, 2, true), false), None);
    assert_eq!(ready(barrier(0x400_0000, 2, true), true), Some(false));
    assert_eq!(ready(Err("shop-0 does not answer".to_owned()), false), None);
}

#[test]
fn after_a_switch_of_timelines_the_archive_is_proven_by_the_files_themselves() {
    let status = BackupStatus { stop_lsn: Some("0/3000120".to_owned()), timeline: Some(1), ..BackupStatus::default() };
    let judge = |missing: &[&str], last| {
        let missing = Some(missing.iter().map(|name| (*name).to_owned()).collect());
        let barrier = ArchiveBarrier { lsn: Lsn(0x400_0000), timeline: TimelineId(2), archived: true, missing };
        judge_archive(&Ok(barrier), &status, last)
    };
    let segment = "000000010000000000000002";
    assert_eq!(judge(&[], false).ready, Some(true));
    assert_eq!((judge(&[segment], false).ready, judge(&[segment], true).ready), (None, Some(false)));
    assert!(judge(&[segment], true).message.contains(segment));
}

fn end(succeeded: bool, reason: &str) -> JobEnd {
    JobEnd { succeeded, reason: reason.to_owned(), message: "it ended".to_owned(), at: now() }
}

fn terminated(message: &str, reason: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 1,
        message: Some(message.to_owned()),
        reason: Some(reason.to_owned()),
        ..ContainerStateTerminated::default()
    }
}

#[test]
fn the_termination_message_tells_how_an_attempt_ended() {
    let failed = |state| match state {
        AttemptState::Failed { failure, .. } => failure,
        other => panic!("{other:?}"),
    };
    let said = render_outcome(&BackupOutcome::Completed(Box::new(summary())));
    assert!(matches!(
        conclude_attempt(&end(true, ""), Some(&terminated(&said, "Completed"))),
        AttemptState::Succeeded(_)
    ));
    let said = render_outcome(&BackupOutcome::Failed(failure(false)));
    assert_eq!(failed(conclude_attempt(&end(false, ""), Some(&terminated(&said, "Error")))), failure(false));
    let log = failed(conclude_attempt(&end(false, ""), Some(&terminated("one\nlast line\n", "Error"))));
    assert_eq!((log.reason.as_str(), log.retry), ("JobFailed", true));
    assert!(log.error.ends_with("last line"), "{}", log.error);
    assert_eq!(failed(conclude_attempt(&end(false, ""), Some(&terminated("", "OOMKilled")))).reason, "OOMKilled");
    assert!(!failed(conclude_attempt(&end(false, "DeadlineExceeded"), None)).retry);
    assert_eq!(failed(conclude_attempt(&end(true, ""), None)).reason, "OutcomeLost");
}

#[test]
fn an_end_is_in_the_conditions_and_the_numbers() {
    let running = BackupStatus {
        phase: Some(BackupPhase::Running),
        source_pod: Some("shop-2".to_owned()),
        eta: Some("3s".to_owned()),
        ..BackupStatus::default()
    };
    let done = build_status(&running, &Report::Completed(&summary()), Some(1), now());
    let holds = |status: &BackupStatus| -> Vec<String> {
        status.conditions.iter().map(|c| format!("{}={}", c.type_, c.status)).collect()
    };
    assert_eq!(holds(&done), ["Ready=True", "Reconciling=False", "Stalled=False", "Completed=True"]);
    assert_eq!(
        (done.phase, done.restorable, done.source_pod.as_deref()),
        (Some(BackupPhase::Completed), Some(true), Some("shop-2"))
    );
    let failed = build_status(&running, &Report::Failed(&failure(true)), Some(1), now());
    assert_eq!(holds(&failed), ["Ready=False", "Reconciling=False", "Stalled=True", "Completed=False"]);
    assert_eq!((failed.restorable, failed.eta), (Some(false), None));
}

#[test]
fn the_next_attempt_does_not_show_the_progress_of_the_last_one() {
    let first = BackupStatus {
        phase: Some(BackupPhase::Running),
        source_pod: Some("shop-2".to_owned()),
        progress: Some("80%".to_owned()),
        ..BackupStatus::default()
    };
    let status = build_status(&first, &Report::Running { source_pod: "shop-3", trouble: None }, Some(1), now());
    assert_eq!((status.phase, status.progress), (Some(BackupPhase::Pending), None));
}

#[test]
fn a_patch_has_what_differs_and_nothing_else() {
    let old = BackupStatus { eta: Some("3s".to_owned()), rate: Some("1 MiB/s".to_owned()), ..BackupStatus::default() };
    let new = BackupStatus { rate: Some("2 MiB/s".to_owned()), ..BackupStatus::default() };
    let patch = build_patch(&old, &new).unwrap();
    assert_eq!(patch, json!({ "status": { "rate": "2 MiB/s", "eta": null } }));
    assert_eq!(build_patch(&old, &old.clone()), None);
}

#[test]
fn the_same_report_twice_is_written_once() {
    let report = Report::Running { source_pod: "shop-2", trouble: None };
    let first = build_status(&BackupStatus::default(), &report, Some(1), now());
    let again = build_status(&first, &report, Some(1), now() + SignedDuration::from_secs(9));
    assert_eq!(build_patch(&first, &again), None);
}

#[test]
fn job_names_stay_within_a_label() {
    assert_eq!(render_job_name("shop-nightly-29920500", 1), "shop-nightly-29920500");
    assert_eq!(render_job_name("shop-nightly-29920500", 2), "shop-nightly-29920500-2");
    let long = "a".repeat(63);
    assert_eq!(render_job_name(&long, 1), long);
    let (second, other) = (render_job_name(&long, 2), render_job_name(&format!("{}b", "a".repeat(62)), 2));
    assert!(second.len() <= 63 && second.ends_with("-2"), "{second}");
    assert_ne!(second, other);
}

pub(crate) fn location() -> ClusterLocation {
    ClusterLocation {
        store: StoreConfig {
            endpoint: "https://minio.minio.svc:9000".to_owned(),
            bucket: "backups".to_owned(),
            prefix: "prod".to_owned(),
            region: None,
            path_style: true,
            credentials_dir: paths::STORE.to_owned(),
            ca_file: Some(format!("{}/ca.crt", paths::STORE_CA)),
            encryption: None,
        },
        cluster: "shop".to_owned(),
        system_id: "7300000000000000001".to_owned(),
    }
}

fn encrypted(mut location: ClusterLocation) -> ClusterLocation {
    location.store.encryption = Some(EncryptionConfig {
        recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".to_owned()],
        identity_file: Some(format!("{}/{}", paths::ENCRYPTION, paths::AGE_IDENTITY)),
    });
    location
}

/// Instances on nodes that nothing else may use, from a registry that wants to know who asks.
static PLACEMENT: LazyLock<PostgresClusterSpec> = LazyLock::new(|| {
    serde_json::from_value(json!({
        "instances": 3, "storage": {"size": "1Gi"}, "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "db"}, "tolerations": [{"key": "db", "operator": "Exists"}],
    }))
    .unwrap()
});

fn input<'a>() -> JobInput<'a> {
    JobInput {
        namespace: "prod",
        backup: "shop-nightly-29920500",
        backup_uid: "11111111-2222-3333-4444-555555555555",
        owner: owner("Backup", "shop-nightly-29920500"),
        schedule: Some("shop-nightly"),
        attempt: 2,
        source_pod: "shop-2",
        location: encrypted(location()),
        compression: Some(CompressionConfig { min_level: Some(-3), max_level: None }),
        max_rate: Some(102_400),
        incremental: None,
        local: false,
        identity_secret: Some("age"),
        credentials_secret: "minio",
        ca_secret: Some("minio-ca"),
        image: "registry.example/pgherd:0.1.0",
        placement: &PLACEMENT,
    }
}

fn owner(kind: &str, name: &str) -> OwnerReference {
    OwnerReference {
        api_version: "pgherd.dev/v1alpha1".to_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: "11111111-2222-3333-4444-555555555555".to_owned(),
    }
}

#[test]
fn the_job_of_an_attempt() {
    insta::assert_yaml_snapshot!(build_job(&input()).unwrap());
}

#[test]
fn the_job_reads_back_its_configuration() {
    let job = build_job(&input()).unwrap();
    let annotations = job.spec.unwrap().template.metadata.unwrap().annotations.unwrap();
    let config: BackupJobConfig = serde_json::from_str(&annotations[super::build::CONFIG_ANNOTATION]).unwrap();
    assert_eq!((config.attempt, config.source.host.as_str()), (2, "shop-2.shop-pods.prod.svc"));
    let mut location = input().location;
    let identity = location.store.encryption.as_mut().unwrap().identity_file.take();
    assert!(identity.is_some(), "the instances have one");
    assert_eq!(config.location, location, "a Job is told the recipients and of no identity");
}

#[test]
fn only_the_job_of_an_incremental_backup_has_the_identity() {
    let wanted = IncrementalConfig { max_chain: 7, damaged: vec!["bad".to_owned()] };
    let mounts = |input: &JobInput<'_>| {
        let pod = build_job(input).unwrap().spec.unwrap().template;
        let annotations = pod.metadata.unwrap().annotations.unwrap();
        let config: BackupJobConfig = serde_json::from_str(&annotations[super::build::CONFIG_ANNOTATION]).unwrap();
        let volumes: Vec<String> = pod.spec.unwrap().volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        (config, volumes.contains(&"encryption".to_owned()))
    };
    let (config, mounted) = mounts(&JobInput { incremental: Some(wanted.clone()), ..input() });
    assert_eq!((&config.location, config.incremental, mounted), (&input().location, Some(wanted.clone()), true));
    assert!(!mounts(&input()).1, "a full backup reads nothing");
    let (config, mounted) = mounts(&JobInput { incremental: Some(wanted), identity_secret: None, ..input() });
    assert_eq!((config.location.store.encryption.unwrap().identity_file, mounted), (None, false));
}

#[test]
fn the_first_attempt_at_a_full_backup_reads_local_files_where_that_is_wanted() {
    let cluster = |method: &str| -> PostgresCluster {
        serde_json::from_value(json!({
            "apiVersion": "pgherd.dev/v1alpha1", "kind": "PostgresCluster", "metadata": {"name": "shop"},
            "spec": {"instances": 1, "storage": {"size": "1Gi"}, "backup": {"method": method, "objectStore": {
                "endpoint": "https://minio:9000", "bucket": "b", "credentialsSecretRef": {"name": "minio"}}}}
        }))
        .unwrap()
    };
    let backup = |more: serde_json::Value| -> BackupSpec {
        let mut spec = json!({"clusterRef": {"name": "shop"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    };
    let (local, stream, plain) = (cluster("Local"), cluster("Stream"), backup(json!({})));
    assert!(decide_local(&local, &plain, 1) && !decide_local(&stream, &plain, 1));
    assert!(!decide_local(&local, &plain, 2), "what failed this way goes the other way");
    assert!(!decide_local(&local, &backup(json!({"method": "Stream"})), 1));
    assert!(decide_local(&stream, &backup(json!({"method": "Local"})), 1));
    assert!(!decide_local(&local, &backup(json!({"incremental": {}})), 1), "only the server knows what changed");
    let job = build_job(&JobInput { local: true, ..input() }).unwrap();
    let annotations = job.spec.unwrap().template.metadata.unwrap().annotations.unwrap();
    let config: BackupJobConfig = serde_json::from_str(&annotations[super::build::CONFIG_ANNOTATION]).unwrap();
    assert!(config.local.is_some());
}

#[test]
fn the_account_of_the_jobs() {
    let account = build_account("shop", "prod", &owner("PostgresCluster", "shop"));
    insta::assert_yaml_snapshot!((account.account, account.role, account.binding));
}

//! When a backup is verified, what the outcome means, and the Job that does it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use pgherd_core::backup::BackupLocation;
use pgherd_crds::{
    BackupStatus, PostgresCluster,
    v1alpha1::verification::{Scratch, VerificationStatus},
};

use super::verification::{Conclusion, Finding, VerificationFacts, VerificationStep, decide_verification};
use crate::{
    controllers::{
        backup::{
            status::{Report, build_status},
            tests::location,
        },
        postgres_cluster::validate::ValidatedStore,
        store_jobs::{
            observe::{Run, RunState},
            trial::{DATA, SOCKETS, TrialJob, build_trial_job},
        },
    },
    jobs::verification::{
        config::VerifyJobConfig,
        outcome::{VerifyFailure, VerifyJobOutcome, VerifySummary, render_outcome},
    },
};

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn facts() -> VerificationFacts {
    VerificationFacts {
        every: Ok(Some(SignedDuration::from_hours(24))),
        paused: false,
        newest: Some("b1".to_owned()),
        condemned: None,
        newer: false,
        run: None,
        published: VerificationStatus::default(),
    }
}

fn config() -> VerifyJobConfig {
    VerifyJobConfig {
        location: BackupLocation { cluster: location(), backup_id: "id1".to_owned() },
        backup: "b1".to_owned(),
        backup_uid: "u1".to_owned(),
        data: DATA.into(),
        sockets: SOCKETS.into(),
        preload: None,
        database: None,
        statements: vec!["select true".to_owned()],
    }
}

fn summary() -> VerifySummary {
    VerifySummary {
        id: "id1".to_owned(),
        files: 900,
        bytes: 1 << 25,
        replayed_lsn: "0/3000120".to_owned(),
        amcheck: "Passed".to_owned(),
        statements: 1,
        took_ms: 62_000,
    }
}

fn failure(blames_backup: bool, unusable: bool) -> VerifyFailure {
    VerifyFailure {
        reason: "Damaged".to_owned(),
        error: "base.tar.zst.0000 is damaged".to_owned(),
        blames_backup,
        unusable,
    }
}

fn conclude(outcome: &VerifyJobOutcome, published: VerificationStatus) -> Conclusion {
    let state = RunState::Ended { at: now(), message: Some(render_outcome(outcome)), why: String::new() };
    let run = Run { job: "s-v1".to_owned(), config: config(), state, count: 1 };
    match decide_verification(&VerificationFacts { run: Some(run), published, ..facts() }, now()) {
        VerificationStep::Conclude(conclusion) => *conclusion,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_backup_is_looked_at_again_when_it_is_time() {
    assert!(matches!(decide_verification(&facts(), now()), VerificationStep::Start { backup, .. } if backup == "b1"));
    let good = conclude(&VerifyJobOutcome::Completed(summary()), VerificationStatus::default());
    assert!(good.verdict.holds && matches!(good.finding, Some(Finding::Good { .. })));
    let after = VerificationFacts { published: good.status, newest: Some("b2".to_owned()), ..facts() };
    let due = now() + SignedDuration::from_hours(24);
    assert_eq!(decide_verification(&after, now()), VerificationStep::Rest(Some(due)));
    assert!(matches!(decide_verification(&after, due), VerificationStep::Start { backup, .. } if backup == "b2"));
}

#[test]
fn a_bad_backup_is_followed_by_the_next_one_at_once_and_by_an_older_one_in_its_turn() {
    let bad = conclude(&VerifyJobOutcome::Failed(failure(true, true)), VerificationStatus::default());
    assert_eq!((bad.verdict.holds, bad.verdict.reason.as_str()), (false, "Damaged"));
    let same = VerificationFacts { published: bad.status, ..facts() };
    assert!(matches!(decide_verification(&same, now()), VerificationStep::Rest(Some(_))));
    let older = VerificationFacts { newest: Some("b0".to_owned()), ..same.clone() };
    let due = now() + SignedDuration::from_hours(24);
    assert_eq!(decide_verification(&older, now()), VerificationStep::Rest(Some(due)));
    let next = VerificationFacts { newest: Some("b2".to_owned()), newer: true, ..same };
    assert!(matches!(decide_verification(&next, now()), VerificationStep::Start { .. }));
}

#[test]
fn a_condemned_backup_has_its_turn_once_the_newest_is_good_or_there_is_no_other() {
    let started = |facts: &VerificationFacts, at| match decide_verification(facts, at) {
        VerificationStep::Start { backup, .. } => backup,
        other => panic!("{other:?}"),
    };
    let due = now() + SignedDuration::from_hours(24);
    let both = VerificationFacts { condemned: Some("b0".to_owned()), ..facts() };
    assert_eq!(started(&both, now()), "b1", "it was not looked at yet");
    let good = conclude(&VerifyJobOutcome::Completed(summary()), VerificationStatus::default());
    let both = VerificationFacts { published: good.status, ..both };
    assert!(matches!(decide_verification(&both, now()), VerificationStep::Rest(Some(_))));
    assert_eq!(started(&both, due), "b0");
    let newer = VerificationFacts { newest: Some("b2".to_owned()), ..both.clone() };
    assert_eq!(started(&newer, due), "b2");
    let bad_again =
        VerificationStatus { backup: Some("b0".to_owned()), last_success_time: None, ..both.published.clone() };
    assert_eq!(
        started(&VerificationFacts { published: bad_again, ..both.clone() }, due),
        "b1",
        "and then the newest again"
    );
    let alone = VerificationFacts { newest: None, ..both };
    assert_eq!(started(&alone, due), "b0");
}

#[test]
fn what_could_not_be_carried_out_says_nothing_of_the_backup_and_is_tried_again() {
    let mut published = VerificationStatus::default();
    for pause in [2, 4, 8] {
        let failed = conclude(&VerifyJobOutcome::Failed(failure(false, false)), published);
        assert_eq!((failed.finding.clone(), failed.verdict.holds), (None, false));
        published = failed.status;
        let after = VerificationFacts { published: published.clone(), newest: Some("b2".to_owned()), ..facts() };
        let due = now() + SignedDuration::from_mins(pause);
        assert_eq!(decide_verification(&after, now()), VerificationStep::Rest(Some(due)));
    }
}

#[test]
fn nothing_is_verified_while_paused_or_without_a_backup() {
    let rest = VerificationStep::Rest(None);
    assert_eq!(decide_verification(&VerificationFacts { paused: true, ..facts() }, now()), rest);
    assert_eq!(decide_verification(&VerificationFacts { newest: None, ..facts() }, now()), rest);
}

#[test]
fn a_backup_that_does_not_come_back_is_not_restorable_and_one_whose_statement_is_false_is() {
    let old = BackupStatus { restorable: Some(true), ..BackupStatus::default() };
    let find = |status: &BackupStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.clone())
    };
    let good = build_status(&old, &Report::Verified(&summary(), now()), Some(1), now());
    assert_eq!(
        (good.verified_at.as_deref(), find(&good, "Verified").as_deref()),
        (Some("2026-11-22T12:00:00Z"), Some("True"))
    );
    let false_statement = build_status(&good, &Report::NotVerified(&failure(true, false)), Some(1), now());
    assert_eq!(
        (false_statement.restorable, find(&false_statement, "Verified").as_deref()),
        (Some(true), Some("False"))
    );
    let damaged = build_status(&good, &Report::NotVerified(&failure(true, true)), Some(1), now());
    assert_eq!((damaged.restorable, find(&damaged, "Ready").as_deref()), (Some(false), Some("False")));
    let cleared = build_status(&damaged, &Report::Verified(&summary(), now()), Some(1), now());
    assert_eq!(
        (cleared.restorable, find(&cleared, "Ready").as_deref()),
        (Some(true), Some("True")),
        "it was no fault of its"
    );
    assert_eq!(find(&cleared, "Stalled").as_deref(), Some("False"));
    let pruned = build_status(&good, &Report::Pruned, Some(1), now());
    assert_eq!((pruned.restorable, find(&pruned, "Verified").as_deref()), (Some(false), Some("True")), "it stays said");
}

#[test]
fn the_job_runs_the_cluster_s_image_without_a_token_and_on_scratch_space_of_its_own() {
    let cluster: PostgresCluster = serde_json::from_value(serde_json::json!({
        "apiVersion": "pgherd.dev/v1alpha1", "kind": "PostgresCluster", "metadata": {"name": "shop"},
        "spec": {"instances": 1, "storage": {"size": "10Gi", "storageClassName": "fast"}, "nodeSelector": {"disk": "ssd"}}
    }))
    .unwrap();
    let store = ValidatedStore {
        config: location().store,
        credentials_secret: "minio".to_owned(),
        ca_secret: Some("minio-ca".to_owned()),
        identity_secret: None,
    };
    let build = |scratch| {
        let owner = OwnerReference { kind: "BackupSchedule".to_owned(), ..OwnerReference::default() };
        let job = build_trial_job(&TrialJob {
            name: "s-v1".to_owned(),
            namespace: "prod",
            schedule: "s",
            owner,
            cluster: &cluster,
            config: &config(),
            store: &store,
            pgherd_image: "pgherd:1",
            image: "postgres:17",
            scratch,
        });
        serde_json::to_value(job.unwrap()).unwrap()
    };
    let job = build(Scratch::Volume);
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        (&pod["containers"][0]["image"], &pod["initContainers"][0]["image"]),
        (&"postgres:17".into(), &"pgherd:1".into())
    );
    assert_eq!(pod["containers"][0]["command"][0], "/run/pgherd/bin/pgherd");
    assert_eq!(pod["containers"][0]["args"], serde_json::json!(["verify", "--config", "/etc/pgherd/job/job.json"]));
    let scratch = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "scratch").unwrap();
    let claim = &scratch["ephemeral"]["volumeClaimTemplate"]["spec"];
    assert_eq!(
        (&claim["storageClassName"], &claim["resources"]["requests"]["storage"]),
        (&"fast".into(), &"10Gi".into())
    );
    assert_eq!(pod["nodeSelector"]["disk"], "ssd");
    let told = job["spec"]["template"]["metadata"]["annotations"]["pgherd.dev/job-config"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<VerifyJobConfig>(told).unwrap(), config());
    let names: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    assert!(!names.contains(&&"tls".into()), "it talks to no instance");
    let on_node = build(Scratch::EmptyDir);
    let volumes = on_node["spec"]["template"]["spec"]["volumes"].as_array().unwrap().clone();
    assert!(volumes.iter().any(|volume| volume["name"] == "scratch" && volume["emptyDir"].is_object()));
}

use std::sync::Arc;

use kube::api::ObjectMeta;
use pgherd_core::instance::{InstanceConfig, RecoveryTarget};
use pgherd_crds::{Backup, BackupSpec, BackupStatus, v1alpha1::shared::LocalReference};

use super::*;
use crate::controllers::postgres_cluster::{
    build::config_map::build_instance_config,
    test_support::{FULL, MINIMAL, cluster, images, validate, validated},
};

/// A recipient.
const GOOD: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

fn fields(spec: &str) -> Vec<String> {
    validate(spec).unwrap_err().problems.into_iter().map(|problem| problem.field).collect()
}

#[test]
fn a_minimal_spec_gets_the_defaults() {
    let valid = validated(MINIMAL);
    assert_eq!(valid.image, "registry/pg:17");
    assert_eq!((valid.acks, valid.synchronous_mode), (0, SynchronousMode::Off));
    assert_eq!((valid.failover_delay_ms, valid.failover_max_lag), (0, None));
    assert_eq!((valid.store.is_none(), &valid.bootstrap), (true, &Bootstrap::Initdb));
    assert_eq!(valid.selector(), "pgherd.dev/cluster=shop");
}

#[test]
fn everything_that_a_user_can_say_is_taken_over() {
    let valid = validated(FULL);
    assert_eq!(valid.image, "registry/pg:16");
    assert_eq!((valid.acks, valid.failover_delay_ms, valid.failover_max_lag), (2, 30_000, Some(16 << 20)));
    let store = valid.store.unwrap();
    assert_eq!((store.config.endpoint.as_str(), store.config.prefix.as_str()), ("https://minio.minio.svc:9000", "web"));
    assert_eq!(store.config.ca_file.as_deref(), Some("/etc/pgherd/object-store-ca/ca.crt"));
    assert!(store.config.path_style);
    let encryption = store.config.encryption.unwrap();
    assert_eq!((encryption.recipients.len(), store.identity_secret.as_deref()), (1, Some("shop-age")));
    assert_eq!(encryption.identity_file.as_deref(), Some("/etc/pgherd/encryption/identity"));
    let Bootstrap::Recovery { from, target } = valid.bootstrap else { panic!("no recovery") };
    assert_eq!((from.cluster.cluster.as_str(), from.cluster.store.prefix.as_str()), ("shop-old", "a/b"));
    assert_eq!(from.cluster.store.credentials_dir, "/etc/pgherd/recovery-store");
    let encryption = from.cluster.store.encryption.unwrap();
    assert!(encryption.recipients.is_empty(), "a recovery only reads");
    assert_eq!(encryption.identity_file.as_deref(), Some("/etc/pgherd/recovery-encryption/identity"));
    assert_eq!(valid.recovery_store.unwrap().identity_secret.as_deref(), Some("old-age"));
    assert_eq!(target, RecoveryTarget::Time("2026-11-22T02:00:00Z".into()));
}

#[test]
fn a_recipient_that_nobody_could_open_is_told_by_its_place() {
    let spec = |recipients: &str| {
        format!(
            r#"{{instances: 1, storage: {{size: 1Gi}}, backup: {{
            objectStore: {{endpoint: "https://m", bucket: abc, credentialsSecretRef: {{name: m}}}},
            encryption: {{recipients: [{recipients}], identitySecretRef: {{name: ""}}}}}}}}"#
        )
    };
    // Well-formed for the schema; its checksum tells that a letter is wrong.
    let mistyped = "age1zvkyq2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    let fields_of = |recipients: &str| fields(&spec(recipients));
    let (list, secret) = ("spec.backup.encryption.recipients", "spec.backup.encryption.identitySecretRef.name");
    assert_eq!(fields_of(&format!("{GOOD}, {mistyped}")), [&format!("{list}[1]"), secret]);
    assert_eq!(fields_of(""), [list, secret]);
    assert_eq!(fields_of(&[GOOD; 9].join(", ")), [list, secret]);
    let problems = validate(&spec(mistyped)).unwrap_err().to_string();
    assert!(problems.contains(mistyped) && problems.contains("mistyped"), "{problems}");
}

#[test]
fn levels_of_compression_that_cross_or_are_none_are_told() {
    let spec = |levels: &str| {
        format!(
            r#"{{instances: 1, storage: {{size: 1Gi}}, backup: {{
            objectStore: {{endpoint: "https://m", bucket: abc, credentialsSecretRef: {{name: m}}}}, compression: {{{levels}}}}}}}"#
        )
    };
    assert!(validate(&spec("minLevel: -5")).is_ok());
    for wrong in ["minLevel: 7, maxLevel: 6", "maxLevel: 0", "maxLevel: 20", "minLevel: -51"] {
        assert_eq!(fields(&spec(wrong)), ["spec.backup.compression"], "{wrong}");
    }
}

#[test]
fn a_rate_that_postgres_does_not_take_is_told() {
    let spec = |rate: &str| {
        format!(
            r#"{{instances: 1, storage: {{size: 1Gi}}, backup: {{
            objectStore: {{endpoint: "https://m", bucket: abc, credentialsSecretRef: {{name: m}}}}, maxRate: {rate}}}}}"#
        )
    };
    assert!(validate(&spec("100Mi")).is_ok());
    for wrong in ["31Ki", "2Gi", "fast"] {
        assert_eq!(fields(&spec(wrong)), ["spec.backup.maxRate"], "{wrong}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_fields() {
    let spec = r#"
version: 18
instances: 2
storage: {size: nonsense}
synchronous: {mode: Required, replicas: 2}
failover: {delay: soon, maxLag: much}
backup: {objectStore: {endpoint: "ftp://x", bucket: B, prefix: "../x", credentialsSecretRef: {name: ""}}}
"#;
    let expected = [
        "spec.synchronous.replicas",
        "spec.failover.delay",
        "spec.failover.maxLag",
        "spec.storage.size",
        "spec.version",
        "spec.backup.objectStore.endpoint",
        "spec.backup.objectStore.bucket",
        "spec.backup.objectStore.prefix",
        "spec.backup.objectStore.credentialsSecretRef.name",
    ];
    assert_eq!(fields(spec), expected);
}

#[test]
fn no_instances_an_unknown_version_and_a_bad_image_are_refused() {
    assert_eq!(fields("{instances: 0, storage: {size: 1Gi}}"), ["spec.instances"]);
    assert_eq!(fields("{version: 14, instances: 1, storage: {size: 1Gi}}"), ["spec.version", "spec.version"]);
    assert_eq!(fields("{image: 'a b', instances: 1, storage: {size: 1Gi}}"), ["spec.image"]);
    assert_eq!(fields("{instances: 1, storage: {size: '0'}}"), ["spec.storage.size"]);
}

#[test]
fn an_image_of_the_users_choice_needs_no_configured_version() {
    assert_eq!(validated("{image: 'postgres:17', instances: 1, storage: {size: 1Gi}}").image, "postgres:17");
}

#[test]
fn http_is_only_accepted_inside_the_cluster() {
    let spec = |endpoint: &str| {
        format!(
            "{{instances: 1, storage: {{size: 1Gi}}, backup: {{objectStore: {{endpoint: '{endpoint}', bucket: abc, credentialsSecretRef: {{name: s}}}}}}}}"
        )
    };
    for internal in
        ["http://minio.minio.svc:9000", "http://minio:9000", "http://localhost:9000", "http://a.b.svc.cluster.local"]
    {
        assert!(validate(&spec(internal)).is_ok(), "{internal}");
    }
    for outside in
        ["http://s3.example.org", "http://10.0.0.1:9000", "https://u:p@host", "https://host/path", "https://host:99999"]
    {
        assert_eq!(fields(&spec(outside)), ["spec.backup.objectStore.endpoint"], "{outside}");
    }
}

#[test]
fn volumes_do_not_shrink() {
    let references = References { live_storage_bytes: Some(20 << 30), ..References::default() };
    let invalid = validate_cluster(&cluster(MINIMAL), &references, &images()).unwrap_err();
    assert!(invalid.to_string().starts_with("spec.storage.size: is smaller"), "{invalid}");
}

const RECOVERY: &str = "{instances: 1, storage: {size: 1Gi}, bootstrap: {recovery: {from: {backupRef: {name: b1}}}}}";

fn backup(restorable: bool) -> Backup {
    Backup {
        metadata: ObjectMeta { name: Some("b1".into()), ..ObjectMeta::default() },
        spec: BackupSpec {
            cluster_ref: LocalReference { name: "shop-old".into() },
            target: None,
            incremental: None,
            method: None,
            deletion_policy: None,
        },
        status: Some(BackupStatus {
            restorable: Some(restorable),
            id: Some("id-1".into()),
            system_id: Some("77".into()),
            server_version: Some(160_004),
            ..BackupStatus::default()
        }),
    }
}

fn references(restorable: bool) -> References {
    References {
        backup: Some(Arc::new(backup(restorable))),
        backup_cluster: Some(Arc::new(cluster(FULL))),
        ..References::default()
    }
}

#[test]
fn a_backup_is_resolved_to_its_place_and_its_version_chooses_the_image() {
    let valid = validate_cluster(&cluster(RECOVERY), &references(true), &images()).unwrap();
    let Bootstrap::Recovery { from, target } = &valid.bootstrap else { panic!("no recovery") };
    assert_eq!(
        (from.backup_id.as_str(), from.cluster.system_id.as_str(), from.cluster.cluster.as_str()),
        ("id-1", "77", "shop-old")
    );
    assert_eq!((target, valid.image.as_str()), (&RecoveryTarget::Latest, "registry/pg:16"));
    assert_eq!(valid.recovery_store.unwrap().credentials_secret, "minio");
}

#[test]
fn a_cluster_does_not_archive_to_where_it_is_recovered_from() {
    let spec = |prefix: &str, name: &str| {
        let store = r#"endpoint: "https://m", bucket: abc, credentialsSecretRef: {name: m}"#;
        format!(
            "{{instances: 1, storage: {{size: 1Gi}}, backup: {{objectStore: {{{store}, prefix: {prefix}}}}},
            bootstrap: {{recovery: {{from: {{cluster: {name}, objectStore: {{{store}, prefix: live}}}}}}}}}}"
        )
    };
    let validate =
        |prefix: &str, name: &str| validate_cluster(&cluster(&spec(prefix, name)), &References::default(), &images());
    let invalid = validate("live", "shop").unwrap_err();
    assert_eq!(invalid.problems[0].field, "spec.backup.objectStore.prefix");
    assert!(invalid.to_string().contains("s3://abc/live"), "{invalid}");
    validate("copy", "shop").unwrap();
    validate("live", "shop-old").unwrap();
}

#[test]
fn an_archive_by_hand_is_imported_from_its_store() {
    let valid = validated(
        r#"{instances: 1, storage: {size: 1Gi}, bootstrap: {recovery: {from: {archive: by-hand/base.tar.gz,
        objectStore: {endpoint: "https://m", bucket: abc, credentialsSecretRef: {name: m}}}}}}"#,
    );
    let Bootstrap::Import { store, key, target } = &valid.bootstrap else { panic!("no import") };
    assert_eq!((store.bucket.as_str(), key.as_str(), target), ("abc", "by-hand/base.tar.gz", &RecoveryTarget::Latest));
    assert_eq!(valid.recovery_store.unwrap().credentials_secret, "m");
}

#[test]
fn a_backup_that_is_missing_or_not_restorable_is_named() {
    for references in [References::default(), references(false)] {
        let invalid = validate_cluster(&cluster(RECOVERY), &references, &images()).unwrap_err();
        assert_eq!(invalid.problems[0].field, "spec.bootstrap.recovery.from.backupRef");
        assert!(invalid.to_string().contains("b1"), "{invalid}");
    }
}

#[test]
fn without_its_cluster_a_backup_says_what_to_give_instead() {
    let references = References { backup_cluster: None, ..references(true) };
    let invalid = validate_cluster(&cluster(RECOVERY), &references, &images()).unwrap_err();
    assert!(invalid.to_string().contains("from.cluster: shop-old"), "{invalid}");
}

#[test]
fn once_there_is_a_database_the_backup_may_go() {
    let before = validate_cluster(&cluster(RECOVERY), &references(true), &images()).unwrap();
    let live: InstanceConfig = build_instance_config(&before, 1);
    let mut running = cluster(RECOVERY);
    running.status = Some(PostgresClusterStatus { system_id: Some("77".into()), ..PostgresClusterStatus::default() });
    let references = References { live_config: Some(live), ..References::default() };
    let mut images = images();
    images.insert(17, "registry/pg:16".into());
    let after = validate_cluster(&running, &references, &images).unwrap();
    assert_eq!(after.bootstrap, before.bootstrap);
    assert_eq!(after.recovery_store, None);
}

#[test]
fn a_recovery_target_is_exactly_one() {
    let spec = |target: &str| {
        RECOVERY.replace("{backupRef: {name: b1}}", &format!("{{backupRef: {{name: b1}}}}, target: {target}"))
    };
    let target = |text: &str| {
        let valid = validate_cluster(&cluster(&spec(text)), &references(true), &images())?;
        let Bootstrap::Recovery { target, .. } = valid.bootstrap else { panic!("no recovery") };
        Ok::<_, InvalidSpec>(target)
    };
    assert_eq!(target("{immediate: true}"), Ok(RecoveryTarget::Immediate));
    assert_eq!(target("{name: before}"), Ok(RecoveryTarget::Name("before".into())));
    for bad in ["{}", "{immediate: false}", "{name: a, lsn: 0/1}", "{time: yesterday}", "{lsn: nowhere}"] {
        assert!(target(bad).unwrap_err().problems[0].field.starts_with("spec.bootstrap.recovery.target"), "{bad}");
    }
}

fn of_version(spec: &str, data: &str) -> Result<ValidatedCluster, InvalidSpec> {
    let mut cluster = cluster(spec);
    let (version, system_id) = (Some(data.to_owned()), Some("7".to_owned()));
    cluster.status = Some(PostgresClusterStatus { version, system_id, ..PostgresClusterStatus::default() });
    validate_cluster(&cluster, &References::default(), &images())
}

#[test]
fn the_major_version_is_that_of_the_data_and_another_one_is_refused() {
    assert_eq!(of_version(MINIMAL, "16.4").unwrap().image, "registry/pg:16");
    let same = "{instances: 3, storage: {size: 10Gi}, version: 16}";
    assert_eq!(of_version(same, "16.4").unwrap().image, "registry/pg:16");
    let invalid = of_version(same, "17.11").unwrap_err();
    assert_eq!(invalid.problems[0].field, "spec.version");
    assert!(invalid.to_string().contains("the data is of PostgreSQL 17"), "{invalid}");
}

#[test]
fn a_cluster_that_runs_is_watched_over_unless_what_failovers_go_by_is_wrong() {
    let parameter = "{instances: 3, storage: {size: 10Gi}, postgresql: {parameters: {archive_mode: 'off'}}}";
    let watchable = of_version(parameter, "17.11").unwrap_err().watchable.unwrap();
    assert_eq!((watchable.name.as_str(), watchable.instances), ("shop", 3));
    assert!(validate(parameter).unwrap_err().watchable.is_none(), "there is nothing to watch over yet");
    let restore = "{instances: 3, storage: {size: 10Gi}, restore: {id: one, target: {immediate: false}},
        backup: {objectStore: {endpoint: 'https://m', bucket: abc, credentialsSecretRef: {name: m}}}}";
    assert_eq!(of_version(restore, "17.11").unwrap_err().watchable.unwrap().restore, None, "it is not begun");
    let quorum = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 3}}";
    assert!(of_version(quorum, "17.11").unwrap_err().watchable.is_none());
}

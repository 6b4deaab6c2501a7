//! Whole objects of a backup: the Job of one attempt, and the account that a cluster's backup Jobs run as. Pure.
//!
//! The Job's configuration is an annotation of its pod that the pod sees as a file: it can't differ from the Job, needs no
//! object of its own, and names no secret.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, LocalObjectReference,
            ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
            SecretVolumeSource, SecurityContext, ServiceAccount, Volume, VolumeMount,
        },
        rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use pgherd_core::{
    backup::ClusterLocation,
    instance::{AGENT_PORT, REPLICATION_ROLE, paths},
};
use pgherd_crds::{
    names::{self, keys},
    v1alpha1::postgres_cluster::PostgresClusterSpec,
};
use sha2::{Digest, Sha256};

use super::error::BackupError;
use crate::jobs::backup::config::{
    BackupJobConfig, CONFIG_DIR, CONFIG_FILE, CompressionConfig, IncrementalConfig, LocalConfig, SourceConfig,
};

/// Annotation of a Job's pod with [`BackupJobConfig`] as JSON.
pub const CONFIG_ANNOTATION: &str = "pgherd.dev/backup-config";
/// Value of [`keys::NAME`] on backup Jobs and their pods.
pub const BACKUP_APP: &str = "pgherd-backup";
/// The container's name.
pub const CONTAINER: &str = "backup";
/// Longest value of a label, and Kubernetes labels a Job's pods with its name.
const MAX_NAME: usize = 63;
/// The image has no users; any other UID would do.
const RUN_AS: i64 = 65_532;
/// A backup that takes longer is given up: two days.
const DEADLINE_SECONDS: i64 = 2 * 24 * 3600;
/// Long enough to abort the open uploads.
const GRACE_SECONDS: i64 = 60;
const POSTGRES_PORT: u16 = 5432;

/// What one attempt's Job is made from.
#[derive(Clone, Debug)]
pub struct JobInput<'a> {
    /// The Backup's namespace.
    pub namespace: &'a str,
    /// The Backup's name.
    pub backup: &'a str,
    /// The Backup's UID.
    pub backup_uid: &'a str,
    /// The Backup as owner.
    pub owner: OwnerReference,
    /// The schedule that made the Backup.
    pub schedule: Option<&'a str>,
    /// From 1.
    pub attempt: u32,
    /// The pod that is read.
    pub source_pod: &'a str,
    /// Where the backup goes.
    pub location: ClusterLocation,
    /// The levels of compression that the user asks for.
    pub compression: Option<CompressionConfig>,
    /// Kilobytes per second that are read at most.
    pub max_rate: Option<u32>,
    /// An incremental backup is wanted.
    pub incremental: Option<IncrementalConfig>,
    /// The agent beside the instance is to read its files.
    pub local: bool,
    /// Secret with the identity that opens what is encrypted, where the cluster has one.
    pub identity_secret: Option<&'a str>,
    /// Secret with the store's credentials.
    pub credentials_secret: &'a str,
    /// Secret with the store's CA.
    pub ca_secret: Option<&'a str>,
    /// The image with the `pgherd` binary.
    pub image: &'a str,
    /// The cluster's spec, for the nodes and registries that its instances may use.
    pub placement: &'a PostgresClusterSpec,
}

/// Name of an attempt's Job: the Backup's, from the second attempt on with its number; shortened where it is too long.
#[must_use]
pub fn render_job_name(backup: &str, attempt: u32) -> String {
    let suffix = if attempt <= 1 { String::new() } else { format!("-{attempt}") };
    if backup.len() + suffix.len() <= MAX_NAME {
        return format!("{backup}{suffix}");
    }
    let hash = hex8(backup);
    let keep = backup.get(..MAX_NAME - suffix.len() - hash.len() - 1).unwrap_or_default();
    format!("{}-{hash}{suffix}", keep.trim_end_matches(['-', '.']))
}

pub(in crate::controllers) fn hex8(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The Job of one attempt. It is never tried again by Kubernetes: the next attempt may need another source.
///
/// # Errors
/// [`BackupError::RenderConfig`].
pub fn build_job(input: &JobInput<'_>) -> Result<Job, BackupError> {
    let cluster = &input.location.cluster;
    let config = BackupJobConfig {
        namespace: input.namespace.to_owned(),
        backup: input.backup.to_owned(),
        backup_uid: input.backup_uid.to_owned(),
        attempt: input.attempt,
        source: SourceConfig {
            pod: input.source_pod.to_owned(),
            host: names::pod_host(cluster, input.namespace, input.source_pod),
            port: POSTGRES_PORT,
            user: REPLICATION_ROLE.to_owned(),
            tls_dir: paths::TLS.to_owned(),
        },
        location: build_location(input),
        compression: input.compression,
        max_rate: input.max_rate,
        incremental: input.incremental.clone(),
        local: input.local.then_some(LocalConfig { agent_port: AGENT_PORT }),
    };
    let config = serde_json::to_string(&config).map_err(BackupError::RenderConfig)?;
    let labels = build_labels(input);
    // The label of the cluster is the Job's alone: whoever selects a cluster's pods by it means its instances.
    let mut job_labels = labels.clone();
    job_labels.insert(keys::CLUSTER.to_owned(), cluster.clone());
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(render_job_name(input.backup, input.attempt)),
            namespace: Some(input.namespace.to_owned()),
            labels: Some(job_labels),
            owner_references: Some(vec![input.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            backoff_limit: Some(0),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(BTreeMap::from([(CONFIG_ANNOTATION.to_owned(), config)])),
                    ..ObjectMeta::default()
                }),
                spec: Some(build_pod(input)),
            },
            ..JobSpec::default()
        }),
        status: None,
    })
}

/// A full backup only writes: its Job is told the recipients, and neither has the identity nor knows where one would be. An
/// incremental one has to read its parent's manifest.
fn build_location(input: &JobInput<'_>) -> ClusterLocation {
    let mut location = input.location.clone();
    if let Some(encryption) = &mut location.store.encryption
        && find_identity(input).is_none()
    {
        encryption.identity_file = None;
    }
    location
}

fn find_identity<'a>(input: &JobInput<'a>) -> Option<&'a str> {
    input.identity_secret.filter(|_| input.incremental.is_some())
}

fn build_labels(input: &JobInput<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (keys::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (keys::NAME.to_owned(), BACKUP_APP.to_owned()),
        (keys::BACKUP.to_owned(), input.backup.to_owned()),
    ]);
    if let Some(schedule) = input.schedule {
        labels.insert(keys::SCHEDULE.to_owned(), schedule.to_owned());
    }
    labels
}

fn build_pod(input: &JobInput<'_>) -> PodSpec {
    let mut volumes = vec![
        build_config_volume(CONFIG_ANNOTATION, CONFIG_FILE),
        build_secret_volume(
            "tls",
            &names::tls_secret(&input.location.cluster),
            &["ca.crt", "replication.crt", "replication.key"],
        ),
        build_secret_volume("object-store", input.credentials_secret, &[]),
    ];
    let mut mounts = vec![
        build_mount("config", CONFIG_DIR),
        build_mount("tls", paths::TLS),
        build_mount("object-store", paths::STORE),
    ];
    if let Some(secret) = input.ca_secret {
        volumes.push(build_secret_volume("object-store-ca", secret, &["ca.crt"]));
        mounts.push(build_mount("object-store-ca", paths::STORE_CA));
    }
    if let Some(secret) = find_identity(input) {
        volumes.push(build_secret_volume("encryption", secret, &[paths::AGE_IDENTITY]));
        mounts.push(build_mount("encryption", paths::ENCRYPTION));
    }
    let mut pod = PodSpec {
        service_account_name: Some(names::backup_account(&input.location.cluster)),
        restart_policy: Some("Never".to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        enable_service_links: Some(false),
        security_context: Some(build_pod_security()),
        containers: vec![build_container(input.image, mounts)],
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    place_like_instances(&mut pod, input.placement);
    pod
}

/// Where instances must not run a Job must not either, and what pulls their images pulls its image.
pub(in crate::controllers) fn place_like_instances(pod: &mut PodSpec, cluster: &PostgresClusterSpec) {
    pod.node_selector.clone_from(&cluster.node_selector);
    pod.tolerations.clone_from(&cluster.tolerations);
    pod.image_pull_secrets = cluster
        .image_pull_secrets
        .as_ref()
        .map(|secrets| secrets.iter().map(|secret| LocalObjectReference { name: secret.name.clone() }).collect());
}

fn build_container(image: &str, mounts: Vec<VolumeMount>) -> Container {
    let memory = |amount: &str| ("memory".to_owned(), Quantity(amount.to_owned()));
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        args: Some(vec!["backup".to_owned(), "--config".to_owned(), format!("{CONFIG_DIR}/{CONFIG_FILE}")]),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([("cpu".to_owned(), Quantity("100m".to_owned())), memory("128Mi")])),
            // Far above what docs/backup.md adds up: the parent's manifest of an incremental backup is 140 bytes a file, and a database
            // of many partitions has millions. What is not used costs nothing.
            limits: Some(BTreeMap::from([memory("1Gi")])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(build_container_security()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// A pod without rights on its node.
pub(in crate::controllers) fn build_pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(RUN_AS),
        run_as_group: Some(RUN_AS),
        fs_group: Some(RUN_AS),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..PodSecurityContext::default()
    }
}

/// A container that can do nothing but run.
pub(in crate::controllers) fn build_container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

/// The pod's annotation as a file.
pub(in crate::controllers) fn build_config_volume(annotation: &str, file: &str) -> Volume {
    let item = DownwardAPIVolumeFile {
        path: file.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{annotation}']"),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    Volume {
        name: "config".to_owned(),
        downward_api: Some(DownwardAPIVolumeSource { items: Some(vec![item]), ..DownwardAPIVolumeSource::default() }),
        ..Volume::default()
    }
}

/// With no `keys` the whole Secret. What is not there is missed by the process, which says so; a kubelet would wait for it without a word.
pub(in crate::controllers) fn build_secret_volume(name: &str, secret: &str, keys: &[&str]) -> Volume {
    let items = keys.iter().map(|key| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None });
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            optional: Some(true),
            items: (!keys.is_empty()).then(|| items.collect()),
        }),
        ..Volume::default()
    }
}

pub(in crate::controllers) fn build_mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), read_only: Some(true), ..VolumeMount::default() }
}

/// The account of a cluster's backup Jobs: it can read Backups and write their status, and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// The account.
    pub account: ServiceAccount,
    /// Its rights.
    pub role: Role,
    /// What gives them to it.
    pub binding: RoleBinding,
}

/// Builds the account, owned by the PostgresCluster.
#[must_use]
pub fn build_account(cluster: &str, namespace: &str, owner: &OwnerReference) -> Account {
    let name = names::backup_account(cluster);
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([
            (keys::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
            (keys::NAME.to_owned(), BACKUP_APP.to_owned()),
            (keys::CLUSTER.to_owned(), cluster.to_owned()),
        ])),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    };
    let rule = |resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec!["pgherd.dev".to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        ..PolicyRule::default()
    };
    Account {
        account: ServiceAccount { metadata: metadata.clone(), ..ServiceAccount::default() },
        role: Role {
            metadata: metadata.clone(),
            rules: Some(vec![rule("backups", &["get"]), rule("backups/status", &["get", "patch", "update"])]),
        },
        binding: RoleBinding {
            metadata,
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "Role".to_owned(),
                name: name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name,
                namespace: Some(namespace.to_owned()),
                ..Subject::default()
            }]),
        },
    }
}

//! The Job of one run on the store. Pure, but for the one call that creates it.
//!
//! As with backups, the configuration is an annotation of the pod that the pod sees as a file, and names no secret.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{Container, PodSpec, PodTemplateSpec, ResourceRequirements},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Api, ResourceExt, api::PostParams};
use pgherd_core::instance::paths;
use pgherd_crds::{
    names::{self, keys},
    v1alpha1::postgres_cluster::PostgresClusterSpec,
};
use serde::Serialize;

use super::StoreJobError;
use crate::{
    context::Context,
    controllers::{
        backup::build::{
            build_config_volume, build_container_security, build_mount, build_pod_security, build_secret_volume, hex8,
            place_like_instances,
        },
        postgres_cluster::validate::ValidatedStore,
    },
};

/// Annotation of the pod with the configuration as JSON.
pub const CONFIG_ANNOTATION: &str = "pgherd.dev/job-config";
/// Where the pod sees it.
const CONFIG_DIR: &str = "/etc/pgherd/job";
const CONFIG_FILE: &str = "job.json";
/// A Job that has ended goes after this time; until then its log can be read.
const KEEP_ENDED_SECONDS: i32 = 1800;
/// Longest name: Kubernetes labels a Job's pods with it.
const MAX_NAME: usize = 63;

/// What a Job is made from.
#[derive(Clone, Debug)]
pub struct StoreJob<'a, C> {
    /// The Job's name.
    pub name: String,
    /// Its namespace.
    pub namespace: &'a str,
    /// Value of the label `app.kubernetes.io/name`.
    pub app: &'static str,
    /// Who it belongs to.
    pub owner: OwnerReference,
    /// The cluster whose part of the store it works on.
    pub cluster: &'a str,
    /// More labels of the Job and its pod.
    pub labels: BTreeMap<String, String>,
    /// What it is told.
    pub config: &'a C,
    /// The store, with its Secrets.
    pub store: &'a ValidatedStore,
    /// The image with the `pgherd` binary.
    pub image: &'a str,
    /// The cluster's spec, for the nodes and registries that its instances may use.
    pub placement: &'a PostgresClusterSpec,
    /// The subcommand; `--config FILE` follows.
    pub command: &'static str,
    /// A run that takes longer is given up.
    pub deadline_seconds: i64,
}

/// `<of>-<kind><hash of what makes the run what it is>`: made once, whoever makes it. What is too long is cut.
#[must_use]
pub fn render_job_name(of: &str, kind: &str, run: &str) -> String {
    let suffix = format!("-{kind}{}", hex8(run));
    let keep = of.get(..MAX_NAME.saturating_sub(suffix.len()).min(of.len())).unwrap_or_default();
    format!("{}{suffix}", keep.trim_end_matches(['-', '.']))
}

/// The Job. Kubernetes never tries it again: the controller does, with a pause.
///
/// # Errors
/// [`StoreJobError::RenderConfig`].
pub fn build_store_job<C: Serialize>(input: &StoreJob<'_, C>) -> Result<Job, StoreJobError> {
    let config = serde_json::to_string(input.config)
        .map_err(|source| StoreJobError::RenderConfig { name: input.name.clone(), source })?;
    let mut labels = input.labels.clone();
    labels.insert(keys::MANAGED_BY.to_owned(), names::MANAGER.to_owned());
    labels.insert(keys::NAME.to_owned(), input.app.to_owned());
    // The label of the cluster is the Job's alone: whoever selects a cluster's pods by it means its instances.
    let mut job_labels = labels.clone();
    job_labels.insert(keys::CLUSTER.to_owned(), input.cluster.to_owned());
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(input.name.clone()),
            namespace: Some(input.namespace.to_owned()),
            labels: Some(job_labels),
            owner_references: Some(vec![input.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: Some(input.deadline_seconds),
            backoff_limit: Some(0),
            ttl_seconds_after_finished: Some(KEEP_ENDED_SECONDS),
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

fn build_pod<C>(input: &StoreJob<'_, C>) -> PodSpec {
    let mut volumes = vec![
        build_config_volume(CONFIG_ANNOTATION, CONFIG_FILE),
        build_secret_volume("object-store", &input.store.credentials_secret, &[]),
    ];
    let mut mounts = vec![build_mount("config", CONFIG_DIR), build_mount("object-store", paths::STORE)];
    if let Some(secret) = &input.store.ca_secret {
        volumes.push(build_secret_volume("object-store-ca", secret, &["ca.crt"]));
        mounts.push(build_mount("object-store-ca", paths::STORE_CA));
    }
    let amount = |amount: &str| Quantity(amount.to_owned());
    let mut pod = PodSpec {
        // It has nothing to say to the API server.
        automount_service_account_token: Some(false),
        restart_policy: Some("Never".to_owned()),
        enable_service_links: Some(false),
        security_context: Some(build_pod_security()),
        containers: vec![Container {
            name: input.command.to_owned(),
            image: Some(input.image.to_owned()),
            args: Some(vec![input.command.to_owned(), "--config".to_owned(), format!("{CONFIG_DIR}/{CONFIG_FILE}")]),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            resources: Some(ResourceRequirements {
                requests: Some([("cpu".to_owned(), amount("50m")), ("memory".to_owned(), amount("64Mi"))].into()),
                limits: Some([("memory".to_owned(), amount("256Mi"))].into()),
                ..ResourceRequirements::default()
            }),
            security_context: Some(build_container_security()),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    place_like_instances(&mut pod, input.placement);
    pod
}

/// Creates the Job; one of this name exists already when an earlier round's news has not arrived yet.
///
/// # Errors
/// [`StoreJobError::Create`].
pub async fn create_store_job(context: &Context, namespace: &str, job: &Job) -> Result<(), StoreJobError> {
    let api: Api<Job> = Api::namespaced(context.client.clone(), namespace);
    context.metrics.api_writes.inc();
    match api.create(&PostParams::default(), job).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(source) => Err(StoreJobError::Create { name: job.name_any(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_for_the_same_run_and_never_too_long() {
        let long = "x".repeat(63);
        let name = render_job_name(&long, "r", "run");
        assert!(name.len() <= MAX_NAME, "{name}");
        assert_eq!(name, render_job_name(&long, "r", "run"));
        assert_ne!(render_job_name("shop", "r", "one"), render_job_name("shop", "r", "two"));
        assert!(!render_job_name(&format!("{}-tail", "x".repeat(52)), "r", "run").contains("--"));
    }
}

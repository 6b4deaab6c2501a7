//! The StatefulSet `<cluster>`. Its pod template holds nothing that changes from day to day: a changed template leaves the
//! running pods behind (`OnDelete`).

pub mod affinity;
pub mod containers;
pub mod probes;
pub mod volumes;

use k8s_openapi::api::{
    apps::v1::{
        StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
    },
    core::v1::{LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile},
};
use kube::api::ObjectMeta;
use pgherd_crds::names;

use super::{BuildInput, labels, metadata, selector};

/// User and group of the containers; the init container writes a passwd entry for whatever it runs under.
const UID: i64 = 10_001;

/// The StatefulSet.
#[must_use]
pub fn build_stateful_set(input: &BuildInput<'_>) -> StatefulSet {
    let cluster = input.cluster;
    StatefulSet {
        metadata: metadata(cluster, cluster.name.clone()),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(input.replicas).ok(),
            service_name: Some(names::pods_service(&cluster.name)),
            // All at once: a replica waits for its primary by itself, and ordinal 0 is nothing special.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            selector: selector(&cluster.name),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels(&cluster.name)), ..ObjectMeta::default() }),
                spec: Some(build_pod_spec(input)),
            },
            volume_claim_templates: Some(vec![volumes::build_claim_template(cluster, input.claim_size)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn build_pod_spec(input: &BuildInput<'_>) -> PodSpec {
    let cluster = input.cluster;
    let scheduling = &cluster.scheduling;
    let pull_secrets = |name: &String| LocalObjectReference { name: name.clone() };
    PodSpec {
        service_account_name: Some(names::instance_account(&cluster.name)),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        // A smart stop: checkpoint, the last WAL to the archive and to the replicas.
        termination_grace_period_seconds: Some(60),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            fs_group: Some(UID),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        init_containers: Some(vec![containers::build_install_container(cluster, input.pgherd_image)]),
        containers: vec![containers::build_postgres_container(cluster)],
        volumes: Some(volumes::build_volumes(cluster)),
        affinity: Some(scheduling.affinity.clone().unwrap_or_else(|| affinity::build_default_affinity(&cluster.name))),
        node_selector: scheduling.node_selector.clone(),
        tolerations: scheduling.tolerations.clone(),
        topology_spread_constraints: scheduling.topology_spread_constraints.clone(),
        priority_class_name: scheduling.priority_class_name.clone(),
        image_pull_secrets: (!scheduling.image_pull_secrets.is_empty())
            .then(|| scheduling.image_pull_secrets.iter().map(pull_secrets).collect()),
        ..PodSpec::default()
    }
}

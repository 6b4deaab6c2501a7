//! The Job of a verification: PostgreSQL's own image with the `pgherd` binary brought in by an init container, as instances
//! have it, and scratch space that goes with the pod. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{
            Container, EmptyDirVolumeSource, EphemeralVolumeSource, PersistentVolumeClaimSpec,
            PersistentVolumeClaimTemplate, PodSpec, ResourceRequirements, Volume, VolumeMount,
            VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use pgherd_core::instance::paths;
use pgherd_crds::{PostgresCluster, names::keys, v1alpha1::verification::Scratch};

use super::{
    StoreJobError, VERIFICATION_APP,
    build::{StoreJob, build_store_job},
};
use crate::{
    controllers::{
        backup::build::{build_container_security, build_mount, build_secret_volume},
        postgres_cluster::validate::ValidatedStore,
    },
    jobs::verification::config::VerifyJobConfig,
};

/// Where the backup is restored to, on the scratch volume.
pub const DATA: &str = paths::PGDATA;
/// Where the unix socket goes: a folder of its own in an emptyDir.
pub const SOCKETS: &str = "/var/run/postgresql/verify";
/// A run that takes longer is given up: a day.
const DEADLINE_SECONDS: i64 = 24 * 3600;

/// What a verification's Job is made from.
#[derive(Clone, Debug)]
pub struct TrialJob<'a> {
    /// The Job's name.
    pub name: String,
    /// Its namespace.
    pub namespace: &'a str,
    /// The schedule.
    pub schedule: &'a str,
    /// The schedule as owner.
    pub owner: OwnerReference,
    /// The cluster: its volume's size and class, its resources, where its pods may run.
    pub cluster: &'a PostgresCluster,
    /// What it is told.
    pub config: &'a VerifyJobConfig,
    /// The store, with its Secrets.
    pub store: &'a ValidatedStore,
    /// The image with the `pgherd` binary.
    pub pgherd_image: &'a str,
    /// The PostgreSQL image.
    pub image: &'a str,
    /// Where the backup is restored to.
    pub scratch: Scratch,
}

/// The Job.
///
/// # Errors
/// [`StoreJobError::RenderConfig`].
pub fn build_trial_job(input: &TrialJob<'_>) -> Result<Job, StoreJobError> {
    let mut job = build_store_job(&StoreJob {
        name: input.name.clone(),
        namespace: input.namespace,
        app: VERIFICATION_APP,
        owner: input.owner.clone(),
        cluster: &input.config.location.cluster.cluster,
        labels: BTreeMap::from([(keys::SCHEDULE.to_owned(), input.schedule.to_owned())]),
        config: input.config,
        store: input.store,
        image: input.image,
        placement: &input.cluster.spec,
        command: "verify",
        deadline_seconds: DEADLINE_SECONDS,
    })?;
    if let Some(pod) = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) {
        fit_pod(pod, input);
    }
    Ok(job)
}

fn fit_pod(pod: &mut PodSpec, input: &TrialJob<'_>) {
    let spec = &input.cluster.spec;
    for container in &mut pod.containers {
        container.command = Some(vec![format!("{}/bin/pgherd", paths::RUN)]);
        container.image_pull_policy = Some("IfNotPresent".to_owned());
        container.resources = Some(build_resources(spec.resources.as_ref()));
        container.volume_mounts.get_or_insert_default().extend([
            mount("scratch", paths::VOLUME),
            mount("run", paths::RUN),
            // PostgreSQL and libpq want a name for whatever UID they run under.
            VolumeMount { sub_path: Some("passwd".to_owned()), read_only: Some(true), ..mount("run", "/etc/passwd") },
            mount("socket", paths::POSTGRES_SOCKET),
            mount("tmp", "/tmp"),
            mount("shm", "/dev/shm"),
        ]);
    }
    pod.volumes.get_or_insert_default().extend([
        build_scratch(input),
        empty("run", None),
        empty("socket", None),
        empty("tmp", None),
        empty("shm", Some("Memory")),
    ]);
    if let Some(secret) = &input.store.identity_secret {
        let identity = build_secret_volume("encryption", secret, &[paths::AGE_IDENTITY]);
        pod.volumes.get_or_insert_default().push(identity);
        for container in &mut pod.containers {
            container.volume_mounts.get_or_insert_default().push(build_mount("encryption", paths::ENCRYPTION));
        }
    }
    pod.init_containers = Some(vec![build_install_container(input.pgherd_image)]);
    // A server that is told to end has nothing to save.
    pod.termination_grace_period_seconds = Some(10);
}

/// Those of the instances, so that the server has what it needs to replay; without any, little is asked for.
fn build_resources(cluster: Option<&ResourceRequirements>) -> ResourceRequirements {
    let amount = |amount: &str| Quantity(amount.to_owned());
    cluster.cloned().unwrap_or_else(|| ResourceRequirements {
        requests: Some([("cpu".to_owned(), amount("100m")), ("memory".to_owned(), amount("256Mi"))].into()),
        ..ResourceRequirements::default()
    })
}

fn build_install_container(image: &str) -> Container {
    Container {
        name: "install".to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["agent-install".to_owned()]),
        volume_mounts: Some(vec![mount("run", paths::RUN)]),
        security_context: Some(build_container_security()),
        ..Container::default()
    }
}

fn build_scratch(input: &TrialJob<'_>) -> Volume {
    if input.scratch == Scratch::EmptyDir {
        return empty("scratch", None);
    }
    let storage = &input.cluster.spec.storage;
    let claim = PersistentVolumeClaimTemplate {
        metadata: None,
        spec: PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.size.clone()))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        },
    };
    Volume {
        name: "scratch".to_owned(),
        ephemeral: Some(EphemeralVolumeSource { volume_claim_template: Some(claim) }),
        ..Volume::default()
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn empty(name: &str, medium: Option<&str>) -> Volume {
    let source = EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

//! From the user's spec to [`ValidatedCluster`]: defaults, cross-field rules and everything that CEL checks, once more.
//! No client here: what the spec refers to is passed in.

mod bootstrap;
mod restore;
mod rules;
pub mod store;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    api::core::v1::{Affinity, ObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt};
use pgherd_core::{
    backup::StoreConfig,
    failover::RestoreRequest,
    instance::{Bootstrap, HbaEntry, Timings},
    pg::{conf::validate_parameters, hba::validate_hba},
    quantity::{parse_bytes, parse_duration},
};
use pgherd_crds::{
    PostgresCluster, PostgresClusterSpec, PostgresClusterStatus,
    names::keys,
    v1alpha1::postgres_cluster::{HbaMethod, ReplicaSource, SynchronousMode},
};

use self::store::validate_own_store;
use super::references::References;
use crate::settings::ImageMap;

/// A cluster whose spec makes sense. Everything behind validation works on this alone.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// The cluster's name; also the Lease's and the StatefulSet's.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// The generation of the spec.
    pub generation: i64,
    /// For everything that the cluster owns (all but PVCs).
    pub owner: OwnerReference,
    /// For Events.
    pub reference: ObjectReference,
    /// The PostgreSQL image.
    pub image: String,
    /// How many instances are asked for.
    pub instances: u32,
    /// `Off`, `Preferred` or `Required`.
    pub synchronous_mode: SynchronousMode,
    /// W: how many replicas a commit waits for; 0 in mode `Off`. In mode `Preferred` at most so many.
    pub acks: u32,
    /// `failover.delay` in milliseconds.
    pub failover_delay_ms: u64,
    /// `failover.maxLag` in bytes.
    pub failover_max_lag: Option<u64>,
    /// Failure detection.
    pub timings: Timings,
    /// Where backups and WAL go.
    pub store: Option<ValidatedStore>,
    /// Where the first data directory is restored from; none once the cluster was bootstrapped.
    pub recovery_store: Option<ValidatedStore>,
    /// Which copy a new replica is built from.
    pub replica_source: ReplicaSource,
    /// Where the first data directory comes from.
    pub bootstrap: Bootstrap,
    /// `spec.restore`: the restore in place that is asked for, or was.
    pub restore: Option<RestoreRequest>,
    /// PostgreSQL parameters.
    pub parameters: BTreeMap<String, String>,
    /// pg_hba.conf entries.
    pub hba: Vec<HbaEntry>,
    /// The volume.
    pub storage: ValidatedStorage,
    /// CPU and memory.
    pub resources: Option<ResourceRequirements>,
    /// Where instances may run.
    pub scheduling: Scheduling,
    /// `spec.suspend`: nothing is applied and no failover decided.
    pub suspended: bool,
    /// What somebody asks for once, by annotations.
    pub requests: Requests,
    /// The status as it was published last.
    pub status: PostgresClusterStatus,
}

/// What somebody asks for once, by annotations on the PostgresCluster; as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// `pgherd.dev/switchover`.
    pub switchover: Option<String>,
    /// `pgherd.dev/force-promote`.
    pub force_promote: Option<String>,
    /// `pgherd.dev/rebuild`.
    pub rebuild: Option<String>,
}

impl Requests {
    /// Reads the annotations.
    #[must_use]
    pub fn of(cluster: &PostgresCluster) -> Self {
        let annotations = cluster.metadata.annotations.as_ref();
        let value = |key: &str| annotations.and_then(|all| all.get(key)).map(|value| value.trim().to_owned());
        Self {
            switchover: value(keys::SWITCHOVER),
            force_promote: value(keys::FORCE_PROMOTE),
            rebuild: value(keys::REBUILD),
        }
    }
}

/// An object store, as the pods use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedStore {
    /// With the folders in which the Secrets are mounted.
    pub config: StoreConfig,
    /// Secret with `accessKeyId` and `secretAccessKey`.
    pub credentials_secret: String,
    /// Secret with `ca.crt`.
    pub ca_secret: Option<String>,
    /// Secret with `identity`, which opens what is encrypted.
    pub identity_secret: Option<String>,
}

/// The volume of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedStorage {
    /// As the user wrote it.
    pub size: String,
    /// In bytes.
    pub bytes: u64,
    /// Its class; none for the default.
    pub class: Option<String>,
}

/// Where instances may run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scheduling {
    /// Node labels.
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that are tolerated.
    pub tolerations: Option<Vec<Toleration>>,
    /// Instead of the default.
    pub affinity: Option<Affinity>,
    /// Spreading.
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class.
    pub priority_class_name: Option<String>,
    /// Pull secrets.
    pub image_pull_secrets: Vec<String>,
}

impl ValidatedCluster {
    /// The label selector of the instances, as text for the scale subresource.
    #[must_use]
    pub fn selector(&self) -> String {
        format!("{}={}", keys::CLUSTER, self.name)
    }

    /// The W that a new cluster begins with: in mode `Preferred` nobody is there yet who could be waited for.
    #[must_use]
    pub fn first_acks(&self) -> u32 {
        if self.synchronous_mode == SynchronousMode::Preferred { 0 } else { self.acks }
    }
}

/// The PostgreSQL major version of a new cluster when nothing says otherwise.
const DEFAULT_VERSION: u32 = 17;

/// Something in the spec that somebody has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `spec.storage.size`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The spec can't be worked on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidSpec {
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
    /// The cluster without what is wrong, where nothing is that failovers go by: its instances are there already and must be
    /// watched over. Not to be applied.
    pub watchable: Option<Box<ValidatedCluster>>,
}

/// Fields that a failover goes by, or whose names objects have.
const FAILOVER_FIELDS: [&str; 4] = ["metadata", "spec.instances", "spec.synchronous", "spec.failover"];

/// Collects problems, so that a user sees all of them at once.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { field: field.into(), message: message.into() });
    }

    /// The value, or its error as a problem of `field`.
    fn keep<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(field, error.to_string())).ok()
    }
}

/// Checks the spec and fills in the defaults.
///
/// # Errors
/// [`InvalidSpec`] with everything that is wrong.
pub fn validate_cluster(
    cluster: &PostgresCluster,
    references: &References,
    images: &ImageMap,
) -> Result<ValidatedCluster, InvalidSpec> {
    let mut problems = Problems::default();
    let spec = &cluster.spec;
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    rules::check_names(&name, spec, &mut problems);
    let (acks, synchronous_mode) = validate_synchronous(spec, &mut problems);
    let (failover_delay_ms, failover_max_lag) = validate_failover(spec, &mut problems);
    let (parameters, hba) = validate_postgresql(spec, &mut problems);
    let storage = validate_storage(spec, references, &mut problems);
    let image = choose_image(cluster, references, images, &mut problems);
    let store = spec.backup.as_ref().map(|backup| validate_own_store(backup, &namespace, &mut problems));
    let status = cluster.status.clone().unwrap_or_default();
    let (bootstrap, recovery_store) = bootstrap::validate_bootstrap(cluster, &namespace, references, &mut problems);
    if recovery_store.is_some() {
        bootstrap::refuse_own_path(&name, store.as_ref(), &bootstrap, &mut problems);
    }
    let restore = restore::validate_restore(spec, &mut problems);
    let owner = cluster.controller_owner_ref(&());
    if owner.is_none() {
        problems.add("metadata", "has no name or UID yet");
    }
    let Some(owner) = owner else { return Err(InvalidSpec { problems: problems.0, watchable: None }) };
    let validated = ValidatedCluster {
        name,
        namespace,
        uid: owner.uid.clone(),
        generation: cluster.metadata.generation.unwrap_or_default(),
        owner,
        reference: cluster.object_ref(&()),
        image,
        instances: spec.instances,
        synchronous_mode,
        acks,
        failover_delay_ms,
        failover_max_lag,
        timings: Timings::default(),
        store,
        recovery_store,
        replica_source: spec.replica_source.unwrap_or_default(),
        bootstrap,
        restore,
        parameters,
        hba,
        storage,
        resources: spec.resources.clone(),
        scheduling: validated_scheduling(spec),
        suspended: spec.suspend.unwrap_or(false),
        requests: Requests::of(cluster),
        status,
    };
    let problems = problems.0;
    if problems.is_empty() {
        return Ok(validated);
    }
    let is_of_failover = |problem: &Problem| FAILOVER_FIELDS.iter().any(|field| problem.field.starts_with(field));
    let is_watchable = validated.status.system_id.is_some() && !problems.iter().any(is_of_failover);
    let watchable = is_watchable.then(|| Box::new(without_new_restore(validated)));
    Err(InvalidSpec { problems, watchable })
}

/// A restore in place is not begun by a spec that is refused. One that is under way goes on.
fn without_new_restore(cluster: ValidatedCluster) -> ValidatedCluster {
    let known = cluster.status.restore.as_ref().map(|restore| restore.id.clone());
    let restore = cluster.restore.filter(|restore| known.as_ref() == Some(&restore.id));
    ValidatedCluster { restore, ..cluster }
}

fn validate_synchronous(spec: &PostgresClusterSpec, problems: &mut Problems) -> (u32, SynchronousMode) {
    let Some(synchronous) = &spec.synchronous else { return (0, SynchronousMode::Off) };
    let replicas = synchronous.replicas.unwrap_or(1);
    match synchronous.mode {
        SynchronousMode::Off => (0, SynchronousMode::Off),
        mode @ (SynchronousMode::Preferred | SynchronousMode::Required) => {
            if replicas == 0 || replicas >= spec.instances {
                let message = format!(
                    "is {replicas}, but must be at least 1 and less than instances ({}): the primary is not one of its own replicas",
                    spec.instances
                );
                problems.add("spec.synchronous.replicas", message);
            }
            (replicas, mode)
        }
    }
}

fn validate_failover(spec: &PostgresClusterSpec, problems: &mut Problems) -> (u64, Option<u64>) {
    let Some(failover) = &spec.failover else { return (0, None) };
    let delay = failover.delay.as_deref().and_then(|text| problems.keep("spec.failover.delay", parse_duration(text)));
    let max_lag = failover.max_lag.as_deref().and_then(|text| problems.keep("spec.failover.maxLag", parse_bytes(text)));
    (delay.and_then(|delay| u64::try_from(delay.as_millis()).ok()).unwrap_or(0), max_lag)
}

fn validate_postgresql(
    spec: &PostgresClusterSpec,
    problems: &mut Problems,
) -> (BTreeMap<String, String>, Vec<HbaEntry>) {
    let postgresql = spec.postgresql.clone().unwrap_or_default();
    let parameters = postgresql.parameters.unwrap_or_default();
    for error in validate_parameters(&parameters).err().unwrap_or_default() {
        problems.add(format!("spec.postgresql.parameters.{}", error.name), format!("{}; {}", error.why, error.fix));
    }
    let method = |method| match method {
        HbaMethod::ScramSha256 => "scram-sha-256",
        HbaMethod::Cert => "cert",
        HbaMethod::Reject => "reject",
    };
    let rules = postgresql.pg_hba.unwrap_or_default().into_iter();
    let hba: Vec<HbaEntry> = rules
        .map(|rule| HbaEntry {
            database: rule.database,
            user: rule.user,
            address: rule.address,
            method: method(rule.method).to_owned(),
        })
        .collect();
    for error in validate_hba(&hba).err().unwrap_or_default() {
        let field = format!("spec.postgresql.pgHba[{}].{}", error.index, error.field);
        problems.add(field, format!("{}; {}", error.why, error.fix));
    }
    (parameters, hba)
}

fn validate_storage(spec: &PostgresClusterSpec, references: &References, problems: &mut Problems) -> ValidatedStorage {
    let field = "spec.storage.size";
    let parsed = problems.keep(field, parse_bytes(&spec.storage.size));
    let bytes = parsed.unwrap_or_default();
    if parsed == Some(0) {
        problems.add(field, "must be more than 0, such as 10Gi");
    }
    if parsed.is_some() && references.live_storage_bytes.is_some_and(|live| bytes < live) {
        problems
            .add(field, "is smaller than the volumes are: volumes only grow; make a new cluster from a backup instead");
    }
    ValidatedStorage { size: spec.storage.size.clone(), bytes, class: spec.storage.storage_class_name.clone() }
}

/// The image: the user's, or the operator's for the version that is asked for, that the data has or that the backup has.
fn choose_image(
    cluster: &PostgresCluster,
    references: &References,
    images: &ImageMap,
    problems: &mut Problems,
) -> String {
    let spec = &cluster.spec;
    let of_data = cluster.status.as_ref().and_then(|status| status.version.as_deref()?.split('.').next()?.parse().ok());
    if let (Some(asked), Some(of_data)) = (spec.version, of_data)
        && asked != of_data
    {
        let message = format!(
            "is {asked}, and the data is of PostgreSQL {of_data}, which another major version cannot read: write {of_data}, make a \
             new cluster of version {asked} and bring the data there by pg_dump or logical replication"
        );
        problems.add("spec.version", message);
    }
    if let Some(image) = &spec.image {
        return image.clone();
    }
    // A backup says what a new cluster's data will be, and nothing any more once the data is there.
    let of_backup = references.backup.as_ref().and_then(|backup| backup.status.as_ref()?.server_version);
    let version = spec.version.or(of_data).or(of_backup.map(|number| number / 10_000)).unwrap_or(DEFAULT_VERSION);
    images.get(&version).cloned().unwrap_or_else(|| {
        let known: Vec<String> = images.keys().map(ToString::to_string).collect();
        let message = format!("no image is configured for PostgreSQL {version} (configured: {}); set spec.image, or add one to the operator's settings", known.join(", "));
        problems.add("spec.version", message);
        String::new()
    })
}

fn validated_scheduling(spec: &PostgresClusterSpec) -> Scheduling {
    Scheduling {
        node_selector: spec.node_selector.clone(),
        tolerations: spec.tolerations.clone(),
        affinity: spec.affinity.clone(),
        topology_spread_constraints: spec.topology_spread_constraints.clone(),
        priority_class_name: spec.priority_class_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().flatten().map(|reference| reference.name.clone()).collect(),
    }
}

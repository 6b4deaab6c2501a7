//! All reads of one round of a Backup, as data for [`super::decide`]. Unreachable pods and absent objects are data.

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, Pod, Secret},
};
use kube::{Api, ResourceExt, api::ListParams};
use pgherd_crds::{
    Backup, BackupStatus, PostgresCluster,
    names::{self, keys},
    v1alpha1::{backup::BackupPhase, conditions::COMPLETED, shared::Condition},
};

use super::{
    build::{CONFIG_ANNOTATION, render_job_name},
    decide::{AttemptFacts, AttemptState, BackupFacts, ClusterFacts, PodFacts, PodRole},
    error::BackupError,
};
use crate::{
    context::Context,
    controllers::postgres_cluster::validate::{ValidatedStore, store::find_store},
    jobs::backup::{
        config::BackupJobConfig,
        outcome::{BackupFailure, BackupOutcome, parse_outcome},
    },
    kubernetes::{owner::is_controlled_by, store},
};

/// Reasons of a waiting container that it doesn't get out of by itself, or hardly.
const START_TROUBLE: [&str; 6] = [
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// What a round sees.
pub struct Observed {
    /// What the decision is made on.
    pub facts: BackupFacts,
    /// The cluster.
    pub cluster: Option<std::sync::Arc<PostgresCluster>>,
    /// Its store, if it has a usable one.
    pub store: Option<ValidatedStore>,
}

/// Reads everything.
///
/// # Errors
/// If the API server does not answer.
pub async fn observe(context: &Context, backup: &Backup, namespace: &str, uid: &str) -> Result<Observed, BackupError> {
    let status = backup.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let unfinished = matches!(phase, BackupPhase::Pending | BackupPhase::Running);
    let cluster_name = backup.spec.cluster_ref.name.clone();
    let cluster = store::get(&context.stores.clusters, namespace, &cluster_name);
    let (mut facts, mut in_use) = (None, None);
    if let Some(cluster) = &cluster {
        let mut seen = ClusterFacts {
            deleting: cluster.metadata.deletion_timestamp.is_some(),
            has_store: cluster.spec.backup.is_some(),
            has_system_id: cluster.status.as_ref().is_some_and(|status| status.system_id.is_some()),
            pods: observe_pods(context, namespace, &cluster_name),
            ..ClusterFacts::default()
        };
        match find_store(cluster, namespace) {
            Ok(found) => in_use = found,
            Err(invalid) => seen.invalid = Some(invalid.to_string()),
        }
        if (unfinished || backup.metadata.deletion_timestamp.is_some())
            && let Some(found) = &in_use
        {
            seen.missing_secret = observe_missing_secret(context, namespace, found).await?;
        }
        facts = Some(seen);
    }
    let (attempts, foreign_job) =
        if unfinished { observe_attempts(context, backup, namespace, uid).await? } else { (Vec::new(), None) };
    let older_unfinished =
        if unfinished && attempts.is_empty() { observe_older(context, backup, namespace).await? } else { None };
    let facts = BackupFacts {
        phase,
        announced: status.conditions.iter().any(|condition| condition.type_ == COMPLETED && condition.status == "True"),
        pitr_ready: status.pitr_ready,
        completed_at: find_completed_at(&status),
        target: backup.spec.target.unwrap_or_default(),
        cluster_name,
        cluster: facts,
        older_unfinished,
        foreign_job,
        attempts,
    };
    Ok(Observed { facts, cluster, store: in_use })
}

/// When a backup was complete. The one time that says so is by the clock of a node, which may be ahead, the other by the controller's, which
/// may have looked later.
pub(in crate::controllers) fn find_completed_at(status: &BackupStatus) -> Option<Timestamp> {
    let completed = |condition: &&Condition| condition.type_ == COMPLETED && condition.status == "True";
    let announced = status.conditions.iter().find(completed).map(|condition| &condition.last_transition_time);
    status.completed_at.iter().chain(announced).filter_map(|time| time.parse().ok()).min()
}

fn observe_pods(context: &Context, namespace: &str, cluster: &str) -> Vec<PodFacts> {
    store::of_cluster(&context.stores.pods, namespace, cluster)
        .iter()
        .filter(|pod| names::ordinal(cluster, &pod.name_any()).is_some())
        .map(|pod| PodFacts {
            name: pod.name_any(),
            role: match pod.labels().get(keys::ROLE).map(String::as_str) {
                Some(names::ROLE_PRIMARY) => PodRole::Primary,
                Some(names::ROLE_REPLICA) => PodRole::Replica,
                _ => PodRole::Unknown,
            },
            ready: pod.metadata.deletion_timestamp.is_none() && has_condition(pod, "Ready", "True").is_some(),
        })
        .collect()
}

/// The message of a pod's condition with this status.
fn has_condition<'a>(pod: &'a Pod, type_: &str, status: &str) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == type_ && condition.status == status)?;
    Some(found.message.as_deref().unwrap_or_default())
}

/// A pod whose Secret is missing waits for ever without a word in its status.
async fn observe_missing_secret(
    context: &Context,
    namespace: &str,
    store: &ValidatedStore,
) -> Result<Option<String>, BackupError> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    for name in std::iter::once(&store.credentials_secret).chain(&store.ca_secret) {
        let found = api
            .get_metadata_opt(name)
            .await
            .map_err(|source| BackupError::ReadSecret { name: name.clone(), source })?;
        if found.is_none() {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// The oldest Backup of the same cluster that was made before this one and isn't finished. Read from the API server, so
/// that two Backups made at the same moment agree on who is first.
async fn observe_older(context: &Context, backup: &Backup, namespace: &str) -> Result<Option<String>, BackupError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    let all = api.list(&ListParams::default()).await.map_err(BackupError::ListBackups)?;
    let age = |backup: &Backup| (backup.creation_timestamp().map(|time| time.0), backup.name_any());
    let mine = age(backup);
    Ok(all
        .items
        .iter()
        .filter(|other| other.spec.cluster_ref == backup.spec.cluster_ref && is_unfinished(other) && age(other) < mine)
        .min_by_key(|other| age(other))
        .map(ResourceExt::name_any))
}

/// True until a Backup is completed or failed.
#[must_use]
pub fn is_unfinished(backup: &Backup) -> bool {
    let phase = backup.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    matches!(phase, BackupPhase::Pending | BackupPhase::Running)
}

async fn observe_attempts(
    context: &Context,
    backup: &Backup,
    namespace: &str,
    uid: &str,
) -> Result<(Vec<AttemptFacts>, Option<String>), BackupError> {
    let api: Api<Job> = Api::namespaced(context.client.clone(), namespace);
    let name = backup.name_any();
    let selector = ListParams::default().labels(&format!("{}={name}", keys::BACKUP));
    let jobs = api.list(&selector).await.map_err(BackupError::ListJobs)?;
    let mut attempts = Vec::new();
    for job in &jobs.items {
        let Some(config) = parse_config(job).filter(|_| is_controlled_by(&job.metadata, uid)) else { continue };
        let state = observe_state(context, job, namespace).await?;
        attempts.push(AttemptFacts { number: config.attempt, source_pod: config.source.pod, state });
    }
    attempts.sort_by_key(|attempt| attempt.number);
    let next = render_job_name(&name, attempts.last().map_or(1, |last| last.number + 1));
    let foreign = jobs.items.iter().any(|job| job.name_any() == next && !is_controlled_by(&job.metadata, uid));
    Ok((attempts, foreign.then_some(next)))
}

fn parse_config(job: &Job) -> Option<BackupJobConfig> {
    let annotations = job.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?;
    serde_json::from_str(annotations.get(CONFIG_ANNOTATION)?).ok()
}

async fn observe_state(context: &Context, job: &Job, namespace: &str) -> Result<AttemptState, BackupError> {
    let job_name = job.name_any();
    match find_end(job) {
        None => Ok(AttemptState::Active { trouble: observe_trouble(context, namespace, &job_name) }),
        Some(end) => {
            let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
            let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job_name}"));
            let pods =
                api.list(&selector).await.map_err(|source| BackupError::ListPods { job: job_name.clone(), source })?;
            Ok(conclude_attempt(&end, pods.items.iter().find_map(find_terminated)))
        }
    }
}

/// How a Job ended, as its conditions say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::controllers) struct JobEnd {
    pub(in crate::controllers) succeeded: bool,
    pub(in crate::controllers) reason: String,
    pub(in crate::controllers) message: String,
    pub(in crate::controllers) at: Timestamp,
}

pub(in crate::controllers) fn find_end(job: &Job) -> Option<JobEnd> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|condition| condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed"))?;
    Some(JobEnd {
        succeeded: condition.type_ == "Complete",
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
        at: condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    })
}

pub(in crate::controllers) fn find_terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|status| status.state.as_ref()?.terminated.as_ref())
}

/// What an ended Job came to, from what its process said, or else from what Kubernetes says of it.
pub(super) fn conclude_attempt(end: &JobEnd, terminated: Option<&ContainerStateTerminated>) -> AttemptState {
    let at = end.at;
    let said = terminated.and_then(|terminated| terminated.message.as_deref()).and_then(parse_outcome);
    let failure = match (said, terminated) {
        (Some(BackupOutcome::Completed(summary)), _) => return AttemptState::Succeeded(*summary),
        (Some(BackupOutcome::Failed(failure)), _) => failure,
        (None, _) if end.succeeded => BackupFailure {
            reason: "OutcomeLost".to_owned(),
            error: "the Job succeeded but what it reported is lost; its backup may be in the store".to_owned(),
            retry: true,
        },
        (None, Some(terminated)) => BackupFailure {
            reason: terminated
                .reason
                .clone()
                .filter(|reason| reason != "Error")
                .unwrap_or_else(|| "JobFailed".to_owned()),
            error: render_termination(terminated),
            retry: true,
        },
        (None, None) => BackupFailure {
            reason: "JobFailed".to_owned(),
            error: format!("the Job failed: {}: {}", end.reason, end.message),
            retry: end.reason != "DeadlineExceeded",
        },
    };
    AttemptState::Failed { failure, at }
}

pub(in crate::controllers) fn render_termination(terminated: &ContainerStateTerminated) -> String {
    let last = terminated.message.as_deref().and_then(|log| log.lines().rev().find(|line| !line.trim().is_empty()));
    let code = terminated.exit_code;
    match (terminated.reason.as_deref(), last) {
        (Some("OOMKilled"), _) => "the Job's process was killed because it passed its memory limit".to_owned(),
        (_, Some(line)) => format!("the Job's process ended with code {code}: {line}"),
        (_, None) => format!("the Job's process ended with code {code}"),
    }
}

pub(in crate::controllers) fn observe_trouble(context: &Context, namespace: &str, job: &str) -> Option<String> {
    let pods = context.stores.pods.state_filter(|pod| {
        let name = pod.metadata.labels.as_ref().and_then(|labels| labels.get("batch.kubernetes.io/job-name"));
        pod.metadata.namespace.as_deref() == Some(namespace) && name.is_some_and(|name| name == job)
    });
    pods.iter().find_map(|pod| find_trouble(pod))
}

/// What keeps a pod from starting.
fn find_trouble(pod: &Pod) -> Option<String> {
    if let Some(message) = has_condition(pod, "PodScheduled", "False") {
        return Some(format!("the Job's pod finds no node: {message}"));
    }
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| START_TROUBLE.contains(reason))?;
        Some(format!("the Job's pod cannot start: {reason}: {}", waiting.message.as_deref().unwrap_or_default()))
    })
}

//! The last run of an object's Jobs: whether it is under way, or how it ended. From the reflector stores, but for the
//! pod of a Job that has ended: it carries the outcome.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, ResourceExt, api::ListParams};
use pgherd_crds::names::keys;
use serde::de::DeserializeOwned;

use super::{StoreJobError, build::CONFIG_ANNOTATION};
use crate::{
    context::Context,
    controllers::backup::observe::{JobEnd, find_end, find_terminated, observe_trouble, render_termination},
    kubernetes::owner::is_controlled_by,
};

/// A pod may wait so long for its volume and its image before that is worth a word.
const STARTING: SignedDuration = SignedDuration::from_mins(1);

/// One run.
#[derive(Clone, Debug)]
pub struct Run<C> {
    /// Its Job.
    pub job: String,
    /// What it was told.
    pub config: C,
    /// How it stands.
    pub state: RunState,
    /// How many Jobs there are, with those that have ended and are not cleaned away yet.
    pub count: usize,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its Job has not ended; with what keeps its pod from starting.
    Active(Option<String>),
    /// It has ended.
    Ended {
        /// When.
        at: Timestamp,
        /// The termination message of its process; none when it is lost.
        message: Option<String>,
        /// Without one: what Kubernetes says of it.
        why: String,
    },
}

/// Which Jobs are meant.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// Their namespace.
    pub namespace: &'a str,
    /// Value of the label `app.kubernetes.io/name`.
    pub app: &'a str,
    /// UID of the object that controls them.
    pub owner_uid: &'a str,
    /// A label that they carry besides.
    pub label: Option<(&'a str, &'a str)>,
}

/// The last run that was begun, unless it is `concluded`: its outcome is known already.
///
/// # Errors
/// [`StoreJobError::ListPods`].
pub async fn observe_last_run<C: DeserializeOwned>(
    context: &Context,
    whose: Whose<'_>,
    concluded: Option<&str>,
) -> Result<Option<Run<C>>, StoreJobError> {
    let jobs = context.stores.jobs.state_filter(|job| {
        let labels = job.labels();
        job.namespace().as_deref() == Some(whose.namespace)
            && labels.get(keys::NAME).is_some_and(|app| app == whose.app)
            && whose.label.is_none_or(|(key, value)| labels.get(key).is_some_and(|found| found == value))
            && is_controlled_by(&job.metadata, whose.owner_uid)
    });
    let count = jobs.len();
    let last = jobs.into_iter().max_by_key(|job| (job.creation_timestamp().map(|time| time.0), job.name_any()));
    let Some(job) = last.filter(|job| concluded != Some(job.name_any().as_str())) else { return Ok(None) };
    let Some(config) = parse_config(&job) else { return Ok(None) };
    let name = job.name_any();
    let state = match find_end(&job) {
        None => {
            let began = job.creation_timestamp().map(|time| time.0);
            let slow = began.is_none_or(|began| context.clock.now().wall.duration_since(began) > STARTING);
            RunState::Active(observe_trouble(context, whose.namespace, &name).filter(|_| slow))
        }
        Some(end) => observe_end(context, whose.namespace, &name, &end).await?,
    };
    Ok(Some(Run { job: name, config, state, count }))
}

fn parse_config<C: DeserializeOwned>(job: &Job) -> Option<C> {
    let annotations = job.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?;
    serde_json::from_str(annotations.get(CONFIG_ANNOTATION)?).ok()
}

async fn observe_end(context: &Context, namespace: &str, job: &str, end: &JobEnd) -> Result<RunState, StoreJobError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    let pods = api.list(&selector).await.map_err(|source| StoreJobError::ListPods { name: job.to_owned(), source })?;
    let terminated = pods.items.iter().find_map(find_terminated);
    let why = match terminated {
        Some(terminated) => render_termination(terminated),
        None if end.succeeded => "the Job succeeded but what it reported is lost".to_owned(),
        None => format!("the Job failed: {}: {}", end.reason, end.message),
    };
    let message = terminated.and_then(|terminated| terminated.message.clone());
    Ok(RunState::Ended { at: end.at, message, why })
}

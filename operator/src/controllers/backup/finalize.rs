//! Carries out what [`super::deletion`] decides, and keeps the finalizer as `deletionPolicy` says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, events::EventType},
};
use pgherd_core::backup::ClusterLocation;
use pgherd_crds::{Backup, names::keys, v1alpha1::backup::DeletionPolicy};
use serde_json::json;

use super::{
    decide::{AttemptState, Wait},
    deletion::{DeletionFacts, DeletionStep, FINALIZER, decide_deletion, decide_end},
    error::BackupError,
    observe::{Observed, find_completed_at, observe},
    reconcile::{Round, WATCH_JOB, positive},
    status::Report,
};
use crate::{
    controllers::store_jobs::{
        DELETION_APP, StoreJobError,
        build::{StoreJob, build_store_job, create_store_job, render_job_name},
        observe::{Run, RunState, Whose, observe_last_run},
    },
    jobs::prune::config::PruneJobConfig,
    kubernetes::{owner::controller_reference, store::list_backups},
};

/// A run that takes longer is given up: two hours.
const DEADLINE_SECONDS: i64 = 2 * 3600;

/// The data is to go with the object.
pub(super) fn wants_deletion(backup: &Backup) -> bool {
    backup.spec.deletion_policy == Some(DeletionPolicy::Delete)
}

/// The finalizer is there.
pub(super) fn has_finalizer(backup: &Backup) -> bool {
    backup.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// A pod whose Secret is missing waits without a word.
fn explain_silence(run: Run<PruneJobConfig>, observed: &Observed) -> Run<PruneJobConfig> {
    let missing = observed.facts.cluster.as_ref().and_then(|cluster| cluster.missing_secret.as_ref());
    match (&run.state, missing) {
        (RunState::Active(None), Some(secret)) => {
            let trouble = format!("the Job cannot start: there is no Secret {secret} with the store's credentials");
            Run { state: RunState::Active(Some(trouble)), ..run }
        }
        _ => run,
    }
}

impl Round<'_> {
    /// Adds or removes the finalizer; the patch comes back as a change.
    pub(super) async fn set_finalizer(&self, wanted: bool) -> Result<Action, BackupError> {
        let mut finalizers = self.backup.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.to_owned());
        }
        // The version makes the API server refuse the list if somebody else changed it meanwhile.
        let version = self.backup.resource_version();
        let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": version, "uid": self.uid } });
        self.context.metrics.api_writes.inc();
        match self.api.patch(&self.backup.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(Action::await_change()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::await_change()),
            Err(error) => Err(BackupError::PatchStatus(error)),
        }
    }

    /// One round of a Backup that is being deleted, and has the finalizer or is still under way.
    pub(super) async fn finalize(&self) -> Result<Action, BackupError> {
        let observed = observe(self.context, self.backup, &self.namespace, &self.uid).await?;
        let last = observed.facts.attempts.last().map(|attempt| &attempt.state);
        if let Some(end) = decide_end(observed.facts.phase, last) {
            let report = end.as_ref().map_or_else(Report::Failed, Report::Completed);
            self.publish(&report, true).await?;
            // The patch comes back as a change.
            return Ok(Action::requeue(WATCH_JOB));
        }
        if !has_finalizer(self.backup) {
            return Ok(Action::requeue(WATCH_JOB));
        }
        let ground = self.find_ground(&observed);
        let id = match last {
            Some(AttemptState::Succeeded(summary)) => Some(summary.id.clone()),
            _ => self.backup.status.as_ref().and_then(|status| status.id.clone()),
        };
        let name = self.backup.name_any();
        let run = match &ground {
            Ok((_, owner_uid)) => {
                let label = Some((keys::BACKUP, name.as_str()));
                let whose = Whose { namespace: &self.namespace, app: DELETION_APP, owner_uid, label };
                let run = observe_last_run::<PruneJobConfig>(self.context, whose, None).await?;
                // An earlier Backup may have had the same name.
                run.filter(|run| run.config.ran_for == self.uid).map(|run| explain_silence(run, &observed))
            }
            Err(_) => None,
        };
        let facts = DeletionFacts {
            wanted: wants_deletion(self.backup),
            being_made: matches!(last, Some(AttemptState::Active { .. })),
            id,
            out_of_reach: ground.as_ref().err().cloned(),
            run,
            newest_complete: self.find_newest_complete(),
        };
        match decide_deletion(&facts, self.now.wall) {
            DeletionStep::Release(why) => self.release(why.as_deref()).await,
            DeletionStep::Wait(wait) => self.wait_for_data(&wait).await,
            DeletionStep::Start(number) => match (ground, facts.id) {
                (Ok((location, _)), Some(id)) => self.start_deletion(&observed, location, id, number).await,
                _ => self.release(None).await,
            },
        }
    }

    /// When the newest restorable backup of the cluster, another one than this, was complete.
    fn find_newest_complete(&self) -> Option<Timestamp> {
        let cluster = &self.backup.spec.cluster_ref.name;
        let backups = list_backups(&self.context.stores.backups, &self.namespace, cluster);
        let others = backups.iter().filter(|other| other.uid().as_deref() != Some(&self.uid));
        let complete = others.filter_map(|other| {
            let status = other.status.as_ref().filter(|status| status.restorable == Some(true))?;
            find_completed_at(status)
        });
        complete.max()
    }

    async fn release(&self, why_data_stays: Option<&str>) -> Result<Action, BackupError> {
        if let Some(why) = why_data_stays {
            let place = self.backup.status.as_ref().and_then(|status| status.destination.clone()).unwrap_or_default();
            let note = format!("its data stays in the store at {place}: {why}");
            self.event(EventType::Warning, "DataLeft", &note).await;
        }
        self.set_finalizer(false).await
    }

    async fn wait_for_data(&self, wait: &Wait) -> Result<Action, BackupError> {
        let known = self.backup.status.as_ref().is_some_and(|status| {
            status
                .conditions
                .iter()
                .any(|condition| condition.reason == wait.reason && condition.message == wait.message)
        });
        let written = self.publish(&Report::Deleting(wait), false).await?;
        if written && !known && wait.reason != "DeletingData" {
            self.event(EventType::Warning, wait.reason, &wait.message).await;
        }
        Ok(Action::requeue(positive(wait.again)))
    }

    /// Where the data is and who the Job belongs to; else why nobody can delete it.
    fn find_ground(&self, observed: &Observed) -> Result<(ClusterLocation, String), String> {
        let name = &self.backup.spec.cluster_ref.name;
        let cluster = observed.cluster.as_ref().filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
        let cluster =
            cluster.ok_or_else(|| format!("the PostgresCluster {name} is gone, and with it the way to the store"))?;
        let store =
            observed.store.as_ref().ok_or_else(|| format!("the PostgresCluster {name} has no usable object store"))?;
        let status = self.backup.status.as_ref();
        let system_id = status.and_then(|status| status.system_id.clone()).unwrap_or_default();
        let location = ClusterLocation { store: store.config.clone(), cluster: name.clone(), system_id };
        let id = status.and_then(|status| status.id.as_deref()).unwrap_or_default();
        let expected = location.destination(id);
        if status.and_then(|status| status.destination.as_ref()).is_some_and(|found| *found != expected) {
            return Err(format!("the object store of the PostgresCluster {name} is another one now"));
        }
        let uid = cluster.uid().ok_or_else(|| format!("the PostgresCluster {name} has no UID"))?;
        Ok((location, uid))
    }

    /// The Job belongs to the cluster: what belongs to an object that is being deleted may be deleted with it.
    async fn start_deletion(
        &self,
        observed: &Observed,
        location: ClusterLocation,
        id: String,
        number: usize,
    ) -> Result<Action, BackupError> {
        let (Some(cluster), Some(store)) = (&observed.cluster, &observed.store) else {
            return self.release(None).await;
        };
        let name = self.backup.name_any();
        let config = PruneJobConfig {
            location,
            policy: None,
            pinned: Vec::new(),
            doomed: vec![id],
            damaged: Vec::new(),
            known: Vec::new(),
            ran_for: self.uid.clone(),
        };
        let job = build_store_job(&StoreJob {
            name: render_job_name(&name, "d", &format!("{} {number} {}", self.uid, self.now.wall.as_second() / 60)),
            namespace: &self.namespace,
            app: DELETION_APP,
            owner: controller_reference(&**cluster).ok_or(BackupError::Incomplete("cluster"))?,
            cluster: &config.location.cluster,
            labels: BTreeMap::from([(keys::BACKUP.to_owned(), name)]),
            config: &config,
            store,
            image: &self.context.settings.image,
            placement: &cluster.spec,
            command: "prune",
            deadline_seconds: DEADLINE_SECONDS,
        })?;
        match create_store_job(self.context, &self.namespace, &job).await {
            Ok(()) => {
                let message = "its data is being deleted".to_owned();
                let again = jiff::SignedDuration::from_secs(2);
                self.wait_for_data(&Wait { reason: "DeletingData", message, stalled: false, again }).await
            }
            Err(error) if StoreJobError::is_namespace_terminating(&error) => {
                self.release(Some("the namespace is being deleted")).await
            }
            Err(error) => Err(error.into()),
        }
    }
}

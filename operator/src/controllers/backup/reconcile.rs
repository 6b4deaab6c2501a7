//! One round of a Backup: observe -> decide -> build -> apply -> status.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use pgherd_core::{
    backup::ClusterLocation,
    chain::DEFAULT_MAX_CHAIN,
    quantity::{parse_rate, render_bytes},
};
use pgherd_crds::{
    Backup, BackupSpec, BackupStatus, PostgresCluster,
    names::keys,
    v1alpha1::backup::{BackupMethod, BackupPhase},
};

use super::{
    apply::{apply_account, create_job},
    archive::prove_archive,
    build::{JobInput, build_account, build_job, render_job_name},
    decide::{Decision, Wait, decide, decide_next_look},
    error::BackupError,
    finalize::{has_finalizer, wants_deletion},
    observe::{Observed, find_completed_at, is_unfinished, observe},
    status::{ASKING, Report, apply_status, build_status},
};
use crate::{
    context::{Context, Now},
    jobs::backup::config::{CompressionConfig, IncrementalConfig},
    kubernetes::{events::publish, owner::controller_reference, store::list_backups},
};

/// How often a running Job is looked at for troubles that its own object doesn't show.
pub(super) const WATCH_JOB: Duration = Duration::from_secs(15);
/// How often the primary is asked for the archive.
const ASK_ARCHIVE: Duration = Duration::from_secs(15);

/// The Backup of this round, with what the API server always gives.
pub(super) struct Round<'a> {
    pub(super) context: &'a Context,
    pub(super) backup: &'a Backup,
    pub(super) api: Api<Backup>,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) now: Now,
}

/// Reconciles one Backup.
///
/// # Errors
/// [`BackupError`]; the next round begins anew.
pub async fn reconcile(backup: Arc<Backup>, context: Arc<Context>) -> Result<Action, BackupError> {
    let deleting = backup.metadata.deletion_timestamp.is_some();
    let (wanted, there) = (wants_deletion(&backup), has_finalizer(&backup));
    if deleting && !there && !is_unfinished(&backup) {
        return Ok(Action::await_change());
    }
    if !deleting
        && wanted == there
        && let Some(rest) = find_rest(&backup, &context)
    {
        return Ok(rest);
    }
    if !context.leadership.holds() {
        return Ok(Action::requeue(WATCH_JOB));
    }
    let namespace = backup.namespace().ok_or(BackupError::Incomplete("namespace"))?;
    let uid = backup.uid().ok_or(BackupError::Incomplete("UID"))?;
    let api = Api::namespaced(context.client.clone(), &namespace);
    let round = Round { context: &context, backup: &backup, api, namespace, uid, now: context.clock.now() };
    if deleting {
        return round.finalize().await;
    }
    if wanted != there {
        return round.set_finalizer(wanted).await;
    }
    let observed = observe(&context, &backup, &round.namespace, &round.uid).await?;
    match decide(&observed.facts, round.now.wall) {
        Decision::Wait(wait) => round.wait(&wait).await,
        Decision::Start { attempt, source_pod } => round.start(&observed, attempt, &source_pod).await,
        Decision::Run { source_pod, trouble } => {
            let report = Report::Running { source_pod: &source_pod, trouble: trouble.as_deref() };
            round.publish(&report, false).await?;
            Ok(Action::requeue(WATCH_JOB))
        }
        Decision::Complete(summary) => round.announce(&Report::Completed(&summary)).await,
        Decision::Fail(failure) => {
            if round.publish(&Report::Failed(&failure), true).await? {
                let note = format!("{}: {}", failure.reason, failure.error);
                round.event(EventType::Warning, "BackupFailed", &note).await;
            }
            Ok(Action::await_change())
        }
        Decision::Announce => round.announce(&Report::Archive(None, ASKING)).await,
        Decision::ProveArchive { primary, last_try } => round.prove(&observed, primary.as_deref(), last_try).await,
        Decision::Rest => Ok(Action::await_change()),
    }
}

/// Nothing is left to do now: also of the archive all is known, and the conditions say so. No watch tells of WAL that was not there and
/// has come since.
fn find_rest(backup: &Backup, context: &Context) -> Option<Action> {
    let status = backup.status.as_ref()?;
    match status.phase.unwrap_or_default() {
        BackupPhase::Failed => Some(Action::await_change()),
        BackupPhase::Pending | BackupPhase::Running => None,
        BackupPhase::Completed => match (status.pitr_ready?, status.restorable) {
            (false, Some(true)) => match find_next_look(backup, context) {
                Some(wait) if !wait.is_positive() => None,
                wait => Some(render_wait(wait)),
            },
            _ => Some(Action::await_change()),
        },
    }
}

fn find_next_look(backup: &Backup, context: &Context) -> Option<SignedDuration> {
    let now = context.clock.now();
    let completed_at = backup.status.as_ref().and_then(find_completed_at);
    decide_next_look(completed_at, context.archive_looks.age(&backup.uid()?, now), now.wall)
}

fn render_wait(wait: Option<SignedDuration>) -> Action {
    wait.map_or_else(Action::await_change, |wait| Action::requeue(positive(wait)))
}

impl Round<'_> {
    fn build(&self, report: &Report<'_>) -> BackupStatus {
        let old = self.backup.status.clone().unwrap_or_default();
        build_status(&old, report, self.backup.metadata.generation, self.now.wall)
    }

    pub(super) async fn publish(&self, report: &Report<'_>, guarded: bool) -> Result<bool, BackupError> {
        let status = self.build(report);
        let written = apply_status(&self.api, self.backup, &status, guarded).await?;
        if written {
            self.context.metrics.api_writes.inc();
        }
        Ok(written)
    }

    pub(super) async fn event(&self, type_: EventType, reason: &str, note: &str) {
        self.event_of("Backup", type_, reason, note).await;
    }

    /// Events that differ in nothing but their note are counted as one by their action.
    async fn event_of(&self, action: &str, type_: EventType, reason: &str, note: &str) {
        publish(self.context, &self.backup.object_ref(&()), type_, reason, action, note).await;
    }

    async fn wait(&self, wait: &Wait) -> Result<Action, BackupError> {
        self.publish(&Report::Waiting(wait), false).await?;
        Ok(Action::requeue(positive(wait.again)))
    }

    /// What the Job is told of an incremental backup, if one is wanted: nothing is to be built on a backup that turned out bad.
    fn find_incremental(&self) -> Option<IncrementalConfig> {
        let wanted = self.backup.spec.incremental.as_ref()?;
        let backups = list_backups(&self.context.stores.backups, &self.namespace, &self.backup.spec.cluster_ref.name);
        let bad = backups.iter().filter_map(|other| {
            let status = other.status.as_ref().filter(|status| status.restorable == Some(false))?;
            status.id.clone()
        });
        Some(IncrementalConfig { max_chain: wanted.max_chain.unwrap_or(DEFAULT_MAX_CHAIN), damaged: bad.collect() })
    }

    async fn start(&self, observed: &Observed, attempt: u32, source_pod: &str) -> Result<Action, BackupError> {
        let (Some(cluster), Some(store)) = (&observed.cluster, &observed.store) else {
            return Ok(Action::requeue(WATCH_JOB));
        };
        let owner = controller_reference(self.backup).ok_or(BackupError::Incomplete("name"))?;
        let cluster_owner = controller_reference(&**cluster).ok_or(BackupError::Incomplete("cluster"))?;
        let name = self.backup.name_any();
        let system_id = cluster.status.as_ref().and_then(|status| status.system_id.clone()).unwrap_or_default();
        let incremental = self.find_incremental();
        let local = decide_local(cluster, &self.backup.spec, attempt);
        let job = build_job(&JobInput {
            namespace: &self.namespace,
            backup: &name,
            backup_uid: &self.uid,
            owner,
            schedule: self.backup.labels().get(keys::SCHEDULE).map(String::as_str),
            attempt,
            source_pod,
            compression: find_compression(cluster),
            max_rate: find_max_rate(cluster),
            incremental,
            local,
            identity_secret: store.identity_secret.as_deref(),
            location: ClusterLocation { store: store.config.clone(), cluster: cluster.name_any(), system_id },
            credentials_secret: &store.credentials_secret,
            ca_secret: store.ca_secret.as_deref(),
            image: &self.context.settings.image,
            placement: &cluster.spec,
        })?;
        let account = build_account(&cluster.name_any(), &self.namespace, &cluster_owner);
        apply_account(self.context, &self.namespace, &cluster_owner.uid, &account).await?;
        if !create_job(self.context, &self.namespace, &self.uid, &job).await? {
            let message = format!(
                "a Job {} exists that does not belong to this Backup; delete it, or make a Backup of another name",
                render_job_name(&name, attempt)
            );
            let again = SignedDuration::from_secs(30);
            return self.wait(&Wait { reason: "JobNameTaken", message, stalled: true, again }).await;
        }
        self.publish(&Report::Running { source_pod, trouble: None }, false).await?;
        let source = match local {
            true => format!("has the agent of {source_pod} read its files"),
            false => format!("reads {source_pod}"),
        };
        let note = format!("attempt {attempt} {source} and writes to s3://{}", store.config.bucket);
        self.event_of(&format!("Attempt{attempt}"), EventType::Normal, "BackupStarted", &note).await;
        Ok(Action::requeue(WATCH_JOB))
    }

    /// Says that the backup is complete. The patch comes back as a change, and with it the next step.
    async fn announce(&self, report: &Report<'_>) -> Result<Action, BackupError> {
        let status = self.build(report);
        if apply_status(&self.api, self.backup, &status, true).await? {
            self.context.metrics.api_writes.inc();
            self.event(EventType::Normal, "BackupCompleted", &render_note(&status)).await;
        }
        Ok(Action::requeue(ASK_ARCHIVE))
    }

    async fn prove(&self, observed: &Observed, primary: Option<&str>, last_try: bool) -> Result<Action, BackupError> {
        let status = self.backup.status.clone().unwrap_or_default();
        let proof = prove_archive(self.context, observed.cluster.as_deref(), primary, &status, last_try).await;
        self.context.archive_looks.note(&self.uid, self.now);
        // Only a second look that finds something is worth a write.
        if status.pitr_ready == Some(false) && proof.ready != Some(true) {
            return Ok(render_wait(find_next_look(self.backup, self.context)));
        }
        let written = self.publish(&Report::Archive(proof.ready, &proof.message), true).await?;
        if written && proof.ready == Some(false) {
            self.event(EventType::Warning, "WalNotArchived", &proof.message).await;
        }
        Ok(match proof.ready {
            None => Action::requeue(ASK_ARCHIVE),
            Some(false) => render_wait(find_next_look(self.backup, self.context)),
            Some(true) => {
                self.context.archive_looks.forget(&self.uid);
                Action::await_change()
            }
        })
    }
}

/// What the Job is told of the levels of compression.
fn find_compression(cluster: &PostgresCluster) -> Option<CompressionConfig> {
    let compression = cluster.spec.backup.as_ref()?.compression?;
    Some(CompressionConfig { min_level: compression.min_level, max_level: compression.max_level })
}

/// Kilobytes per second. What is no rate was refused with the rest of the spec.
fn find_max_rate(cluster: &PostgresCluster) -> Option<u32> {
    parse_rate(cluster.spec.backup.as_ref()?.max_rate.as_deref()?).ok()
}

/// Whether the agent beside the instance reads its files. An incremental backup is the server's to make; and what did not come to a
/// good end this way, for whatever reason, goes the other way.
pub(super) fn decide_local(cluster: &PostgresCluster, backup: &BackupSpec, attempt: u32) -> bool {
    let of_cluster = || cluster.spec.backup.as_ref().and_then(|backup| backup.method);
    let method = backup.method.or_else(of_cluster).unwrap_or_default();
    method == BackupMethod::Local && backup.incremental.is_none() && attempt == 1
}

fn render_note(status: &BackupStatus) -> String {
    let stored = status.stored_bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(render_bytes).unwrap_or_default();
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!(
        "{} read, {stored} stored in {} at {} as {}",
        text(&status.size),
        text(&status.duration),
        text(&status.rate),
        text(&status.id)
    )
}

pub(super) fn positive(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default().max(Duration::from_millis(200))
}

//! What becomes of a Backup: wait, start an attempt, complete, fail. Pure: everything seen is an argument, `now` too.

use jiff::{SignedDuration, Timestamp};
use pgherd_crds::v1alpha1::{backup::BackupPhase, backup_schedule::BackupTarget};

use crate::jobs::backup::outcome::{BackupFailure, BackupSummary};

/// A backup is tried this often, each time from another source where there is one.
pub const MAX_ATTEMPTS: u32 = 3;
/// How long the archive may take to receive the WAL up to the backup's end.
const ARCHIVE_PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// What was not there by then may come yet: it is looked for again this often, for so long after the backup was complete.
const LOOK_SLOWLY: SignedDuration = SignedDuration::from_mins(10);
const LOOK_FOR: SignedDuration = SignedDuration::from_hours(24);
/// The pause before the second and the third attempt: long enough for a failover.
const RETRY_PAUSES: [SignedDuration; 2] = [SignedDuration::from_secs(10), SignedDuration::from_secs(30)];
/// How soon something that no watch reports is looked at again.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct BackupFacts {
    /// The phase in status.
    pub phase: BackupPhase,
    /// The conditions say already that it is completed.
    pub announced: bool,
    /// `status.pitrReady`.
    pub pitr_ready: Option<bool>,
    /// When the backup was complete, if it is.
    pub completed_at: Option<Timestamp>,
    /// Which instance the user wants read.
    pub target: BackupTarget,
    /// The cluster that the Backup names.
    pub cluster_name: String,
    /// The cluster; None when there is none of that name.
    pub cluster: Option<ClusterFacts>,
    /// An older Backup of the cluster that isn't finished.
    pub older_unfinished: Option<String>,
    /// A Job under this Backup's Job name that belongs to somebody else.
    pub foreign_job: Option<String>,
    /// The attempts so far, in their order.
    pub attempts: Vec<AttemptFacts>,
}

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// It is being deleted.
    pub deleting: bool,
    /// The spec has an object store.
    pub has_store: bool,
    /// Why the spec can't be used, if so.
    pub invalid: Option<String>,
    /// The name of a Secret that the store needs and that doesn't exist.
    pub missing_secret: Option<String>,
    /// The database system identifier is known.
    pub has_system_id: bool,
    /// Its pods.
    pub pods: Vec<PodFacts>,
}

/// A pod of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// The role label.
    pub role: PodRole,
    /// The Ready condition is true and the pod isn't being deleted.
    pub ready: bool,
}

/// The role label of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// `primary`.
    Primary,
    /// `replica`.
    Replica,
    /// No label, or another value.
    Unknown,
}

/// One Job.
#[derive(Clone, Debug)]
pub struct AttemptFacts {
    /// From 1.
    pub number: u32,
    /// The pod that it reads.
    pub source_pod: String,
    /// How it goes.
    pub state: AttemptState,
}

/// How an attempt goes.
#[derive(Clone, Debug)]
pub enum AttemptState {
    /// The Job runs; what keeps its pod from starting, if anything does.
    Active {
        /// Such as `ImagePullBackOff: …`.
        trouble: Option<String>,
    },
    /// The Job succeeded.
    Succeeded(BackupSummary),
    /// The Job failed.
    Failed {
        /// Why.
        failure: BackupFailure,
        /// When.
        at: Timestamp,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing can be done now.
    Wait(Wait),
    /// Start this attempt.
    Start {
        /// From 1.
        attempt: u32,
        /// The pod to read.
        source_pod: String,
    },
    /// The Job runs.
    Run {
        /// The pod that it reads.
        source_pod: String,
        /// What keeps the Job's pod from starting.
        trouble: Option<String>,
    },
    /// The Job succeeded and status doesn't say so yet.
    Complete(Box<BackupSummary>),
    /// Give up.
    Fail(BackupFailure),
    /// Its process said in status that it is complete: the conditions have yet to.
    Announce,
    /// Complete: ask the primary whether the archive has the WAL up to the backup's end.
    ProveArchive {
        /// The primary's pod; None while there is none.
        primary: Option<String>,
        /// No more time: what isn't proven now is reported as not ready.
        last_try: bool,
    },
    /// Finished.
    Rest,
}

/// Why nothing can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// One word for the condition.
    pub reason: &'static str,
    /// One sentence: what is missing, and what to do about it if it is the user's part.
    pub message: String,
    /// It goes on only when somebody changes something.
    pub stalled: bool,
    /// Look again after this long, if nothing was reported before.
    pub again: SignedDuration,
}

/// Decides. See [`Decision`].
#[must_use]
pub fn decide(facts: &BackupFacts, now: Timestamp) -> Decision {
    match facts.phase {
        BackupPhase::Failed => Decision::Rest,
        BackupPhase::Completed => decide_archive(facts, now),
        BackupPhase::Pending | BackupPhase::Running => match facts.attempts.last() {
            None => decide_start(facts, 1),
            Some(last) => match &last.state {
                AttemptState::Active { trouble } => {
                    Decision::Run { source_pod: last.source_pod.clone(), trouble: trouble.clone() }
                }
                AttemptState::Succeeded(summary) => Decision::Complete(Box::new(summary.clone())),
                AttemptState::Failed { failure, at } => decide_retry(facts, last.number, failure, *at, now),
            },
        },
    }
}

fn decide_archive(facts: &BackupFacts, now: Timestamp) -> Decision {
    if facts.pitr_ready == Some(true) {
        return Decision::Rest;
    }
    if !facts.announced {
        return Decision::Announce;
    }
    let primary = facts.cluster.as_ref().and_then(|cluster| {
        cluster.pods.iter().find(|pod| pod.role == PodRole::Primary && pod.ready).map(|pod| pod.name.clone())
    });
    let waited = facts.completed_at.map_or(ARCHIVE_PATIENCE, |at| now.duration_since(at));
    Decision::ProveArchive { primary, last_try: facts.cluster.is_none() || waited >= ARCHIVE_PATIENCE }
}

/// How long it takes until the archive of a backup whose WAL was not there is looked at again; none: it is not. `since_look` is the time since
/// this operator last did: what came while none was there, its first look tells.
#[must_use]
pub fn decide_next_look(
    completed_at: Option<Timestamp>,
    since_look: Option<SignedDuration>,
    now: Timestamp,
) -> Option<SignedDuration> {
    let Some(since) = since_look else { return Some(SignedDuration::ZERO) };
    let is_young = completed_at.is_some_and(|at| now.duration_since(at).abs() < LOOK_FOR);
    is_young.then(|| (LOOK_SLOWLY - since).max(SignedDuration::ZERO))
}

fn decide_retry(facts: &BackupFacts, number: u32, failure: &BackupFailure, at: Timestamp, now: Timestamp) -> Decision {
    if !failure.retry {
        return Decision::Fail(failure.clone());
    }
    if number >= MAX_ATTEMPTS {
        let error = format!("{number} attempts failed, the last one with: {}", failure.error);
        return Decision::Fail(BackupFailure { error, ..failure.clone() });
    }
    let pause = RETRY_PAUSES.get(number.saturating_sub(1) as usize).copied().unwrap_or(LOOK_AGAIN);
    let left = pause - now.duration_since(at);
    if left > SignedDuration::ZERO {
        let message = format!("attempt {number} of {MAX_ATTEMPTS} failed: {}", failure.error);
        return Decision::Wait(Wait { reason: "Retrying", message, stalled: false, again: left });
    }
    decide_start(facts, number + 1)
}

fn decide_start(facts: &BackupFacts, attempt: u32) -> Decision {
    if let Some(job) = &facts.foreign_job {
        let message = format!("the Job {job} belongs to another object and is in the way; delete it if it stays");
        return wait("JobNameTaken", message, false);
    }
    let name = &facts.cluster_name;
    let Some(cluster) = &facts.cluster else {
        let message = format!("there is no PostgresCluster {name} in this namespace; spec.clusterRef.name names it");
        return wait("ClusterNotFound", message, true);
    };
    if cluster.deleting {
        return wait("ClusterDeleted", format!("the PostgresCluster {name} is being deleted"), true);
    }
    if !cluster.has_store {
        let message = format!(
            "the PostgresCluster {name} has no spec.backup.objectStore: add it, so that there is a place for backups"
        );
        return wait("NoObjectStore", message, true);
    }
    if let Some(why) = &cluster.invalid {
        return wait("ClusterInvalid", format!("the spec of the PostgresCluster {name} cannot be used: {why}"), true);
    }
    if let Some(secret) = &cluster.missing_secret {
        let message =
            format!("there is no Secret {secret}, which spec.backup.objectStore of the PostgresCluster {name} names");
        return wait("SecretNotFound", message, true);
    }
    if let Some(older) = &facts.older_unfinished {
        return wait(
            "WaitingForBackup",
            format!("the older Backup {older} of the same cluster is not finished"),
            false,
        );
    }
    let has_primary = cluster.pods.iter().any(|pod| pod.role == PodRole::Primary && pod.ready);
    if !has_primary || !cluster.has_system_id {
        return wait("NoPrimary", format!("the PostgresCluster {name} has no ready primary yet"), false);
    }
    match decide_source(&cluster.pods, facts.target, &facts.attempts) {
        Some(source_pod) => Decision::Start { attempt, source_pod },
        None => wait("NoSource", format!("no instance of the PostgresCluster {name} is ready to be read"), false),
    }
}

fn wait(reason: &'static str, message: String, stalled: bool) -> Decision {
    let again = if stalled { LOOK_AGAIN } else { SignedDuration::from_secs(5) };
    Decision::Wait(Wait { reason, message, stalled, again })
}

/// The pod to read: with `PreferReplica` a ready replica, else the primary; one that no attempt has read comes first.
/// Ties go by name.
#[must_use]
pub fn decide_source(pods: &[PodFacts], target: BackupTarget, attempts: &[AttemptFacts]) -> Option<String> {
    let tried = |pod: &PodFacts| attempts.iter().filter(|attempt| attempt.source_pod == pod.name).count();
    pods.iter()
        .filter(|pod| pod.ready)
        .filter(|pod| match target {
            BackupTarget::Primary => pod.role == PodRole::Primary,
            BackupTarget::PreferReplica => pod.role != PodRole::Unknown,
        })
        .min_by_key(|pod| (tried(pod), pod.role == PodRole::Primary, pod.name.clone()))
        .map(|pod| pod.name.clone())
}

//! The status of a Backup from what was decided, and the patch from the published one to it. The Job's process patches
//! the numbers of its progress itself; conditions and the end are the controller's. Pure but for the one patch.

use std::time::Duration;

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use pgherd_crds::{
    Backup, BackupStatus,
    v1alpha1::{
        backup::BackupPhase,
        conditions::{COMPLETED, READY, RECONCILING, STALLED, VERIFIED},
        verification::BackupVerification,
    },
};
use serde_json::{Map, Value, json};

use super::{
    conditions::{Said, build_conditions, render_seconds},
    decide::Wait,
    error::BackupError,
};
use crate::jobs::{
    backup::{
        outcome::{BackupFailure, BackupSummary},
        progress::{build_completed_status, render_duration},
    },
    verification::outcome::{VerifyFailure, VerifySummary},
};

/// The message of a completed Backup until the archive is known.
pub const ASKING: &str = "restorable; the primary is being asked whether the archive has the WAL up to its end";

/// The reason of a Backup without data.
pub const PRUNED: &str = "Pruned";
/// Its message.
const NO_DATA: &str = "not restorable: its data is not in the store any more";

/// What there is to say about a Backup.
#[derive(Clone, Debug)]
pub enum Report<'a> {
    /// It waits.
    Waiting(&'a Wait),
    /// A Job runs; with what keeps its pod from starting.
    Running {
        /// The pod that is read.
        source_pod: &'a str,
        /// Such as `ImagePullBackOff: …`.
        trouble: Option<&'a str>,
    },
    /// It is in the store.
    Completed(&'a BackupSummary),
    /// It is in the store; this is known of the WAL after it. None: not known yet.
    Archive(Option<bool>, &'a str),
    /// It was given up.
    Failed(&'a BackupFailure),
    /// Its data is not in the store any more.
    Pruned,
    /// It was restored for a trial at this time, and is good.
    Verified(&'a VerifySummary, Timestamp),
    /// It was restored for a trial, and is not good.
    NotVerified(&'a VerifyFailure),
    /// The object is being deleted and waits for its data to go.
    Deleting(&'a Wait),
}

/// The status to publish.
#[must_use]
pub fn build_status(old: &BackupStatus, report: &Report<'_>, generation: Option<i64>, now: Timestamp) -> BackupStatus {
    let mut status = old.clone();
    status.observed_generation = generation;
    match report {
        Report::Waiting(wait) => {
            if status.phase == Some(BackupPhase::Running) {
                forget_progress(&mut status);
            }
            status.phase = Some(BackupPhase::Pending);
            set_conditions(&mut status, [false, !wait.stalled, wait.stalled, false], wait.reason, &wait.message, now);
        }
        Report::Running { source_pod, trouble } => {
            if status.source_pod.as_deref() != Some(*source_pod) {
                forget_progress(&mut status);
            }
            status.source_pod = Some((*source_pod).to_owned());
            let reading = format!("reads {source_pod}");
            let (reason, message) =
                trouble.map_or(("Running", reading.as_str()), |trouble| ("JobNotStarting", trouble));
            // What the process itself reports is further than what the Job's object shows.
            if status.phase.is_none() || trouble.is_some() {
                status.phase = Some(BackupPhase::Pending);
            }
            set_conditions(&mut status, [false, true, trouble.is_some(), false], reason, message, now);
        }
        Report::Completed(summary) => {
            let source_pod = status.source_pod.take();
            status = BackupStatus { source_pod, conditions: status.conditions, ..build_completed_status(summary) };
            status.observed_generation = generation;
            set_conditions(&mut status, [true, false, false, true], "Completed", ASKING, now);
        }
        Report::Archive(ready, message) => {
            status.pitr_ready = *ready;
            set_conditions(&mut status, [true, false, false, true], "Completed", message, now);
        }
        Report::Failed(failure) => {
            status.phase = Some(BackupPhase::Failed);
            status.error = Some(failure.error.clone());
            status.eta = None;
            status.restorable = Some(false);
            status.completed_at = Some(render_seconds(now));
            set_conditions(&mut status, [false, false, true, false], &failure.reason, &failure.error, now);
        }
        Report::Pruned => {
            (status.restorable, status.pitr_ready) = (Some(false), Some(false));
            set_conditions(&mut status, [false, false, true, false], PRUNED, NO_DATA, now);
        }
        Report::Verified(summary, at) => {
            let took = render_duration(Duration::from_millis(summary.took_ms));
            status.verified_at = Some(render_seconds(*at));
            status.verification = Some(BackupVerification {
                duration: took.clone(),
                files: i64::try_from(summary.files).unwrap_or(i64::MAX),
                replayed_lsn: summary.replayed_lsn.clone(),
                amcheck: summary.amcheck.clone(),
                statements: i64::try_from(summary.statements).unwrap_or(i64::MAX),
            });
            let message = format!("restored and found good in {took}");
            // An earlier look condemned it.
            if status.restorable == Some(false) {
                status.restorable = Some(true);
                set_conditions(&mut status, [true, false, false, true], "Completed", &message, now);
            }
            say(&mut status, &[Said { type_: VERIFIED, holds: true, reason: "Verified", message: &message }], now);
        }
        Report::NotVerified(failure) => {
            let (reason, message) = (failure.reason.as_str(), failure.error.as_str());
            if failure.unusable {
                status.restorable = Some(false);
                set_conditions(&mut status, [false, false, true, false], reason, message, now);
            }
            say(&mut status, &[Said { type_: VERIFIED, holds: false, reason, message }], now);
        }
        Report::Deleting(wait) => {
            let completed = status.phase == Some(BackupPhase::Completed);
            let holds = [false, !wait.stalled, wait.stalled, completed];
            set_conditions(&mut status, holds, wait.reason, &wait.message, now);
        }
    }
    status
}

/// `holds`: Ready, Reconciling, Stalled, Completed.
fn set_conditions(status: &mut BackupStatus, holds: [bool; 4], reason: &str, message: &str, now: Timestamp) {
    let said: Vec<Said<'_>> = [READY, RECONCILING, STALLED, COMPLETED]
        .into_iter()
        .zip(holds)
        .map(|(type_, holds)| Said { type_, holds, reason, message })
        .collect();
    say(status, &said, now);
}

/// Conditions of other types stay as they are.
fn say(status: &mut BackupStatus, said: &[Said<'_>], now: Timestamp) {
    let mut conditions = build_conditions(&status.conditions, said, status.observed_generation, now);
    let others = status.conditions.iter().filter(|old| said.iter().all(|said| said.type_ != old.type_));
    conditions.extend(others.cloned());
    status.conditions = conditions;
}

/// What the attempt before had read says nothing about the next one.
fn forget_progress(status: &mut BackupStatus) {
    status.bytes_done = None;
    status.bytes_total = None;
    status.stored_bytes = None;
    status.progress = None;
    status.size = None;
    status.rate = None;
    status.duration = None;
    status.eta = None;
    status.started_at = None;
    status.phase = Some(BackupPhase::Pending);
}

/// A JSON merge patch with the fields that differ; None if none does.
#[must_use]
pub fn build_patch<S: serde::Serialize>(old: &S, new: &S) -> Option<Value> {
    let object = |status: &S| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut old, new) = (object(old), object(new));
    let mut patch = Map::new();
    for (key, value) in new {
        if old.remove(&key).as_ref() != Some(&value) {
            patch.insert(key, value);
        }
    }
    patch.extend(old.into_iter().map(|(key, _)| (key, Value::Null)));
    (!patch.is_empty()).then(|| json!({ "status": patch }))
}

/// Publishes the status if it differs from the published one; true if it was written. With `guarded` the patch is
/// refused (and the reconciliation repeated) if the Backup was changed since it was read, so that an end is reported once.
///
/// # Errors
/// [`BackupError::PatchStatus`].
pub async fn apply_status(
    api: &Api<Backup>,
    backup: &Backup,
    new: &BackupStatus,
    guarded: bool,
) -> Result<bool, BackupError> {
    let old = backup.status.clone().unwrap_or_default();
    let Some(mut patch) = build_patch(&old, new) else { return Ok(false) };
    if guarded {
        patch["metadata"] = json!({ "resourceVersion": backup.resource_version(), "uid": backup.uid() });
    }
    api.patch_status(&backup.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(BackupError::PatchStatus)?;
    Ok(true)
}

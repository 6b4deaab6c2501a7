//! The status of a BackupSchedule. Pure but for the one patch.

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use pgherd_crds::{
    BackupSchedule, BackupScheduleStatus,
    v1alpha1::conditions::{READY, STALLED, SUSPENDED},
};

use super::{
    care::Care,
    decide::{Plan, ScheduleFacts, find_last_success},
    error::ScheduleControllerError,
};
use crate::controllers::backup::{
    conditions::{Said, build_conditions, render_seconds},
    status::build_patch,
};

/// The status to publish once the plan is carried out.
#[must_use]
pub fn build_status(
    old: &BackupScheduleStatus,
    facts: &ScheduleFacts,
    plan: &Plan,
    care: &Care,
    generation: Option<i64>,
    now: Timestamp,
) -> BackupScheduleStatus {
    let (reason, message) = describe(facts, plan);
    let said = |type_, holds| Said { type_, holds, reason, message: &message };
    let stalled = plan.stalled.is_some();
    let mut conditions = vec![said(READY, !stalled), said(STALLED, stalled), said(SUSPENDED, facts.suspended)];
    conditions.extend(care.verdicts.iter().map(|verdict| Said {
        type_: verdict.type_,
        holds: verdict.holds,
        reason: &verdict.reason,
        message: &verdict.message,
    }));
    BackupScheduleStatus {
        observed_generation: generation,
        conditions: build_conditions(&old.conditions, &conditions, generation, now),
        last_schedule_time: plan.create.map(render_seconds).or_else(|| old.last_schedule_time.clone()),
        next_schedule_time: plan.next.map(render_seconds),
        last_successful_backup: find_last_success(&facts.backups)
            .map(|backup| backup.name.clone())
            .or_else(|| old.last_successful_backup.clone()),
        retention: care.retention.clone(),
        verification: care.verification.clone(),
    }
}

fn describe(facts: &ScheduleFacts, plan: &Plan) -> (&'static str, String) {
    match (&plan.stalled, &plan.left_out, plan.next) {
        (Some((reason, message)), _, _) => (reason, message.clone()),
        (None, _, _) if facts.suspended => ("Suspended", "spec.suspend is true: no backup is made".to_owned()),
        (None, Some(message), _) => ("RunLeftOut", message.clone()),
        (None, None, Some(next)) => ("Scheduled", format!("the next backup is due at {}", render_seconds(next))),
        (None, None, None) => ("Scheduled", "no further backup is due".to_owned()),
    }
}

/// Publishes the status if it differs from the published one; true if it was written.
///
/// # Errors
/// [`ScheduleControllerError::PatchStatus`].
pub async fn apply_status(
    api: &Api<BackupSchedule>,
    schedule: &BackupSchedule,
    new: &BackupScheduleStatus,
) -> Result<bool, ScheduleControllerError> {
    let old = schedule.status.clone().unwrap_or_default();
    let Some(patch) = build_patch(&old, new) else { return Ok(false) };
    api.patch_status(&schedule.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(ScheduleControllerError::PatchStatus)?;
    Ok(true)
}

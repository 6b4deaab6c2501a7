//! One round of a BackupSchedule: observe -> decide -> build -> apply -> status.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::PostParams,
    runtime::{controller::Action, events::EventType},
};
use pgherd_crds::{
    Backup, BackupSchedule, BackupScheduleStatus,
    names::keys,
    v1alpha1::conditions::{RETENTION_HEALTHY, VERIFIED},
};

use super::{
    apply::delete_backup,
    build::build_backup,
    care::{Care, Verdict},
    decide::{KnownState, Plan, ScheduleFacts, decide},
    error::ScheduleControllerError,
    ground::observe_ground,
    observe::observe,
    retention_run::care_for_retention,
    status::{apply_status, build_status},
    verification_run::care_for_verification,
};
use crate::{
    context::Context,
    kubernetes::{events::publish, store},
};

/// A timer may be this far ahead of the wall clock, which can be set; then it is looked again.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// How soon what is under way or missing is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Timers have no better resolution, and a run must not be looked for before its time.
const AFTER_TIME: Duration = Duration::from_millis(50);

/// Reconciles one BackupSchedule.
///
/// # Errors
/// [`ScheduleControllerError`]; the next round begins anew.
pub async fn reconcile(
    schedule: Arc<BackupSchedule>,
    context: Arc<Context>,
) -> Result<Action, ScheduleControllerError> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if !context.leadership.holds() {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let namespace = schedule.namespace().ok_or(ScheduleControllerError::Incomplete("namespace"))?;
    let now = context.clock.now().wall;
    let facts = observe(&context, &schedule, &namespace);
    let plan = decide(&facts, now);
    if let Some(scheduled) = plan.create {
        create_backup(&context, &schedule, &namespace, scheduled, plan.missed).await?;
    }
    let old = schedule.status.clone().unwrap_or_default();
    // What goes wrong here must not keep the status from being told, nor backups from being made.
    let (care, failed) = match care_for(&context, &schedule, &namespace, &facts, now).await {
        Ok(care) => (care, None),
        Err(error) => (published_care(&old), Some(error)),
    };
    let status = build_status(&old, &facts, &plan, &care, schedule.metadata.generation, now);
    let api = Api::namespaced(context.client.clone(), &namespace);
    if apply_status(&api, &schedule, &status).await? {
        context.metrics.api_writes.inc();
        if let Some(message) = &plan.left_out
            && old.conditions.iter().all(|condition| condition.message != *message)
        {
            publish(&context, &schedule.object_ref(&()), EventType::Warning, "RunLeftOut", "Schedule", message).await;
        }
        for Verdict { type_, holds, reason, message } in &care.news {
            let kind = if *holds { EventType::Normal } else { EventType::Warning };
            publish(&context, &schedule.object_ref(&()), kind, reason, type_, message).await;
        }
    }
    delete_backups(&context, &schedule, &namespace, &plan).await?;
    failed.map_or(Ok(()), Err)?;
    let wake = decide_wake(&facts, &plan, &care.again, context.clock.now().wall);
    Ok(wake.map_or_else(Action::await_change, Action::requeue))
}

/// Retention and verification.
async fn care_for(
    context: &Context,
    schedule: &BackupSchedule,
    namespace: &str,
    facts: &ScheduleFacts,
    now: Timestamp,
) -> Result<Care, ScheduleControllerError> {
    let ground = observe_ground(context, schedule, namespace);
    let mut care = care_for_verification(context, schedule, facts, ground.as_ref(), now).await?;
    let Care { retention, verification: _, verdicts, news, again } =
        care_for_retention(context, schedule, facts, ground.as_ref(), now).await?;
    care.retention = retention;
    care.verdicts.extend(verdicts);
    care.news.extend(news);
    care.again.extend(again);
    Ok(care)
}

/// What is published already.
fn published_care(old: &BackupScheduleStatus) -> Care {
    let verdict = |type_| Verdict::published(type_, &old.conditions);
    Care {
        retention: old.retention.clone(),
        verification: old.verification.clone(),
        verdicts: [RETENTION_HEALTHY, VERIFIED].into_iter().filter_map(verdict).collect(),
        ..Care::default()
    }
}

/// Wakes at the next run. The stores may lag behind the change that led here, therefore what can change without the
/// schedule is looked at again. A schedule that can't be read waits for its next version alone.
pub(super) fn decide_wake(facts: &ScheduleFacts, plan: &Plan, care: &[Timestamp], now: Timestamp) -> Option<Duration> {
    let until = |next: Timestamp| {
        let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        (left + AFTER_TIME).min(LONGEST_SLEEP)
    };
    let until_next = plan.next.map(until).into_iter().chain(care.iter().copied().map(until));
    let lagging = (facts.schedule.is_ok() && facts.blocked.is_some() && !facts.suspended)
        || facts.backups.iter().any(|backup| backup.state == KnownState::Unfinished);
    until_next.chain(lagging.then_some(LOOK_AGAIN)).min()
}

async fn create_backup(
    context: &Context,
    schedule: &BackupSchedule,
    namespace: &str,
    scheduled: Timestamp,
    missed: u32,
) -> Result<(), ScheduleControllerError> {
    let backup = build_backup(schedule, namespace, scheduled);
    let name = backup.name_any();
    let api: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    context.metrics.api_writes.inc();
    match api.create(&PostParams::default(), &backup).await {
        Ok(_) => {
            let late = if missed == 0 {
                String::new()
            } else {
                format!("; {missed} earlier runs were missed and are left out")
            };
            let note = format!("made the Backup {name} for the run of {scheduled}{late}");
            publish(context, &schedule.object_ref(&()), EventType::Normal, "BackupCreated", "Schedule", &note).await;
            Ok(())
        }
        // Made in an earlier round whose status patch was lost, or not seen yet.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(source) => Err(ScheduleControllerError::CreateBackup { name, source }),
    }
}

/// Deletes objects only: what is in the store stays.
async fn delete_backups(
    context: &Context,
    schedule: &BackupSchedule,
    namespace: &str,
    plan: &Plan,
) -> Result<(), ScheduleControllerError> {
    for name in &plan.delete {
        let Some(backup) = store::get(&context.stores.backups, namespace, name) else { continue };
        if backup.labels().get(keys::SCHEDULE) == Some(&schedule.name_any()) {
            delete_backup(context, namespace, &backup).await?;
        }
    }
    Ok(())
}

//! Carries out what [`super::retention`] decides: makes the Job, and has the Backup objects follow what the store has.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::events::EventType};
use pgherd_crds::{
    Backup, BackupSchedule,
    names::keys,
    v1alpha1::{backup_schedule::RetentionStatus, conditions::RETENTION_HEALTHY},
};

use super::{
    apply::{delete_backup, mark_backup},
    care::{Care, Verdict, WATCH_RUN, later},
    decide::ScheduleFacts,
    error::ScheduleControllerError,
    ground::Ground,
    retention::{Conclusion, RetentionFacts, RetentionStep, decide_retention, parse_policy},
};
use crate::{
    context::Context,
    controllers::{
        backup::status::Report,
        store_jobs::{
            RETENTION_APP,
            build::{StoreJob, build_store_job, create_store_job, render_job_name},
            observe::{Whose, observe_last_run},
        },
    },
    jobs::prune::config::PruneJobConfig,
    kubernetes::{events::publish, owner::controller_reference, store},
};

/// A run that takes longer is given up: six hours.
const DEADLINE_SECONDS: i64 = 6 * 3600;

/// One round for retention.
///
/// # Errors
/// [`ScheduleControllerError`]; the next round begins anew.
pub(super) async fn care_for_retention(
    context: &Context,
    schedule: &BackupSchedule,
    facts: &ScheduleFacts,
    ground: Option<&Ground>,
    now: Timestamp,
) -> Result<Care, ScheduleControllerError> {
    let published = schedule.status.clone().unwrap_or_default();
    let retention = published.retention.unwrap_or_default();
    let namespace = schedule.namespace().unwrap_or_default();
    let uid = schedule.uid().unwrap_or_default();
    let whose = Whose { namespace: &namespace, app: RETENTION_APP, owner_uid: &uid, label: None };
    let seen = RetentionFacts {
        policy: parse_policy(schedule.spec.retention.as_ref()),
        paused: facts.suspended || facts.blocked.is_some() || ground.is_none(),
        newest: ground.and_then(|ground| ground.newest_of(&schedule.name_any())),
        run: observe_last_run(context, whose, retention.job.as_deref()).await?,
        published: retention.clone(),
    };
    let condition = Verdict::published(RETENTION_HEALTHY, &published.conditions);
    let shown = |status: RetentionStatus| (status != RetentionStatus::default()).then_some(status);
    let mut care = Care { retention: shown(retention), ..Care::default() };
    match decide_retention(&seen, now) {
        RetentionStep::Off => care.retention = None,
        RetentionStep::Refuse(message) => {
            care.verdicts.push(Verdict::refused(RETENTION_HEALTHY, "InvalidRetention", message));
        }
        RetentionStep::Rest(again) => {
            care.verdicts.extend(condition);
            care.again.extend(again);
        }
        RetentionStep::Wait(trouble) => {
            let stuck = trouble.map(|message| Verdict::refused(RETENTION_HEALTHY, "JobNotStarting", message));
            care.verdicts.extend(stuck.or(condition));
            care.again.push(later(now, WATCH_RUN));
        }
        RetentionStep::Start { ran_for, run } => {
            if let Some(ground) = ground {
                start(context, schedule, facts, ground, &ran_for, &run).await?;
            }
            care.verdicts.extend(condition);
            care.again.push(later(now, WATCH_RUN));
        }
        RetentionStep::Conclude(conclusion) => {
            let Conclusion { status, gone, verdict } = *conclusion;
            if let Some(ground) = ground {
                follow_store(context, facts, ground, &gone, now).await?;
            }
            care.again.push(later(now, WATCH_RUN));
            let deleted = !status.deleted.is_empty();
            care.retention = Some(status);
            if deleted || !verdict.holds {
                care.news.push(verdict.clone());
            }
            care.verdicts.push(verdict);
        }
    }
    Ok(care)
}

async fn start(
    context: &Context,
    schedule: &BackupSchedule,
    facts: &ScheduleFacts,
    ground: &Ground,
    ran_for: &str,
    run: &str,
) -> Result<(), ScheduleControllerError> {
    let name = schedule.name_any();
    let Ok(Some(policy)) = parse_policy(schedule.spec.retention.as_ref()) else { return Ok(()) };
    let config = PruneJobConfig {
        location: ground.location.clone(),
        policy: Some(policy.into()),
        pinned: ground.list_pinned(context, &name, &facts.pinned),
        doomed: Vec::new(),
        damaged: ground.list_damaged(),
        known: ground.list_known(),
        ran_for: ran_for.to_owned(),
    };
    let owner = controller_reference(schedule).ok_or(ScheduleControllerError::Incomplete("name"))?;
    let job = build_store_job(&StoreJob {
        name: render_job_name(&name, "r", &format!("{} {run}", owner.uid)),
        namespace: &ground.namespace,
        app: RETENTION_APP,
        owner,
        cluster: &ground.location.cluster,
        labels: BTreeMap::from([(keys::SCHEDULE.to_owned(), name)]),
        config: &config,
        store: &ground.store,
        image: &context.settings.image,
        placement: &ground.cluster.spec,
        command: "prune",
        deadline_seconds: DEADLINE_SECONDS,
    })?;
    create_store_job(context, &ground.namespace, &job).await?;
    Ok(())
}

/// A Backup without data goes if a schedule made it; else its status says that it cannot be restored any more.
async fn follow_store(
    context: &Context,
    facts: &ScheduleFacts,
    ground: &Ground,
    gone: &[String],
    now: Timestamp,
) -> Result<(), ScheduleControllerError> {
    for backup in &ground.backups {
        if !ground.id_of(backup).is_some_and(|id| gone.iter().any(|gone| gone == id)) {
            continue;
        }
        let name = backup.name_any();
        if backup.labels().contains_key(keys::SCHEDULE) && !facts.pinned.contains(&name) {
            delete_backup(context, &ground.namespace, backup).await?;
        } else {
            mark_pruned(context, &ground.namespace, backup, now).await?;
        }
    }
    Ok(())
}

async fn mark_pruned(
    context: &Context,
    namespace: &str,
    backup: &Backup,
    now: Timestamp,
) -> Result<(), ScheduleControllerError> {
    // The stores may lag: what is written is built on what there is.
    let Some(fresh) = store::get(&context.stores.backups, namespace, &backup.name_any()) else { return Ok(()) };
    if mark_backup(context, namespace, &fresh, &Report::Pruned, now).await? {
        let note = "its data is not in the store any more";
        publish(context, &fresh.object_ref(&()), EventType::Warning, "Pruned", "Retention", note).await;
    }
    Ok(())
}

//! Carries out what [`super::verification`] decides: makes the Job, and tells the Backup what was found.

use jiff::Timestamp;
use kube::ResourceExt;
use pgherd_core::backup::BackupLocation;
use pgherd_crds::{
    Backup, BackupSchedule,
    v1alpha1::{conditions::VERIFIED, verification::VerificationStatus},
};

use super::{
    apply::mark_backup,
    care::{Care, Verdict, WATCH_RUN, later, parse_time},
    decide::ScheduleFacts,
    error::ScheduleControllerError,
    ground::Ground,
    verification::{Conclusion, Finding, VerificationFacts, VerificationStep, decide_verification, parse_every},
};
use crate::{
    context::Context,
    controllers::{
        backup::status::Report,
        store_jobs::{
            VERIFICATION_APP,
            build::{create_store_job, render_job_name},
            observe::{Whose, observe_last_run},
            trial::{DATA, SOCKETS, TrialJob, build_trial_job},
        },
    },
    jobs::verification::config::VerifyJobConfig,
    kubernetes::{owner::controller_reference, store},
};

/// The parameter that replaying may depend on.
const PRELOAD: &str = "shared_preload_libraries";

/// One round for verification.
///
/// # Errors
/// [`ScheduleControllerError`]; the next round begins anew.
pub(super) async fn care_for_verification(
    context: &Context,
    schedule: &BackupSchedule,
    facts: &ScheduleFacts,
    ground: Option<&Ground>,
    now: Timestamp,
) -> Result<Care, ScheduleControllerError> {
    let status = schedule.status.clone().unwrap_or_default();
    let published = status.verification.unwrap_or_default();
    let (namespace, uid) = (schedule.namespace().unwrap_or_default(), schedule.uid().unwrap_or_default());
    let whose = Whose { namespace: &namespace, app: VERIFICATION_APP, owner_uid: &uid, label: None };
    let newest = ground.and_then(Ground::newest_to_verify);
    let seen = VerificationFacts {
        every: parse_every(schedule.spec.verify.as_ref()),
        paused: facts.suspended || facts.blocked.is_some(),
        newest: newest.map(|backup| backup.name_any()),
        condemned: ground.and_then(Ground::newest_condemned).map(ResourceExt::name_any),
        newer: is_newer(ground, newest, &published),
        run: observe_last_run(context, whose, published.job.as_deref()).await?,
        published: published.clone(),
    };
    let condition = Verdict::published(VERIFIED, &status.conditions);
    let shown = (published != VerificationStatus::default()).then_some(published);
    let mut care = Care { verification: shown, ..Care::default() };
    match decide_verification(&seen, now) {
        VerificationStep::Off => care.verification = None,
        VerificationStep::Refuse(message) => care.verdicts.push(Verdict::refused(VERIFIED, "InvalidVerify", message)),
        VerificationStep::Rest(again) => {
            care.verdicts.extend(condition);
            care.again.extend(again);
        }
        VerificationStep::Wait(trouble) => {
            care.verdicts
                .extend(trouble.map(|message| Verdict::refused(VERIFIED, "JobNotStarting", message)).or(condition));
            care.again.push(later(now, WATCH_RUN));
        }
        VerificationStep::Start { backup, run } => {
            if let Some(ground) = ground {
                start(context, schedule, ground, &backup, &run).await?;
            }
            care.verdicts.extend(condition);
            care.again.push(later(now, WATCH_RUN));
        }
        VerificationStep::Conclude(conclusion) => {
            let Conclusion { status, verdict, backup, finding } = *conclusion;
            if let Some(finding) = finding {
                tell_backup(context, &namespace, &backup, &finding, now).await?;
            }
            care.again.push(later(now, WATCH_RUN));
            care.verification = Some(status);
            care.news.push(verdict.clone());
            care.verdicts.push(verdict);
        }
    }
    Ok(care)
}

/// Whether `newest` was made after the backup that was verified last or, where that one is gone, after it was verified.
fn is_newer(ground: Option<&Ground>, newest: Option<&Backup>, published: &VerificationStatus) -> bool {
    let order_of = |backup| ground.and_then(|ground| ground.order_of(backup));
    let verified = published.backup.as_deref();
    match ground.zip(verified).and_then(|(ground, name)| ground.find(name)).and_then(order_of) {
        Some(verified) => newest.and_then(order_of).is_some_and(|newest| newest > verified),
        None => {
            let completed = newest.and_then(|backup| parse_time(backup.status.as_ref()?.completed_at.as_deref()?));
            let looked = published.last_run_time.as_deref().and_then(parse_time);
            completed.zip(looked).is_some_and(|(completed, looked)| completed > looked)
        }
    }
}

async fn start(
    context: &Context,
    schedule: &BackupSchedule,
    ground: &Ground,
    backup: &str,
    run: &str,
) -> Result<(), ScheduleControllerError> {
    let name = schedule.name_any();
    let (Some(backup), Some(verify)) = (ground.find(backup), schedule.spec.verify.as_ref()) else { return Ok(()) };
    let cluster = &ground.cluster;
    let image = cluster.status.as_ref().and_then(|status| Some(status.effective.as_ref()?.image.clone()));
    let (Some(image), Some(id), Some(backup_uid)) = (image, ground.id_of(backup), backup.uid()) else { return Ok(()) };
    let parameters = cluster.spec.postgresql.as_ref().and_then(|settings| settings.parameters.as_ref());
    let config = VerifyJobConfig {
        location: BackupLocation { cluster: ground.location.clone(), backup_id: id.to_owned() },
        backup: backup.name_any(),
        backup_uid,
        data: DATA.into(),
        sockets: SOCKETS.into(),
        preload: parameters.and_then(|parameters| parameters.get(PRELOAD).cloned()),
        database: verify.database.clone(),
        statements: verify.sql.clone().unwrap_or_default(),
    };
    let owner = controller_reference(schedule).ok_or(ScheduleControllerError::Incomplete("name"))?;
    let job = build_trial_job(&TrialJob {
        name: render_job_name(&name, "v", &format!("{} {run}", owner.uid)),
        namespace: &ground.namespace,
        schedule: &name,
        owner,
        cluster,
        config: &config,
        store: &ground.store,
        pgherd_image: &context.settings.image,
        image: &image,
        scratch: verify.scratch.unwrap_or_default(),
    })?;
    create_store_job(context, &ground.namespace, &job).await?;
    Ok(())
}

async fn tell_backup(
    context: &Context,
    namespace: &str,
    (name, uid): &(String, String),
    finding: &Finding,
    now: Timestamp,
) -> Result<(), ScheduleControllerError> {
    let Some(backup) = store::get(&context.stores.backups, namespace, name) else { return Ok(()) };
    if backup.uid().as_ref() != Some(uid) {
        return Ok(());
    }
    let report = match finding {
        Finding::Good { summary, at } => Report::Verified(summary, *at),
        Finding::Bad(failure) => Report::NotVerified(failure),
    };
    mark_backup(context, namespace, &backup, &report, now).await?;
    Ok(())
}

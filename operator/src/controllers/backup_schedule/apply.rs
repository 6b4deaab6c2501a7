//! What a schedule does to Backup objects: it deletes them, and has their status tell what was found. What is in the store stays
//! as it is.

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use pgherd_crds::Backup;

use super::error::ScheduleControllerError;
use crate::{
    context::Context,
    controllers::backup::status::{Report, apply_status, build_status},
};

/// Deletes an object. The UID keeps a Backup that was made anew under the name.
///
/// # Errors
/// [`ScheduleControllerError::DeleteBackup`].
pub(super) async fn delete_backup(
    context: &Context,
    namespace: &str,
    backup: &Backup,
) -> Result<(), ScheduleControllerError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    let preconditions = Some(Preconditions { uid: backup.uid(), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::background() };
    context.metrics.api_writes.inc();
    match api.delete(&backup.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(source) => Err(ScheduleControllerError::DeleteBackup { name: backup.name_any(), source }),
    }
}

/// Writes the report into the object's status; true if that was news.
///
/// # Errors
/// [`ScheduleControllerError::MarkBackup`].
pub(super) async fn mark_backup(
    context: &Context,
    namespace: &str,
    backup: &Backup,
    report: &Report<'_>,
    now: Timestamp,
) -> Result<bool, ScheduleControllerError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), namespace);
    let old = backup.status.clone().unwrap_or_default();
    let status = build_status(&old, report, backup.metadata.generation, now);
    let written = apply_status(&api, backup, &status, true).await;
    let written = written
        .map_err(|source| ScheduleControllerError::MarkBackup { name: backup.name_any(), source: Box::new(source) })?;
    if written {
        context.metrics.api_writes.inc();
    }
    Ok(written)
}

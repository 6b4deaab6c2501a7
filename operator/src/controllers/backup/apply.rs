//! Applies what a backup needs: the account of the cluster's Jobs, then the Job. An object of somebody else is never
//! taken over.

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, api::batch::v1::Job};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{build::Account, error::BackupError};
use crate::{context::Context, kubernetes::owner::is_controlled_by};

/// Field manager of everything that this controller applies.
const FIELD_MANAGER: &str = "pgherd/backup";

/// Applies the account. Nothing is written that is so already: the API server stores an apply without a change as none.
///
/// # Errors
/// [`BackupError::ForeignObject`] or [`BackupError::ApplyAccount`].
pub async fn apply_account(
    context: &Context,
    namespace: &str,
    cluster_uid: &str,
    account: &Account,
) -> Result<(), BackupError> {
    let Account { account, role, binding } = account;
    apply(context, namespace, cluster_uid, account).await?;
    apply(context, namespace, cluster_uid, role).await?;
    apply(context, namespace, cluster_uid, binding).await
}

async fn apply<K>(context: &Context, namespace: &str, cluster_uid: &str, object: &K) -> Result<(), BackupError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
    let failed = |source| BackupError::ApplyAccount { kind: kind.clone(), name: name.clone(), source };
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    if let Some(there) = api.get_metadata_opt(&name).await.map_err(failed)?
        && !is_controlled_by(&there.metadata, cluster_uid)
    {
        return Err(BackupError::ForeignObject { kind, name });
    }
    context.metrics.api_writes.inc();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(object)).await.map_err(failed)?;
    Ok(())
}

/// Creates the Job; one of this name and this Backup that exists already is the same. False if the name is taken by
/// somebody else's.
///
/// # Errors
/// [`BackupError::CreateJob`].
pub async fn create_job(context: &Context, namespace: &str, backup_uid: &str, job: &Job) -> Result<bool, BackupError> {
    let name = job.name_any();
    let failed = |source| BackupError::CreateJob { name: name.clone(), source };
    let api: Api<Job> = Api::namespaced(context.client.clone(), namespace);
    context.metrics.api_writes.inc();
    match api.create(&PostParams::default(), job).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let there = api.get_metadata_opt(&name).await.map_err(failed)?;
            Ok(there.is_some_and(|there| is_controlled_by(&there.metadata, backup_uid)))
        }
        Err(error) => Err(failed(error)),
    }
}

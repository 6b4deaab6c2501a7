//! Where a schedule's retention and verification work: the cluster, its store, and the Backup objects that speak of it.
//! From the reflector stores alone.

use std::{collections::BTreeSet, sync::Arc};

use kube::ResourceExt;
use pgherd_core::backup::ClusterLocation;
use pgherd_crds::{Backup, BackupSchedule, PostgresCluster, names::keys, v1alpha1::backup::BackupPhase};

use crate::{
    context::Context,
    controllers::postgres_cluster::validate::{ValidatedStore, store::find_store},
    kubernetes::store,
};

/// See the module.
pub(super) struct Ground {
    pub(super) namespace: String,
    pub(super) cluster: Arc<PostgresCluster>,
    pub(super) store: ValidatedStore,
    pub(super) location: ClusterLocation,
    /// All Backups of the cluster.
    pub(super) backups: Vec<Arc<Backup>>,
}

/// None while the cluster, its store or its system identifier is not known.
pub(super) fn observe_ground(context: &Context, schedule: &BackupSchedule, namespace: &str) -> Option<Ground> {
    let name = &schedule.spec.cluster_ref.name;
    let cluster = store::get(&context.stores.clusters, namespace, name)?;
    let store = find_store(&cluster, namespace).ok().flatten()?;
    let system_id = cluster.status.as_ref()?.system_id.clone()?;
    let location = ClusterLocation { store: store.config.clone(), cluster: name.clone(), system_id };
    let backups = context.stores.backups.state_filter(|backup| {
        backup.namespace().as_deref() == Some(namespace) && backup.spec.cluster_ref.name == *name
    });
    Some(Ground { namespace: namespace.to_owned(), cluster, store, location, backups })
}

/// Id of a restorable backup whose data lies in this part of the store; none for all others.
#[must_use]
pub(super) fn find_id<'a>(backup: &'a Backup, location: &ClusterLocation) -> Option<&'a str> {
    let status = backup.status.as_ref()?;
    let id = status.id.as_deref()?;
    let destination = format!("s3://{}/{}", location.store.bucket, location.backup_prefix(id));
    let here = status.destination.as_deref() == Some(destination.as_str());
    let good = status.phase == Some(BackupPhase::Completed) && status.restorable == Some(true);
    (here && good).then_some(id)
}

impl Ground {
    /// The Backup says that it is restorable, from here.
    pub(super) fn is_known(&self, backup: &Backup) -> bool {
        find_id(backup, &self.location).is_some()
    }

    /// Ids of the backups that are said to be restorable, oldest first.
    pub(super) fn list_known(&self) -> Vec<String> {
        let ids: BTreeSet<&str> = self.backups.iter().filter_map(|backup| find_id(backup, &self.location)).collect();
        ids.into_iter().map(str::to_owned).collect()
    }

    /// Id of the newest restorable backup that this schedule made.
    pub(super) fn newest_of(&self, schedule: &str) -> Option<String> {
        let ours = self.backups.iter().filter(|backup| is_of(backup, schedule));
        ours.filter_map(|backup| find_id(backup, &self.location)).max().map(str::to_owned)
    }

    /// Ids that this schedule's retention leaves alone: those of Backups made by hand or by another schedule that is
    /// there, and those that a new cluster is to be restored from (`held`, by name).
    pub(super) fn list_pinned(&self, context: &Context, schedule: &str, held: &BTreeSet<String>) -> Vec<String> {
        let exists = |name: &str| store::get(&context.stores.schedules, &self.namespace, name).is_some();
        let pinned = self.backups.iter().filter(|backup| {
            let foreign = match backup.labels().get(keys::SCHEDULE) {
                None => true,
                Some(other) => other != schedule && exists(other),
            };
            foreign || held.contains(&backup.name_any())
        });
        let ids: BTreeSet<&str> = pinned.filter_map(|backup| find_id(backup, &self.location)).collect();
        ids.into_iter().map(str::to_owned).collect()
    }
}

fn is_of(backup: &Backup, schedule: &str) -> bool {
    backup.labels().get(keys::SCHEDULE).is_some_and(|label| label == schedule)
}

//! Where a schedule's retention and verification work: the cluster, its store, and the Backup objects that speak of it.
//! From the reflector stores alone.

use std::{collections::BTreeSet, sync::Arc};

use kube::ResourceExt;
use pgherd_core::{backup::ClusterLocation, lsn::Lsn};
use pgherd_crds::{
    Backup, BackupSchedule, PostgresCluster,
    names::keys,
    v1alpha1::{backup::BackupPhase, conditions::READY},
};

use crate::{
    context::Context,
    controllers::{
        backup::status::PRUNED,
        postgres_cluster::validate::{ValidatedStore, store::find_store},
    },
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
    let backups = store::list_backups(&context.stores.backups, namespace, name);
    Some(Ground { namespace: namespace.to_owned(), cluster, store, location, backups })
}

/// Id of a backup whose data lies in this part of the store, good or not; none for all others.
#[must_use]
pub(super) fn find_id<'a>(backup: &'a Backup, location: &ClusterLocation) -> Option<&'a str> {
    let status = backup.status.as_ref()?;
    let id = status.id.as_deref()?;
    let here = status.destination.as_ref() == Some(&location.destination(id));
    let pruned = status.conditions.iter().any(|condition| condition.type_ == READY && condition.reason == PRUNED);
    (here && !pruned && status.phase == Some(BackupPhase::Completed)).then_some(id)
}

fn is_restorable(backup: &Backup) -> bool {
    backup.status.as_ref().is_some_and(|status| status.restorable == Some(true))
}

impl Ground {
    /// The Backup of this name.
    pub(super) fn find(&self, name: &str) -> Option<&Backup> {
        self.backups.iter().find(|backup| backup.name_any() == name).map(|backup| &**backup)
    }

    /// Id of a backup whose data lies here.
    pub(super) fn id_of<'a>(&self, backup: &'a Backup) -> Option<&'a str> {
        find_id(backup, &self.location)
    }

    /// Sorts the older of two backups whose data lies here first, as [`pgherd_core::backup::BackupRecord::order`] does; with the id.
    pub(super) fn order_of<'a>(&self, backup: &'a Backup) -> Option<(Option<u32>, Option<Lsn>, &'a str)> {
        let (id, status) = (self.id_of(backup)?, backup.status.as_ref()?);
        let stop = status.stop_lsn.as_ref().and_then(|lsn| lsn.parse().ok());
        Some((status.timeline, stop, id))
    }

    fn list_ids(&self, wanted: impl Fn(&Backup) -> bool) -> Vec<String> {
        let chosen = self.backups.iter().filter(|backup| wanted(backup));
        let oldest_first: BTreeSet<_> = chosen.filter_map(|backup| self.order_of(backup)).collect();
        oldest_first.into_iter().map(|(_, _, id)| id.to_owned()).collect()
    }

    /// Ids of the backups that are said to have data here, oldest first.
    pub(super) fn list_known(&self) -> Vec<String> {
        self.list_ids(|_| true)
    }

    /// Ids of those that were found unusable.
    pub(super) fn list_damaged(&self) -> Vec<String> {
        self.list_ids(|backup| !is_restorable(backup))
    }

    /// Id of the newest restorable backup that this schedule made.
    pub(super) fn newest_of(&self, schedule: &str) -> Option<String> {
        self.list_ids(|backup| is_of(backup, schedule) && is_restorable(backup)).pop()
    }

    /// The newest restorable backup of the cluster, once it is known whether the archive has its WAL.
    pub(super) fn newest_to_verify(&self) -> Option<&Backup> {
        self.newest_known(is_restorable)
    }

    /// The newest one that was found not to come back.
    pub(super) fn newest_condemned(&self) -> Option<&Backup> {
        self.newest_known(|backup| !is_restorable(backup))
    }

    fn newest_known(&self, wanted: impl Fn(&Backup) -> bool) -> Option<&Backup> {
        let known = |backup: &&Arc<Backup>| {
            wanted(backup) && backup.status.as_ref().is_some_and(|status| status.pitr_ready.is_some())
        };
        let here = self.backups.iter().filter(known).filter_map(|backup| Some((self.order_of(backup)?, &**backup)));
        here.max_by_key(|(order, _)| *order).map(|(_, backup)| backup)
    }

    /// Ids that this schedule's retention leaves alone: those of Backups made by hand or by another schedule that is
    /// there, and those that a new cluster is to be restored from (`held`, by name).
    pub(super) fn list_pinned(&self, context: &Context, schedule: &str, held: &BTreeSet<String>) -> Vec<String> {
        let exists = |name: &str| store::get(&context.stores.schedules, &self.namespace, name).is_some();
        self.list_ids(|backup| {
            let foreign = match backup.labels().get(keys::SCHEDULE) {
                None => true,
                Some(other) => other != schedule && exists(other),
            };
            foreign || held.contains(&backup.name_any())
        })
    }
}

fn is_of(backup: &Backup, schedule: &str) -> bool {
    backup.labels().get(keys::SCHEDULE).is_some_and(|label| label == schedule)
}

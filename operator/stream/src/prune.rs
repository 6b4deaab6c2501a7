//! Retention in the store: deletes the backups that [`pgherd_core::retention`] gives up, and the WAL that no kept backup needs.
//!
//! It never deletes the newest good backup, one that somebody reads, or anything of a running backup; when in doubt it
//! deletes nothing. What it plans is a list; what it deletes becomes invisible before the first of its data goes.

mod wal;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    lsn::Lsn,
    retention::{BackupFact, Foresight, RetentionPlan, RetentionPolicy, foresee_retention, plan_retention, wal_floor},
    timeline::TimelineId,
};
use uuid::Uuid;

use crate::{
    backup::{MARKER_NAME, Marker, remove_rest},
    catalogue::{CatalogueError, RECORD_NAME, list_backups, read_record},
    restore::observe_locks,
    store::{ObjectStore, StoreError},
};
pub use wal::{WalTally, measure_wal};
use wal::{lower_floor, prune_wal};

/// What is kept, and by which clock.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// How much.
    pub policy: RetentionPolicy,
    /// Backups that stay whatever the policy says.
    pub pinned: BTreeSet<String>,
    /// Backups that go whatever the policy says, unless they are in use or the newest good one.
    pub doomed: BTreeSet<String>,
    /// Backups that were found unusable: they do not count as good.
    pub damaged: BTreeSet<String>,
    /// Now. Where the store says that it is not as late yet, that counts.
    pub now: Timestamp,
}

/// What would go.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    /// The fate of each backup, with reasons.
    pub backups: RetentionPlan,
    /// Ids of backups that would go, were they not being read.
    pub held: Vec<String>,
    facts: Vec<BackupFact>,
    records: BTreeMap<String, BackupRecord>,
    /// From where on WAL is needed.
    floor: BTreeMap<TimelineId, Lsn>,
}

/// What went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneOutcome {
    /// Ids of the backups that were deleted.
    pub backups: Vec<String>,
    /// Ids that stayed because somebody began to read them meanwhile.
    pub spared: Vec<String>,
    /// WAL objects that were deleted.
    pub wal: usize,
    /// Bytes of all that was deleted.
    pub bytes: u64,
}

impl PrunePlan {
    /// What goes next by this policy.
    #[must_use]
    pub fn foresee(&self, policy: &RetentionPolicy, now: Timestamp) -> Foresight {
        foresee_retention(&self.facts, policy, now)
    }
}

/// Why nothing more was deleted.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The store failed.
    #[error("deleting in the object store")]
    Store(#[from] StoreError),
    /// A backup's record cannot be read: what it needs is not known.
    #[error("reading what is there")]
    Catalogue(#[from] CatalogueError),
    /// A record has no usable time.
    #[error("the backup {id} says it stopped at \"{stopped_at}\", which is no time")]
    Time {
        /// The backup.
        id: String,
        /// What its record says.
        stopped_at: String,
    },
    /// Another one deleted what was to stay.
    #[error("the backup {0}, which was to stay, is not there any more")]
    KeptIsGone(String),
    /// The mark of a deletion could not be written as JSON.
    #[error("writing the mark of a deletion")]
    Mark(#[source] serde_json::Error),
}

/// Lists what would be deleted. Writes nothing.
///
/// # Errors
/// [`PruneError`]; one unreadable record is enough.
pub async fn plan_prune(
    store: &ObjectStore,
    location: &ClusterLocation,
    options: &PruneOptions,
) -> Result<PrunePlan, PruneError> {
    let time = store.observe_time().await?;
    let now = options.now.min(time);
    let locks = observe_locks(store, location, time).await?;
    let records = list_backups(store, location).await?;
    let mut facts = Vec::new();
    for record in &records {
        let mut fact = build_fact(record)?;
        fact.pinned = options.pinned.contains(&record.id);
        fact.in_use = locks.contains(&record.id);
        fact.good = !options.damaged.contains(&record.id);
        fact.doomed = options.doomed.contains(&record.id);
        facts.push(fact);
    }
    let backups = plan_retention(&facts, &options.policy, now);
    let held = find_held(&facts, &options.policy, now);
    let mut floor = wal_floor(&facts, &backups);
    let records = records.into_iter().map(|record| (record.id.clone(), record)).collect();
    lower_floor(&mut floor, observe_unfinished(store, location, &records).await?);
    Ok(PrunePlan { backups, held, facts, records, floor })
}

/// The backups that stay only because they are read.
fn find_held(facts: &[BackupFact], policy: &RetentionPolicy, now: Timestamp) -> Vec<String> {
    let in_use: BTreeSet<&str> = facts.iter().filter(|fact| fact.in_use).map(|fact| fact.id.as_str()).collect();
    let free: Vec<BackupFact> = facts.iter().map(|fact| BackupFact { in_use: false, ..fact.clone() }).collect();
    let would_go = plan_retention(&free, policy, now).delete;
    would_go.into_iter().map(|verdict| verdict.id).filter(|id| in_use.contains(id.as_str())).collect()
}

fn build_fact(record: &BackupRecord) -> Result<BackupFact, PruneError> {
    let bad = |_| PruneError::Time { id: record.id.clone(), stopped_at: record.stopped_at.clone() };
    Ok(BackupFact {
        id: record.id.clone(),
        stopped_at: record.stopped_at.parse().map_err(bad)?,
        timeline: record.timeline,
        start_lsn: record.start_lsn,
        stop_lsn: record.stop_lsn,
        parent: record.parent.as_ref().map(|parent| parent.id.clone()),
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    })
}

/// Where the backups start of which no record was read: they run, are dead and not yet removed, or have become complete since.
async fn observe_unfinished(
    store: &ObjectStore,
    location: &ClusterLocation,
    records: &BTreeMap<String, BackupRecord>,
) -> Result<Vec<(TimelineId, Lsn)>, StoreError> {
    let ids = store.list_dirs(&format!("{}/base/", location.root())).await?.into_iter();
    // A folder with a name of another form says nothing of where it starts: then nothing may go.
    let start = |id: String| parse_id(&id).unwrap_or((TimelineId(0), Lsn(0)));
    Ok(ids.filter(|id| !records.contains_key(id)).map(start).collect())
}

/// The timeline and start position in a backup's id.
fn parse_id(id: &str) -> Option<(TimelineId, Lsn)> {
    let (_, rest) = id.split_once('-')?;
    let (timeline, lsn) = rest.split_once('-')?;
    let timeline = u32::from_str_radix(timeline, 16).ok().filter(|_| timeline.len() == 8)?;
    Some((TimelineId(timeline), lsn.replacen('-', "/", 1).parse().ok()?))
}

/// Deletes what was planned, in its order: backups, then WAL. What a backup that was spared is restored from is spared too.
///
/// # Errors
/// [`PruneError`]; what was begun is finished by the next backup or the next call.
pub async fn apply_prune(
    store: &ObjectStore,
    location: &ClusterLocation,
    options: &PruneOptions,
    plan: &PrunePlan,
) -> Result<PruneOutcome, PruneError> {
    let mut outcome = PruneOutcome::default();
    let mut needed = BTreeSet::new();
    for verdict in &plan.backups.delete {
        let Some(record) = plan.records.get(&verdict.id) else { continue };
        validate_kept(store, location, plan).await?;
        if !needed.contains(&record.id) && delete_backup(store, location, plan, record).await? {
            outcome.backups.push(verdict.id.clone());
            outcome.bytes = outcome.bytes.saturating_add(record.stored_bytes);
        } else {
            // Of a chain the youngest comes first.
            needed.extend(record.parent.iter().map(|parent| parent.id.clone()));
            outcome.spared.push(verdict.id.clone());
        }
    }
    // A spared backup needs its WAL, and one that was made meanwhile too: this plan is made anew.
    let mut again = options.clone();
    again.pinned.extend(outcome.spared.iter().cloned());
    again.doomed.retain(|id| !outcome.spared.contains(id));
    let fresh = plan_prune(store, location, &again).await?;
    if fresh.backups.delete.is_empty() {
        let WalTally { files, bytes } = prune_wal(store, location, &fresh).await?;
        outcome.wal = files;
        outcome.bytes = outcome.bytes.saturating_add(bytes);
    }
    Ok(outcome)
}

/// What was to stay must be there before something else goes.
async fn validate_kept(store: &ObjectStore, location: &ClusterLocation, plan: &PrunePlan) -> Result<(), PruneError> {
    let Some(newest) = plan.backups.keep.first() else { return Err(PruneError::KeptIsGone("(none)".to_owned())) };
    match store.head(&format!("{}{RECORD_NAME}", location.backup_prefix(&newest.id))).await? {
        Some(_) => Ok(()),
        None => Err(PruneError::KeptIsGone(newest.id.clone())),
    }
}

/// Marks the backup, looks for readers, then deletes its record before all else. False when somebody reads it, or has made an
/// incremental backup of it meanwhile.
async fn delete_backup(
    store: &ObjectStore,
    location: &ClusterLocation,
    plan: &PrunePlan,
    record: &BackupRecord,
) -> Result<bool, PruneError> {
    let prefix = location.backup_prefix(&record.id);
    let archives: Vec<String> = record.archives.iter().map(|archive| archive.name.clone()).collect();
    let marker = Marker {
        id: record.id.clone(),
        started_at: Timestamp::now(),
        archives: archives.clone(),
        run: Uuid::new_v4().simple().to_string(),
        owner: None,
        deleting: true,
    };
    let marker_key = format!("{prefix}{MARKER_NAME}");
    store.put(&marker_key, marker.encode().map_err(PruneError::Mark)?).await?;
    // In this order: a child holds a lock on its parent until its own record is there.
    let now = store.observe_time().await?;
    let is_read = observe_locks(store, location, now).await?.contains(&record.id);
    if is_read || has_new_child(store, location, plan, record).await? {
        store.delete(&marker_key).await?;
        return Ok(false);
    }
    store.delete(&format!("{prefix}{RECORD_NAME}")).await?;
    remove_rest(store, &prefix, &archives).await?;
    Ok(true)
}

/// Whether a backup that was not there when the plan was made is restored from this one.
async fn has_new_child(
    store: &ObjectStore,
    location: &ClusterLocation,
    plan: &PrunePlan,
    record: &BackupRecord,
) -> Result<bool, PruneError> {
    for id in store.list_dirs(&format!("{}/base/", location.root())).await? {
        if plan.records.contains_key(&id) {
            continue;
        }
        let newer = read_record(store, location, &id).await?;
        if newer.and_then(|newer| newer.parent).is_some_and(|parent| parent.id == record.id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How long a lock keeps a backup after its reader died.
#[must_use]
pub fn lock_age() -> Duration {
    crate::restore::LOCK_AGE
}

#[cfg(test)]
mod clock_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_where_its_backup_starts() {
        assert_eq!(parse_id("20261122T020304Z-00000012-16-B374D848"), Some((TimelineId(18), Lsn(0x16_B374_D848))));
        for wrong in ["", "x", "20261122T020304Z-1", "a-b-c-d"] {
            assert_eq!(parse_id(wrong), None, "{wrong}");
        }
    }
}

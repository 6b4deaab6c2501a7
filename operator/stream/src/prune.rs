//! Retention in the store: deletes the backups that [`pgherd_core::retention`] gives up, and the WAL that no kept backup needs.
//!
//! It never deletes the newest good backup, one that somebody reads, or anything of a running backup; when in doubt it
//! deletes nothing. What it plans is a list; what it deletes becomes invisible before the first of its data goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use pgherd_core::{
    backup::{AGE_SUFFIX, BackupRecord, ClusterLocation},
    lsn::Lsn,
    retention::{
        BackupFact, Foresight, RetentionPlan, RetentionPolicy, foresee_retention, plan_retention, wal_floor,
        wal_is_needed,
    },
    timeline::TimelineId,
};
use uuid::Uuid;

use crate::{
    backup::{MARKER_NAME, Marker, remove_rest},
    catalogue::{CatalogueError, RECORD_NAME, list_backups, read_record},
    restore::observe_locks,
    store::{ObjectStore, StoreError},
    wal::WalName,
};

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
    /// Keys of WAL objects that no kept backup needs, with their sizes in bytes.
    pub wal: Vec<(String, u64)>,
    /// Ids of backups that would go, were they not being read.
    pub held: Vec<String>,
    facts: Vec<BackupFact>,
    records: BTreeMap<String, BackupRecord>,
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
    // WAL is listed first: what a backup that begins later needs is not in this list.
    let wal = store.list(&format!("{}/wal/", location.root())).await?;
    let time = store.observe_time().await?;
    let now = options.now.min(time);
    let locks = observe_locks(store, location, time).await?;
    let running = observe_running(store, location).await?;
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
    for (timeline, lsn) in running {
        let lowest = floor.entry(timeline).or_insert(lsn);
        *lowest = lsn.min(*lowest);
    }
    let wal = decide_wal(&location.root(), wal, &records, &backups, &floor);
    let records = records.into_iter().map(|record| (record.id.clone(), record)).collect();
    Ok(PrunePlan { backups, wal, held, facts, records })
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

/// Where the backups start that have no record: running, or dead and not yet removed.
async fn observe_running(
    store: &ObjectStore,
    location: &ClusterLocation,
) -> Result<Vec<(TimelineId, Lsn)>, StoreError> {
    let mut starts = Vec::new();
    for id in store.list_dirs(&format!("{}/base/", location.root())).await? {
        if store.head(&format!("{}{RECORD_NAME}", location.backup_prefix(&id))).await?.is_none() {
            // A folder with a name of another form says nothing of where it starts: then nothing may go.
            starts.push(parse_id(&id).unwrap_or((TimelineId(0), Lsn(0))));
        }
    }
    Ok(starts)
}

/// The timeline and start position in a backup's id.
fn parse_id(id: &str) -> Option<(TimelineId, Lsn)> {
    let (_, rest) = id.split_once('-')?;
    let (timeline, lsn) = rest.split_once('-')?;
    let timeline = u32::from_str_radix(timeline, 16).ok().filter(|_| timeline.len() == 8)?;
    Some((TimelineId(timeline), lsn.replacen('-', "/", 1).parse().ok()?))
}

/// WAL objects that end at or before what the kept backups need. Histories stay: they are small, and each may be asked for.
fn decide_wal(
    root: &str,
    present: Vec<(String, u64)>,
    records: &[BackupRecord],
    plan: &RetentionPlan,
    floor: &BTreeMap<TimelineId, Lsn>,
) -> Vec<(String, u64)> {
    let sizes: BTreeSet<u64> = records.iter().map(|record| record.wal_segment_bytes).collect();
    let (Some(segment_bytes), 1, false) = (sizes.first().copied(), sizes.len(), plan.keep.is_empty()) else {
        return Vec::new();
    };
    let goes = |key: &str| {
        let Some(end) = parse_segment_end(root, key, segment_bytes) else { return false };
        !wal_is_needed(floor, end.0, end.1)
    };
    present.into_iter().filter(|(key, _)| goes(key)).collect()
}

/// The timeline and end of the segment that an object holds, or belongs to; `None` for anything else.
fn parse_segment_end(root: &str, key: &str, segment_bytes: u64) -> Option<(TimelineId, Lsn)> {
    let path = key.strip_prefix(root)?.strip_prefix("/wal/")?;
    let name = path.rsplit('/').next()?;
    let name = name.strip_suffix(AGE_SUFFIX).unwrap_or(name).strip_suffix(".zst")?;
    let segment = match WalName::parse(name).ok()? {
        WalName::BackupLabel => WalName::parse(name.get(..24)?).ok()?,
        segment => segment,
    };
    let WalName::Segment { timeline, log, segment, .. } = segment else { return None };
    let start = (u64::from(log) << 32).checked_add(u64::from(segment).checked_mul(segment_bytes)?)?;
    Some((timeline, Lsn(start.checked_add(segment_bytes)?)))
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
    // A spared backup needs its WAL, and one that began meanwhile too: this list is made anew.
    let mut again = options.clone();
    again.pinned.extend(outcome.spared.iter().cloned());
    again.doomed.retain(|id| !outcome.spared.contains(id));
    let fresh = plan_prune(store, location, &again).await?;
    if fresh.backups.delete.is_empty() {
        let keys: Vec<String> = fresh.wal.iter().map(|(key, _)| key.clone()).collect();
        store.delete_all(&keys).await?;
        outcome.wal = keys.len();
        outcome.bytes = fresh.wal.iter().fold(outcome.bytes, |bytes, (_, size)| bytes.saturating_add(*size));
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

    #[test]
    fn only_segments_and_what_belongs_to_them_have_an_end() {
        let end = |key: &str| parse_segment_end("p/c/1", key, 16 << 20);
        let expected = Some((TimelineId(1), Lsn(4 << 24)));
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.partial.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.00000028.backup.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.zst.age"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.00000028.backup.zst.age"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.age"), None);
        for other in ["p/c/1/wal/00000002.history", "p/c/2/wal/x.zst", "p/c/1/wal/00000001/00000000/notes.txt"] {
            assert_eq!(end(other), None, "{other}");
        }
    }
}

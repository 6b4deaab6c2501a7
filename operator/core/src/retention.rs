//! Which backups are kept and from where on WAL is needed. Plans only; nothing is deleted here.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use jiff::{SignedDuration, Timestamp};

use crate::{lsn::Lsn, timeline::TimelineId};

/// How much is kept. Both given: a backup stays if either keeps it. None given: everything stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Keep this many good backups, the newest ones.
    pub keep_last: Option<u32>,
    /// Keep what is needed to restore to any time in this window.
    pub keep_for: Option<SignedDuration>,
}

/// What retention knows of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFact {
    /// Its id.
    pub id: String,
    /// When it became consistent, by the clock of the node that made it.
    pub stopped_at: Timestamp,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// WAL is needed from here.
    pub start_lsn: Lsn,
    /// It is consistent from here on.
    pub stop_lsn: Lsn,
    /// Id of the backup that an incremental one holds the changes since: it is restored from both.
    pub parent: Option<String>,
    /// It can be restored; a failed or damaged one is not good: it counts for nothing, and goes when a good one of its age
    /// would.
    pub good: bool,
    /// It is held by the user: stays, and does not count for `keep_last`.
    pub pinned: bool,
    /// Somebody reads it: stays until then.
    pub in_use: bool,
    /// The user asked for its deletion: goes whatever the policy says, unless it is the newest good one, in use, or needed by
    /// an incremental one that stays.
    pub doomed: bool,
}

/// One backup's fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionVerdict {
    /// The backup's id.
    pub id: String,
    /// One sentence.
    pub why: String,
}

/// What stays and what goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// These stay, newest first.
    pub keep: Vec<RetentionVerdict>,
    /// These may be deleted, in this order: the oldest chain first, of a chain the youngest first. Whatever of it was
    /// deleted, what is left can be restored.
    pub delete: Vec<RetentionVerdict>,
}

/// Plans retention. The newest good backup always stays, and without a good one everything does. A chain of incremental
/// backups is a unit: what a backup that stays is restored from stays too. A verdict deletes nothing: it may be wrong, and a
/// backup that is said not to be good stays as long as the policy keeps one of its age.
///
/// Which of two backups is the newer one is told by their positions, and not by clocks, one of which may be wrong by a year. Only the
/// window goes by time, and by none that lies in the future.
#[must_use]
pub fn plan_retention(backups: &[BackupFact], policy: &RetentionPolicy, now: Timestamp) -> RetentionPlan {
    let lineage = Lineage::new(backups);
    let mut newest_first: Vec<&BackupFact> = backups.iter().collect();
    newest_first.sort_by_key(|backup| Reverse(order(backup)));
    let is_good = |backup: &BackupFact| lineage.is_restorable(backup);
    let newest = newest_first.iter().copied().find(|backup| is_good(backup));
    // What goes in any case keeps nothing else from being counted or being the base of the window.
    let goes = |backup: &BackupFact| {
        backup.doomed && !backup.in_use && newest.is_some_and(|newest| !std::ptr::eq(newest, backup))
    };
    let good: Vec<&BackupFact> =
        newest_first.iter().copied().filter(|backup| is_good(backup) && !goes(backup)).collect();
    let times = believe_times(newest_first.iter().copied().filter(|backup| !goes(backup)), now);
    let window = policy.keep_for.map(|keep_for| Window::new(keep_for, now, &times, &good));
    let mut plan = RetentionPlan::default();
    for backup in &newest_first {
        let kept = match good.first() {
            _ if goes(backup) => None,
            _ if backup.in_use => Some("it is in use".to_owned()),
            _ if backup.pinned => Some("it is pinned".to_owned()),
            None => Some("there is no restorable backup yet: nothing is deleted".to_owned()),
            Some(newest) if std::ptr::eq(*newest, *backup) => Some("it is the newest restorable backup".to_owned()),
            Some(newest) if order(backup) > order(newest) => {
                Some("it is newer than the newest restorable backup".to_owned())
            }
            Some(_) => {
                let why = why_kept(backup, count_newer(&good, backup), policy, window.as_ref());
                why.map(|why| if is_good(backup) { why } else { format!("{why}, though it was found not restorable") })
            }
        };
        let why_deleted = if backup.doomed {
            "its deletion was asked for"
        } else if is_good(backup) {
            "it is beyond the retention"
        } else {
            "it is not restorable, and a restorable one of its age would be beyond the retention"
        };
        match kept {
            Some(why) => plan.keep.push(RetentionVerdict { id: backup.id.clone(), why }),
            None => plan.delete.push(RetentionVerdict { id: backup.id.clone(), why: why_deleted.to_owned() }),
        }
    }
    lineage.keep_parents(&mut plan);
    plan.delete.sort_by_cached_key(|verdict| lineage.deletion_order(&verdict.id));
    plan
}

/// Which backup is restored from which.
struct Lineage<'a> {
    by_id: BTreeMap<&'a str, &'a BackupFact>,
}

impl<'a> Lineage<'a> {
    fn new(backups: &'a [BackupFact]) -> Self {
        Self { by_id: backups.iter().map(|backup| (backup.id.as_str(), backup)).collect() }
    }

    /// The backup and what it is restored from, as far as it is there. A circle, which no record can make, ends.
    fn members(&self, id: &str) -> impl Iterator<Item = &'a BackupFact> {
        let first = self.by_id.get(id).copied();
        let parent = move |backup: &&'a BackupFact| self.by_id.get(backup.parent.as_deref()?).copied();
        std::iter::successors(first, parent).take(self.by_id.len())
    }

    /// It is good, and so is all that it is restored from.
    fn is_restorable(&self, backup: &BackupFact) -> bool {
        self.members(&backup.id).all(|member| member.good)
            && self.members(&backup.id).last().is_some_and(|full| full.parent.is_none())
    }

    /// Moves what a kept backup is restored from to those that stay.
    fn keep_parents(&self, plan: &mut RetentionPlan) {
        let mut needed: BTreeMap<&str, &str> = BTreeMap::new();
        for child in &plan.keep {
            for member in self.members(&child.id).skip(1) {
                needed.entry(&member.id).or_insert(self.by_id.get(child.id.as_str()).map_or("", |child| &child.id));
            }
        }
        let (stays, goes) = std::mem::take(&mut plan.delete)
            .into_iter()
            .partition::<Vec<_>, _>(|verdict| needed.contains_key(verdict.id.as_str()));
        plan.delete = goes;
        let explain = |RetentionVerdict { id, .. }: RetentionVerdict| {
            let child = needed.get(id.as_str()).copied().unwrap_or_default();
            RetentionVerdict { why: format!("the incremental backup {child}, which stays, is restored from it"), id }
        };
        plan.keep.extend(stays.into_iter().map(explain));
        plan.keep.sort_by_cached_key(|verdict| Reverse(self.order(&verdict.id)));
    }

    fn order(&self, id: &str) -> Option<(TimelineId, Lsn, &'a str)> {
        self.by_id.get(id).map(|backup| order(backup))
    }

    /// Sorts the oldest chain first, and of a chain the youngest backup.
    fn deletion_order(&self, id: &str) -> impl Ord + use<'a> {
        (self.members(id).last().map(order), Reverse(self.order(id)))
    }
}

/// Sorts the older one first. See [`crate::backup::BackupRecord::order`].
fn order(backup: &BackupFact) -> (TimelineId, Lsn, &str) {
    (backup.timeline, backup.stop_lsn, &backup.id)
}

/// The times that the window goes by, by id. One that lies in the future says nothing: its backup is as old as the one after it. And
/// no backup is older than one before it: of a clock that goes back too much is kept, and not too little.
fn believe_times<'a>(
    newest_first: impl DoubleEndedIterator<Item = &'a BackupFact> + Clone,
    now: Timestamp,
) -> BTreeMap<&'a str, Timestamp> {
    let mut reached = Timestamp::MIN;
    let past = newest_first.clone().rev().filter(|backup| backup.stopped_at <= now);
    let mut times: BTreeMap<&str, Timestamp> = past
        .map(|backup| {
            reached = reached.max(backup.stopped_at);
            (backup.id.as_str(), reached)
        })
        .collect();
    let mut next = now;
    for backup in newest_first {
        next = *times.entry(&backup.id).or_insert(next);
    }
    times
}

/// What is needed to restore to any time from `from` on.
struct Window<'a> {
    from: Timestamp,
    times: &'a BTreeMap<&'a str, Timestamp>,
    /// The good backup that its start is restored from.
    base: Option<&'a BackupFact>,
}

impl<'a> Window<'a> {
    fn new(
        keep_for: SignedDuration,
        now: Timestamp,
        times: &'a BTreeMap<&'a str, Timestamp>,
        good: &[&'a BackupFact],
    ) -> Self {
        // A window too long for the calendar keeps everything.
        let mut window = Self { from: now.checked_sub(keep_for).unwrap_or(Timestamp::MIN), times, base: None };
        window.base = good.iter().copied().find(|backup| !window.contains(backup));
        window
    }

    fn contains(&self, backup: &BackupFact) -> bool {
        self.times.get(backup.id.as_str()).is_none_or(|time| *time > self.from)
    }
}

/// Good backups that are newer than this one and count for `keep_last`.
fn count_newer(good: &[&BackupFact], backup: &BackupFact) -> usize {
    good.iter().filter(|other| !other.pinned && order(other) > order(backup)).count()
}

/// Why a backup stays; `newer` good ones count.
fn why_kept(
    backup: &BackupFact,
    newer: usize,
    policy: &RetentionPolicy,
    window: Option<&Window<'_>>,
) -> Option<String> {
    let last = policy.keep_last.and_then(|count| usize::try_from(count).ok());
    if last.is_none() && window.is_none() {
        return Some("no retention is set".to_owned());
    }
    if let Some(count) = last.filter(|count| newer < *count) {
        return Some(format!("it is one of the last {count}"));
    }
    let window = window?;
    if window.contains(backup) {
        return Some("it lies in the window of keepFor".to_owned());
    }
    // One that is not good comes after the base only if the window's start would be restored from it.
    let base = window.base;
    base.is_none_or(|base| order(backup) >= order(base))
        .then(|| "the start of the window of keepFor is restored from it".to_owned())
}

/// What goes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    /// The backups that go first once another one was made, oldest first.
    pub ids: Vec<String>,
    /// When; `None`: as soon as that one is restorable.
    pub at: Option<Timestamp>,
    /// When something goes although no backup is made meanwhile.
    pub expires_at: Option<Timestamp>,
}

/// Looks ahead: a dry run with one more backup, made now, and one without.
#[must_use]
pub fn foresee_retention(backups: &[BackupFact], policy: &RetentionPolicy, now: Timestamp) -> Foresight {
    let next = BackupFact {
        id: "~".to_owned(),
        stopped_at: now,
        timeline: TimelineId(u32::MAX),
        start_lsn: Lsn(u64::MAX),
        stop_lsn: Lsn(u64::MAX),
        parent: None,
        good: true,
        pinned: false,
        in_use: false,
        doomed: false,
    };
    let with_next: Vec<BackupFact> = backups.iter().cloned().chain([next]).collect();
    let mut foresight = Foresight::default();
    if let Some((at, ids)) = find_first_deletion(&with_next, policy, now) {
        foresight.ids = ids;
        foresight.at = (at > now).then_some(at);
    }
    foresight.expires_at = find_first_deletion(backups, policy, now).map(|(at, _)| at);
    foresight
}

/// The first time from `now` on at which something goes, with what goes.
fn find_first_deletion(
    backups: &[BackupFact],
    policy: &RetentionPolicy,
    now: Timestamp,
) -> Option<(Timestamp, Vec<String>)> {
    // Only when the age of a backup passes the window does something go by time alone.
    let passes = |backup: &BackupFact| backup.stopped_at.checked_add(policy.keep_for?).ok();
    let mut times: Vec<Timestamp> = backups.iter().filter_map(passes).filter(|at| *at > now).collect();
    times.sort();
    [now].into_iter().chain(times).find_map(|at| {
        let ids: Vec<String> =
            plan_retention(backups, policy, at).delete.into_iter().map(|verdict| verdict.id).collect();
        (!ids.is_empty()).then_some((at, ids))
    })
}

/// The LSN from which WAL is needed, per timeline of a kept backup. See [`wal_is_needed`].
#[must_use]
pub fn wal_floor(backups: &[BackupFact], plan: &RetentionPlan) -> BTreeMap<TimelineId, Lsn> {
    let kept: BTreeSet<&str> = plan.keep.iter().map(|verdict| verdict.id.as_str()).collect();
    let mut floor: BTreeMap<TimelineId, Lsn> = BTreeMap::new();
    for backup in backups.iter().filter(|backup| kept.contains(backup.id.as_str())) {
        let lowest = floor.entry(backup.timeline).or_insert(backup.start_lsn);
        *lowest = backup.start_lsn.min(*lowest);
    }
    floor
}

/// True when a WAL segment of `timeline` that ends at `segment_end` must stay. On timelines younger than the oldest
/// floor everything that a backup on an older one could be rolled forward through stays.
#[must_use]
pub fn wal_is_needed(floor: &BTreeMap<TimelineId, Lsn>, timeline: TimelineId, segment_end: Lsn) -> bool {
    let Some((oldest, _)) = floor.first_key_value() else {
        return true;
    };
    if timeline < *oldest {
        return false;
    }
    // A backup of an older timeline reaches this one through its switch point, above that backup's own start.
    let lowest = floor.range(..=timeline).map(|(_, lsn)| *lsn).min();
    lowest.is_none_or(|lowest| segment_end > lowest)
}

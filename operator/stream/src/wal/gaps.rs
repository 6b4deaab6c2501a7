//! Which files of the archive a replay needs, and which of them are missing.

use std::collections::{BTreeSet, HashSet};

use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};

use super::{WalError, name::segment_name};
use crate::store::ObjectStore;

/// More are not replayed at once: 64 TiB of the usual size. Their names are in memory.
const MAX_SEGMENTS: u64 = 4 << 20;

/// What the archive lacks to replay `[from, to)` along `history`: segments in the order of replay, and before them the
/// `.history` file of the newest timeline where one is entered. Plain or encrypted is the same here.
///
/// A segment in which a timeline was left is asked for on the newest timeline that has it, as PostgreSQL's recovery does.
/// To end before a segment that is at hand elsewhere, round `to` down to its start.
///
/// # Errors
/// [`WalError::Store`], [`WalError::Span`].
pub async fn missing_segments(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    from: Lsn,
    to: Lsn,
    segment_bytes: u64,
) -> Result<Vec<String>, WalError> {
    let needed = decide_needed(history, from, to, segment_bytes)?;
    // Lists only the folders that are needed: one per timeline and 4 GiB of WAL.
    let folder = |name: &String| {
        let key = location.wal_key(name);
        key.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"))
    };
    let segments = needed.iter().filter(|name| !name.ends_with(".history"));
    let folders: BTreeSet<String> = segments.map(folder).collect();
    let mut present = HashSet::new();
    for folder in folders {
        present.extend(store.list(&folder).await?.into_iter().filter(|(_, size)| *size > 0).map(|(key, _)| key));
    }
    for name in needed.iter().filter(|name| name.ends_with(".history")) {
        let key = location.wal_key(name);
        if store.head(&key).await?.is_some_and(|size| size > 0) {
            present.insert(key);
        }
    }
    let is_there = |name: &String| {
        let sealed = location.sealed_wal_key(name);
        present.contains(&location.wal_key(name)) || sealed.is_some_and(|key| present.contains(&key))
    };
    Ok(needed.into_iter().filter(|name| !is_there(name)).collect())
}

/// The files that a replay of `[from, to)` along `history` reads, in its order.
///
/// # Errors
/// [`WalError::Span`].
pub fn decide_needed(
    history: &TimelineHistory,
    from: Lsn,
    to: Lsn,
    segment_bytes: u64,
) -> Result<Vec<String>, WalError> {
    let segment_bytes = segment_bytes.max(1);
    if from >= to {
        return Ok(Vec::new());
    }
    if (to.0 - from.0) / segment_bytes > MAX_SEGMENTS {
        return Err(WalError::Span { from, to });
    }
    // Each timeline with the number of the segment in which it begins, oldest first.
    let mut begins: Vec<(TimelineId, u64)> = Vec::new();
    let mut begin = 0;
    for entry in &history.ancestors {
        begins.push((entry.timeline, begin));
        begin = entry.switch_lsn.0 / segment_bytes;
    }
    begins.push((history.timeline, begin));
    let timeline_of =
        |number: u64| begins.iter().rev().find(|(_, begin)| *begin <= number).map(|(timeline, _)| *timeline);
    let numbers = from.0 / segment_bytes..to.0.div_ceil(segment_bytes);
    let segments = numbers
        .filter_map(|number| Some(segment_name(timeline_of(number)?, Lsn(number * segment_bytes), segment_bytes)));
    // The file of the timeline that is followed names all before it: PostgreSQL asks for those in between as well, to have them, and goes on
    // without. What stays on the timeline that `from` lies on needs none.
    let timeline_at = |lsn: Lsn| {
        let left = history.ancestors.iter().find(|entry| lsn < entry.switch_lsn);
        left.map_or(history.timeline, |entry| entry.timeline)
    };
    let entered = timeline_at(from) < timeline_at(Lsn(to.0 - 1));
    let followed = entered.then(|| format!("{}.history", history.timeline));
    Ok(followed.into_iter().chain(segments).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_core::timeline::HistoryEntry;

    const SEGMENT: u64 = 16 << 20;

    fn history() -> TimelineHistory {
        let entry = |timeline, segment: u64| HistoryEntry {
            timeline: TimelineId(timeline),
            switch_lsn: Lsn(segment * SEGMENT + 100),
        };
        TimelineHistory { timeline: TimelineId(4), ancestors: vec![entry(1, 3), entry(2, 5)] }
    }

    #[test]
    fn the_segment_of_a_switch_is_read_on_the_newer_timeline() {
        let needed = decide_needed(&history(), Lsn(2 * SEGMENT + 7), Lsn(6 * SEGMENT), SEGMENT).unwrap();
        let expected = [
            "00000004.history",
            "000000010000000000000002",
            "000000020000000000000003",
            "000000020000000000000004",
            "000000040000000000000005",
        ];
        assert_eq!(needed, expected);
    }

    #[test]
    fn a_recovery_reads_the_history_of_the_timeline_that_it_follows_and_no_other() {
        let needed = decide_needed(&history(), Lsn(2 * SEGMENT), Lsn(5 * SEGMENT), SEGMENT).unwrap();
        let histories: Vec<_> = needed.iter().filter(|name| name.ends_with(".history")).collect();
        assert_eq!(histories, ["00000004.history"], "although it ends on timeline 2");
    }

    #[test]
    fn a_range_within_one_timeline_needs_no_history_file() {
        assert_eq!(
            decide_needed(&history(), Lsn(SEGMENT), Lsn(2 * SEGMENT), SEGMENT).unwrap(),
            ["000000010000000000000001"]
        );
        assert_eq!(
            decide_needed(&history(), Lsn(7 * SEGMENT), Lsn(7 * SEGMENT + 1), SEGMENT).unwrap(),
            ["000000040000000000000007"]
        );
        assert!(decide_needed(&history(), Lsn(SEGMENT), Lsn(SEGMENT), SEGMENT).unwrap().is_empty());
        let endless = decide_needed(&history(), Lsn(SEGMENT), Lsn(u64::MAX), 1);
        assert!(matches!(endless, Err(WalError::Span { .. })), "not a name of it comes into memory");
    }
}

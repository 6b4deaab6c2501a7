//! Which files of the archive a replay needs, and which of them are missing. Segments are counted by their numbers: of a long archive
//! millions of names would not fit into the memory that there is beside an instance.

use std::{collections::HashSet, ops::Range};

use futures::{StreamExt, stream};
use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};

use super::{WalError, name::segment_name};
use crate::store::ObjectStore;

/// More are not replayed at once: 64 TiB of the usual size.
const MAX_SEGMENTS: u64 = 4 << 20;
/// Folders of the archive that are listed at the same time.
const CONCURRENT_LISTS: usize = 8;

/// Segments of one timeline, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) timeline: TimelineId,
    pub(super) numbers: Range<u64>,
}

/// Files of the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// The timelines whose `.history` files these are.
    histories: Vec<TimelineId>,
    /// In the order of replay.
    pub(super) runs: Vec<Run>,
    /// Of each segment.
    segment_bytes: u64,
}

impl Files {
    /// The files that a replay of `[from, to)` along `history` reads.
    ///
    /// # Errors
    /// [`WalError::Span`].
    pub(super) fn decide(history: &TimelineHistory, from: Lsn, to: Lsn, segment_bytes: u64) -> Result<Self, WalError> {
        let segment_bytes = segment_bytes.max(1);
        let mut needed = Self { segment_bytes, ..Self::default() };
        if from >= to {
            return Ok(needed);
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
        // The timeline that `from` lies on needs no history to be entered.
        let timeline_at = |lsn: Lsn| {
            let left = history.ancestors.iter().find(|entry| lsn < entry.switch_lsn);
            left.map_or(history.timeline, |entry| entry.timeline)
        };
        // The file of the timeline that is followed names all before it: PostgreSQL asks for those in between as well, to have them, and goes
        // on without.
        if timeline_at(from) < timeline_at(Lsn(to.0 - 1)) {
            needed.histories.push(history.timeline);
        }
        // Of each segment the newest timeline that has it.
        let (start, mut end) = (from.0 / segment_bytes, to.0.div_ceil(segment_bytes));
        for (timeline, begin) in begins.into_iter().rev() {
            let begin = begin.max(start);
            if begin < end {
                needed.runs.push(Run { timeline, numbers: begin..end });
                end = begin;
            }
        }
        needed.runs.reverse();
        Ok(needed)
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> u64 {
        self.runs.iter().map(|run| run.numbers.end - run.numbers.start).sum()
    }

    /// How many files there are.
    pub(super) fn count(&self) -> usize {
        self.histories.len().saturating_add(usize::try_from(self.segments()).unwrap_or(usize::MAX))
    }

    /// Their names: histories first, then segments in the order of replay.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let name = |timeline, number| segment_name(timeline, Lsn(number * self.segment_bytes), self.segment_bytes);
        let of_run = move |run: &Run| {
            let timeline = run.timeline;
            run.numbers.clone().map(move |number| name(timeline, number))
        };
        let histories = self.histories.iter().map(|timeline| format!("{timeline}.history"));
        histories.chain(self.runs.iter().flat_map(of_run))
    }

    /// The runs, cut where a folder of the archive ends: there is one for each timeline and 4 GiB.
    fn folders(&self) -> impl Iterator<Item = Run> {
        let per_folder = (0x1_0000_0000 / self.segment_bytes).max(1);
        self.runs.iter().flat_map(move |Run { timeline, numbers }| {
            let folders = numbers.start / per_folder..numbers.end.div_ceil(per_folder);
            folders.map(move |folder| {
                let (first, next) = (folder * per_folder, (folder + 1) * per_folder);
                Run { timeline: *timeline, numbers: first.max(numbers.start)..next.min(numbers.end) }
            })
        })
    }

    /// Adds segments that follow.
    fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if last.timeline == run.timeline && last.numbers.end == run.numbers.start => {
                last.numbers.end = run.numbers.end;
            }
            _ => self.runs.push(run),
        }
    }

    /// Those of the files that the archive lacks. Plain or encrypted is the same here.
    ///
    /// # Errors
    /// [`WalError::Store`].
    pub(super) async fn find_missing(&self, store: &ObjectStore, location: &ClusterLocation) -> Result<Self, WalError> {
        let mut missing = Self { segment_bytes: self.segment_bytes, ..Self::default() };
        for timeline in &self.histories {
            let key = location.wal_key(&format!("{timeline}.history"));
            if store.head(&key).await?.is_none_or(|size| size == 0) {
                missing.histories.push(*timeline);
            }
        }
        let bytes = self.segment_bytes;
        let looks = self.folders().map(|run| async move { list_missing(store, location, run, bytes).await });
        let mut looks = std::pin::pin!(stream::iter(looks).buffered(CONCURRENT_LISTS));
        while let Some(found) = looks.next().await {
            found?.into_iter().for_each(|run| missing.push(run));
        }
        Ok(missing)
    }
}

/// Lists the one folder that holds the segments.
async fn list_missing(
    store: &ObjectStore,
    location: &ClusterLocation,
    Run { timeline, numbers }: Run,
    segment_bytes: u64,
) -> Result<Vec<Run>, WalError> {
    let name = |number: u64| segment_name(timeline, Lsn(number * segment_bytes), segment_bytes);
    let first = location.wal_key(&name(numbers.start));
    let folder = first.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let objects = store.list(&folder).await?.into_iter();
    let present: HashSet<String> = objects.filter(|(_, size)| *size > 0).map(|(key, _)| key).collect();
    let is_there = |number: u64| {
        let name = name(number);
        let sealed = location.sealed_wal_key(&name);
        present.contains(&location.wal_key(&name)) || sealed.is_some_and(|key| present.contains(&key))
    };
    let mut missing = Files { segment_bytes, ..Files::default() };
    for number in numbers.filter(|number| !is_there(*number)) {
        missing.push(Run { timeline, numbers: number..number + 1 });
    }
    Ok(missing.runs)
}

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
    let missing = Files::decide(history, from, to, segment_bytes)?.find_missing(store, location).await?;
    Ok(missing.names().collect())
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
    Ok(Files::decide(history, from, to, segment_bytes)?.names().collect())
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

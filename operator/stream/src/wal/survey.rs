//! What can be restored from a store: from the oldest backup's end to the last WAL that reaches it without a hole. Reads
//! only, and lists no more than the folders that a replay from the oldest backup would read.

use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    lsn::Lsn,
    timeline::TimelineHistory,
};

use super::gaps::Files;
use crate::{
    catalogue::{CatalogueError, list_readable},
    store::ObjectStore,
    wal::WalError,
};

/// So many missing files are named.
const NAMED: usize = 10;
/// So many backups are named after the oldest.
const NEXT: usize = 8;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The oldest backup on the history.
    pub oldest: BackupRecord,
    /// Those after it, a few.
    pub next: Vec<BackupRecord>,
    /// How many backups there are on the history.
    pub backups: usize,
    /// The archive has WAL up to here, gaps aside; none when it has nothing of what was asked for.
    pub latest: Option<Lsn>,
    /// Files that are missing before that; of many, the first ones.
    pub gaps: Vec<String>,
    /// How many they are.
    pub gap_count: usize,
}

/// Why the store could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The backups could not be read.
    #[error("looking for backups")]
    Catalogue(#[from] CatalogueError),
    /// The WAL could not be listed.
    #[error("looking for gaps in the archive")]
    Wal(#[from] WalError),
}

/// Looks through the store for what a replay along `history` up to `written` could use; `None` without a backup on it.
///
/// # Errors
/// [`SurveyError`].
pub async fn survey_archive(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    written: Lsn,
) -> Result<Option<Survey>, SurveyError> {
    let found = list_readable(store, location).await?;
    found.skip_unreadable()?;
    let mut backups = found.backups;
    backups.retain(|record| history.contains(record.timeline, record.stop_lsn));
    let count = backups.len();
    let mut backups = backups.into_iter();
    let Some(oldest) = backups.next() else { return Ok(None) };
    let next = backups.take(NEXT).collect();
    let segment_bytes = oldest.wal_segment_bytes.max(1);
    // The segment that is being written is not in the archive, nor need it be.
    let complete = Lsn(written.0 / segment_bytes * segment_bytes);
    let needed = Files::decide(history, oldest.start_lsn, complete, segment_bytes)?;
    let mut missing = needed.find_missing(store, location).await?;
    let behind = take_behind(&needed, &mut missing);
    let latest = (needed.segments() > behind).then(|| Lsn(complete.0.saturating_sub(behind * segment_bytes)));
    let (gaps, gap_count) = (missing.names().take(NAMED).collect(), missing.count());
    Ok(Some(Survey { oldest, next, backups: count, latest, gaps, gap_count }))
}

/// How many segments at the end are missing, which the archive has yet to get: they are no gap.
fn take_behind(needed: &Files, missing: &mut Files) -> u64 {
    let (mut end, before) = (needed.runs.last().map(|run| run.numbers.end), missing.segments());
    while let Some(run) = missing.runs.pop_if(|run| Some(run.numbers.end) == end) {
        end = Some(run.numbers.start);
    }
    before - missing.segments()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pgherd_core::timeline::{HistoryEntry, TimelineId};
    use proptest::prelude::*;

    use super::*;
    use crate::store::fake::FakeStore;

    const SEGMENT: u64 = 1 << 20;

    /// A timeline of 3,000 segments, another of 2,000, and the third.
    fn history() -> TimelineHistory {
        let entry = |timeline, segment: u64| HistoryEntry {
            timeline: TimelineId(timeline),
            switch_lsn: Lsn(segment * SEGMENT + 100),
        };
        TimelineHistory { timeline: TimelineId(3), ancestors: vec![entry(1, 3_000), entry(2, 5_000)] }
    }

    /// An archive from segment 100 on that lacks these.
    async fn archive(end: u64, lacks: &HashSet<u64>) -> (Files, Files) {
        let fake = FakeStore::start();
        let needed = Files::decide(&history(), Lsn(100 * SEGMENT), Lsn(end * SEGMENT), SEGMENT).unwrap();
        let segments = needed.names().filter(|name| !name.ends_with(".history"));
        let there = (100..).zip(segments).filter(|(number, _)| !lacks.contains(number));
        fake.hold(there.map(|(_, name)| fake.location().wal_key(&name)));
        fake.hold(["00000002", "00000003"].map(|name| fake.location().wal_key(&format!("{name}.history"))));
        let missing = needed.find_missing(&fake.connect().await, &fake.location()).await.unwrap();
        (needed, missing)
    }

    #[tokio::test]
    async fn of_a_long_archive_only_the_borders_of_gaps_are_kept() {
        let lacks = (2_990..3_010).chain(4_097..4_100).chain(8_990..9_000).collect();
        let (needed, mut missing) = archive(9_000, &lacks).await;
        assert_eq!((needed.runs.len(), needed.segments()), (3, 8_900));
        assert_eq!((missing.runs.len(), missing.count()), (4, 33), "{missing:?}");
        assert_eq!(take_behind(&needed, &mut missing), 10);
        assert_eq!((missing.runs.len(), missing.count()), (3, 23));
        let names: Vec<String> = missing.names().skip(9).take(2).collect();
        assert_eq!(names, ["000000010000000000000BB7", "000000020000000000000BB8"]);
    }

    #[tokio::test]
    async fn an_archive_that_has_nothing_is_behind_and_has_no_gap() {
        let (needed, mut missing) = archive(5_100, &(100..5_100).collect()).await;
        assert_eq!((take_behind(&needed, &mut missing), missing.count()), (5_000, 0));
        assert_eq!(needed.segments(), 5_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn what_is_missing_is_what_was_left_out(
            lacks in prop::collection::hash_set(2_900u64..3_100, 0..50), end in 3_000u64..3_120,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (needed, mut missing) = runtime.block_on(archive(end, &lacks));
            let segments = needed.names().filter(|name| !name.ends_with(".history"));
            let absent = (100..end).zip(segments).filter(|(number, _)| lacks.contains(number));
            let expected: Vec<String> = absent.map(|(_, name)| name).collect();
            prop_assert_eq!(missing.names().collect::<Vec<_>>(), expected);
            let behind = (100..end).rev().take_while(|number| lacks.contains(number)).count() as u64;
            prop_assert_eq!(take_behind(&needed, &mut missing), behind);
        }
    }
}

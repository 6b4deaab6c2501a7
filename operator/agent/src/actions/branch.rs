//! Where this data directory's WAL ends and how that lies to the primary's history: may it just follow, or did it leave the
//! history? Switch points decide; because two promotions can share a number and a switch point, the bytes of the WAL are
//! compared as well before anything is trusted.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use pgherd_core::{
    lsn::Lsn,
    timeline::{Relation, TimelineHistory, TimelineId},
};
use pgherd_stream::wal::segment_name;

use crate::postgres::upstream::{UpstreamError, UpstreamSession};

/// Bytes of a WAL page in every build that is packaged; with others nothing is proved, hence nothing trusted.
const PAGE: u64 = 8_192;
/// Bytes of a record's header; its CRC covers the whole record.
const RECORD_HEADER: u64 = 24;

/// The end of a data directory's WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnEnd {
    /// Its timeline and ancestors.
    pub history: TimelineHistory,
    /// WAL ends here; after a clean stop, one byte into its last record, the shutdown checkpoint.
    pub lsn: Lsn,
    /// The bytes before this position are known to be its own.
    pub known_to: Lsn,
    /// Bytes per WAL segment.
    pub segment_bytes: u64,
}

impl OwnEnd {
    /// The end of a server that was shut down cleanly with its checkpoint record at `checkpoint`.
    #[must_use]
    pub fn after_clean_stop(history: TimelineHistory, checkpoint: Lsn, segment_bytes: u64) -> Self {
        let page_end = (checkpoint.0 / PAGE + 1) * PAGE;
        let known_to = Lsn((checkpoint.0 + RECORD_HEADER).min(page_end));
        Self { history, lsn: Lsn(checkpoint.0 + 1), known_to, segment_bytes }
    }
}

/// How a data directory lies to the primary's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything that it holds is on the history.
    OnHistory,
    /// What it holds after `fork` is not.
    Diverged {
        /// The last position that both share.
        fork: Lsn,
        /// The timeline that the two share there has one number but two beginnings: pg_rewind would not see it.
        same_number: bool,
    },
}

/// Decides by the switch points. `led` says that this data directory led a term before the primary's: then it can't be on
/// the very timeline that the primary opened, even if that has the same number and beginning.
#[must_use]
pub fn decide_standing(mine: &OwnEnd, theirs: &TimelineHistory, their_lsn: Lsn, led: bool) -> Standing {
    let same_number = mine.history.timeline == theirs.timeline && (led || mine.history.ancestors != theirs.ancestors);
    let begun = mine.history.ancestors.last().map_or(Lsn::ZERO, |entry| entry.switch_lsn);
    match mine.history.compare(mine.lsn, theirs, their_lsn) {
        Relation::Diverged { at } => Standing::Diverged { fork: at, same_number },
        _ if same_number => Standing::Diverged { fork: begun, same_number },
        // Its own WAL may be newer than the answer about theirs.
        Relation::Ahead { .. } if mine.history.timeline == theirs.timeline => Standing::OnHistory,
        Relation::Ahead { bytes } => Standing::Diverged { fork: Lsn(mine.lsn.0.saturating_sub(bytes)), same_number },
        Relation::Same | Relation::Behind { .. } => Standing::OnHistory,
    }
}

/// Whether the primary holds the same bytes as this data directory just before `upto`, in the page that ends there. None
/// when one of them does not have that segment any more.
///
/// # Errors
/// [`UpstreamError`] when the primary can't be asked.
pub async fn compare_bytes(
    pgdata: &Path,
    mine: &OwnEnd,
    session: &UpstreamSession,
    theirs: &TimelineHistory,
    upto: Lsn,
) -> Result<Option<bool>, UpstreamError> {
    let Some(last) = upto.0.checked_sub(1) else { return Ok(Some(true)) };
    let from = last / PAGE * PAGE;
    let (offset, length) = (from % mine.segment_bytes.max(1), upto.0 - from);
    let name = |timeline| segment_name(timeline, Lsn(last), mine.segment_bytes);
    let read = |timeline| read_at(&pgdata.join("pg_wal").join(name(timeline)), offset, length).ok();
    let Some(own) = newest_first(&mine.history).into_iter().find_map(read) else { return Ok(None) };
    for timeline in newest_first(theirs) {
        let file = format!("pg_wal/{}", name(timeline));
        if let Some(bytes) = session.read_file(&file, offset, length).await? {
            return Ok(Some(bytes == own));
        }
    }
    Ok(None)
}

/// A segment in which a timeline was left exists under both numbers; the newer one holds the older one's bytes up to the
/// switch.
fn newest_first(history: &TimelineHistory) -> Vec<TimelineId> {
    let mut all: Vec<TimelineId> = history.ancestors.iter().map(|entry| entry.timeline).collect();
    all.push(history.timeline);
    all.reverse();
    all
}

fn read_at(path: &Path, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::HistoryEntry;

    use super::*;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let entry =
            |&(timeline, lsn): &(u32, u64)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
        TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.iter().map(entry).collect() }
    }

    fn end(history: TimelineHistory, lsn: u64) -> OwnEnd {
        OwnEnd { history, lsn: Lsn(lsn), known_to: Lsn(lsn), segment_bytes: 16 << 20 }
    }

    #[test]
    fn a_former_primary_that_ended_at_the_switch_is_on_the_history_and_one_byte_later_it_is_not() {
        let theirs = history(2, &[(1, 1_000)]);
        let decide = |lsn| decide_standing(&end(history(1, &[]), lsn), &theirs, Lsn(2_000), true);
        assert_eq!(decide(1_000), Standing::OnHistory);
        assert_eq!(decide(1_001), Standing::Diverged { fork: Lsn(1_000), same_number: false });
    }

    #[test]
    fn a_shutdown_checkpoint_beyond_the_switch_is_not_on_the_history() {
        let theirs = history(2, &[(1, 1_000)]);
        let decide = |checkpoint| {
            decide_standing(
                &OwnEnd::after_clean_stop(history(1, &[]), Lsn(checkpoint), 16 << 20),
                &theirs,
                Lsn(2_000),
                true,
            )
        };
        assert_eq!(decide(880), Standing::OnHistory);
        assert_eq!(decide(1_000), Standing::Diverged { fork: Lsn(1_000), same_number: false });
    }

    #[test]
    fn a_timeline_of_the_same_number_is_another_one_for_who_led_before() {
        let (mine, theirs) = (end(history(2, &[(1, 1_000)]), 1_500), history(2, &[(1, 1_000)]));
        let diverged = Standing::Diverged { fork: Lsn(1_000), same_number: true };
        assert_eq!(decide_standing(&mine, &theirs, Lsn(2_000), true), diverged);
        assert_eq!(decide_standing(&mine, &theirs, Lsn(1_200), true), diverged);
        assert_eq!(decide_standing(&mine, &theirs, Lsn(2_000), false), Standing::OnHistory);
        // Its position is newer than the answer.
        assert_eq!(decide_standing(&mine, &theirs, Lsn(1_400), false), Standing::OnHistory);
    }

    #[test]
    fn the_same_number_with_another_beginning_is_told_apart_without_having_led() {
        let (mine, theirs) = (end(history(2, &[(1, 900)]), 1_500), history(2, &[(1, 1_000)]));
        let diverged = Standing::Diverged { fork: Lsn(900), same_number: true };
        assert_eq!(decide_standing(&mine, &theirs, Lsn(2_000), false), diverged);
    }

    #[test]
    fn who_is_on_a_newer_timeline_than_the_primary_has_left_the_history() {
        let (mine, theirs) = (end(history(3, &[(1, 1_000), (2, 2_000)]), 2_100), history(2, &[(1, 1_000)]));
        let diverged = Standing::Diverged { fork: Lsn(2_000), same_number: false };
        assert_eq!(decide_standing(&mine, &theirs, Lsn(2_500), false), diverged);
    }

    #[test]
    fn only_the_header_of_the_shutdown_checkpoint_is_compared_and_never_beyond_its_page() {
        let own = OwnEnd::after_clean_stop(history(1, &[]), Lsn(8_000), 16 << 20);
        assert_eq!((own.lsn, own.known_to), (Lsn(8_001), Lsn(8_024)));
        let own = OwnEnd::after_clean_stop(history(1, &[]), Lsn(8_184), 16 << 20);
        assert_eq!(own.known_to, Lsn(8_192));
    }
}

//! What pg_wal holds: on which timeline a position lies, and the history files. But for what pg_rewind leaves it only reads names and history files;
//! PostgreSQL has no function that tells a standby's timeline once its receiver is gone.

use std::{fs, io, path::Path};

use pgherd_core::{
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::wal::cut_at_switch;

use crate::local_state::write_durably;

/// The timeline of the WAL just before `lsn`: the highest one of which pg_wal holds that very segment. PostgreSQL names
/// recycled segments ahead of the position, never at it, so a name at the position was written.
#[must_use]
pub fn timeline_at(pgdata: &Path, lsn: Lsn, segment_bytes: u64) -> Option<TimelineId> {
    let wanted = segment_of(lsn, segment_bytes)?;
    let entries = fs::read_dir(pgdata.join("pg_wal")).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| parse_segment_name(&name, segment_bytes))
        .filter(|(_, segment)| *segment == wanted)
        .map(|(timeline, _)| timeline)
        .max()
}

/// The segment's number that holds the byte before `lsn`.
fn segment_of(lsn: Lsn, segment_bytes: u64) -> Option<u64> {
    lsn.0.checked_sub(1)?.checked_div(segment_bytes)
}

/// The name of a segment of whatever size.
#[must_use]
pub fn is_segment_name(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

/// Timeline and segment number of `TTTTTTTTLLLLLLLLSSSSSSSS`; None for any other name.
#[must_use]
pub fn parse_segment_name(name: &str, segment_bytes: u64) -> Option<(TimelineId, u64)> {
    if !is_segment_name(name) {
        return None;
    }
    let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    let (timeline, log, segment) = (part(0..8)?, part(8..16)?, part(16..24)?);
    let per_log = (1_u64 << 32).checked_div(segment_bytes)?;
    Some((TimelineId(u32::try_from(timeline).ok()?), log.checked_mul(per_log)?.checked_add(segment)?))
}

/// The names in a folder, sorted; none where it can't be read.
#[must_use]
pub fn list(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The history of a timeline from its file in pg_wal; for timeline 1, and where the file is not there, a root.
#[must_use]
pub fn observe_history(pgdata: &Path, timeline: TimelineId) -> TimelineHistory {
    let text = fs::read_to_string(pgdata.join("pg_wal").join(format!("{timeline}.history")));
    let parsed = text.ok().and_then(|text| TimelineHistory::parse(timeline, &text).ok());
    parsed.unwrap_or_else(|| TimelineHistory::root(timeline))
}

/// True when WAL of `mine` up to `lsn` is not part of what `theirs` holds: a branch of its own. Numbers alone are not
/// compared: two crashed promotions can take the same one, so the switch points must agree as well.
#[must_use]
pub fn is_diverged(mine: &TimelineHistory, lsn: Lsn, theirs: &TimelineHistory) -> bool {
    if mine.timeline == theirs.timeline {
        return mine.ancestors != theirs.ancestors;
    }
    let shared = theirs.ancestors.iter().take_while(|entry| entry.timeline < mine.timeline);
    !theirs.contains(mine.timeline, lsn) || !shared.eq(mine.ancestors.iter())
}

/// Takes away what lies behind the position at which a timeline was left for the next one of `history`. pg_rewind leaves such
/// segments of its target, and those that it fetched: PostgreSQL would replay them where it finds the next timeline's own segment neither
/// in the archive nor here, and never get to that timeline.
///
/// # Errors
/// A file can't be read, written or removed.
pub fn cut_left_timelines(pg_wal: &Path, history: &TimelineHistory) -> io::Result<()> {
    for name in list(pg_wal).into_iter().filter(|name| is_segment_name(name)) {
        let path = pg_wal.join(&name);
        let segment_bytes = fs::metadata(&path)?.len().max(1);
        let goes_on = parse_segment_name(&name, segment_bytes).is_some_and(|(timeline, number)| {
            let end = Lsn(number.saturating_add(1).saturating_mul(segment_bytes));
            history.ancestors.iter().any(|entry| entry.timeline == timeline && end > entry.switch_lsn)
        });
        if goes_on {
            match cut_at_switch(fs::read(&path)?, &name, history) {
                Some(content) => write_durably(&path, &content)?,
                None => fs::remove_file(&path)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::HistoryEntry;

    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let entry =
            |&(timeline, lsn): &(u32, u64)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
        TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.iter().map(entry).collect() }
    }

    #[test]
    fn the_highest_timeline_at_the_position_counts_and_recycled_segments_do_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        for name in
            ["000000010000000000000003", "000000020000000000000003", "000000030000000000000004", "00000002.history"]
        {
            fs::write(folder.path().join("pg_wal").join(name), "").unwrap();
        }
        assert_eq!(timeline_at(folder.path(), Lsn(0x300_0060), SEGMENT), Some(TimelineId(2)));
        // A position at the very end of a segment belongs to that segment.
        assert_eq!(timeline_at(folder.path(), Lsn(0x400_0000), SEGMENT), Some(TimelineId(2)));
        assert_eq!(timeline_at(folder.path(), Lsn(0x900_0000), SEGMENT), None);
    }

    #[test]
    fn what_goes_on_behind_the_position_at_which_its_timeline_was_left_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000002",
        ] {
            fs::write(folder.path().join(name), [7; 1024]).unwrap();
        }
        // With segments of 1 KiB as these are: it was left within the second one.
        let read = |name: &str| fs::read(folder.path().join(name)).ok();
        let left = history(2, &[(1, 2 * 1024 + 100)]);
        let number = parse_segment_name("000000010000000000000002", 1024).unwrap().1;
        assert_eq!(number, 2);
        cut_left_timelines(folder.path(), &left).unwrap();
        assert_eq!(read("000000010000000000000001"), Some(vec![7; 1024]));
        assert_eq!(read("000000010000000000000002"), Some([vec![7; 100], vec![0; 924]].concat()));
        assert_eq!(read("000000010000000000000003"), None);
        assert_eq!(read("000000020000000000000002"), Some(vec![7; 1024]));
    }

    #[test]
    fn segment_names_are_parsed() {
        assert_eq!(parse_segment_name("0000000200000001000000FF", SEGMENT), Some((TimelineId(2), 0x1FF)));
        assert_eq!(parse_segment_name("0000000200000001000000FF.partial", SEGMENT), None);
        assert_eq!(parse_segment_name("00000002.history", SEGMENT), None);
    }

    #[test]
    fn wal_up_to_the_switch_point_is_shared_and_beyond_it_is_not() {
        let primary = history(2, &[(1, 100)]);
        assert!(!is_diverged(&history(1, &[]), Lsn(100), &primary));
        assert!(is_diverged(&history(1, &[]), Lsn(101), &primary));
    }

    #[test]
    fn two_promotions_with_the_same_number_are_told_apart() {
        assert!(is_diverged(&history(2, &[(1, 90)]), Lsn(95), &history(2, &[(1, 100)])));
        assert!(is_diverged(&history(2, &[(1, 90)]), Lsn(95), &history(3, &[(1, 100), (2, 200)])));
        assert!(!is_diverged(&history(2, &[(1, 100)]), Lsn(150), &history(3, &[(1, 100), (2, 200)])));
    }

    #[test]
    fn a_standby_that_is_ahead_of_the_primarys_timeline_is_diverged() {
        assert!(is_diverged(&history(3, &[(1, 100), (2, 200)]), Lsn(210), &history(2, &[(1, 100)])));
    }
}

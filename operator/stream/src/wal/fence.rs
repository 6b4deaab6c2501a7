//! Where an archived segment ends for whoever follows a history. A primary that was left behind may have archived its last segment
//! whole, with WAL behind the position at which its successor's timeline began. PostgreSQL asks for a segment on the newest timeline
//! first and then on each before it, as far as they go: while the successor's own segment is not in the archive yet, it would replay
//! what the history that it follows never had.

use pgherd_core::{lsn::Lsn, timeline::TimelineHistory};

use super::name::WalName;

/// What of a whole segment lies on `history`: all of it, or None where its timeline was left before it begins. One in which its timeline
/// was left has zeroes from there on, as PostgreSQL's own last segment: replay ends right at the switch.
///
/// What is no segment, and what is of no ancestor, is given back as it is.
#[must_use]
pub fn cut_at_switch(mut content: Vec<u8>, name: &str, history: &TimelineHistory) -> Option<Vec<u8>> {
    let Ok(WalName::Segment { timeline, log, segment, partial: false }) = WalName::parse(name) else {
        return Some(content);
    };
    let Some(left) = history.ancestors.iter().find(|entry| entry.timeline == timeline) else { return Some(content) };
    let begin = (u64::from(log) << 32).saturating_add(u64::from(segment).saturating_mul(content.len() as u64));
    if left.switch_lsn <= Lsn(begin) {
        return None;
    }
    let kept = usize::try_from(left.switch_lsn.0.saturating_sub(begin)).unwrap_or(usize::MAX);
    content.iter_mut().skip(kept).for_each(|byte| *byte = 0);
    Some(content)
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::{HistoryEntry, TimelineId};
    use proptest::prelude::*;

    use super::*;
    use crate::wal::segment_name;

    const SEGMENT: u64 = 1 << 20;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let entry = |&(timeline, lsn)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
        TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.iter().map(entry).collect() }
    }

    #[test]
    fn what_lies_behind_the_position_at_which_a_timeline_was_left_is_not_served() {
        let history = history(4, &[(1, 3 * SEGMENT + 100), (2, 5 * SEGMENT)]);
        let full = vec![7; SEGMENT as usize];
        let cut = |name: &str| cut_at_switch(full.clone(), name, &history);
        let mut half = vec![7; 100];
        half.resize(full.len(), 0);
        assert_eq!(cut("000000010000000000000002"), Some(full.clone()));
        assert_eq!(cut("000000010000000000000003"), Some(half));
        assert_eq!(cut("000000010000000000000004"), None);
        assert_eq!(cut("000000020000000000000004"), Some(full.clone()), "left at its very end");
        assert_eq!(cut("000000020000000000000005"), None, "left at its very begin");
        for whole in ["000000040000000000000009", "000000030000000000000009", "00000002.history"] {
            assert_eq!(cut(whole), Some(full.clone()), "{whole}");
        }
    }

    proptest! {
        #[test]
        fn exactly_the_bytes_before_the_switch_are_kept(number in 0u64..9000, switch in 1u64..9000 * SEGMENT) {
            let (history, begin) = (history(2, &[(1, switch)]), number * SEGMENT);
            let name = segment_name(TimelineId(1), Lsn(begin), SEGMENT);
            let kept = cut_at_switch(vec![1; SEGMENT as usize], &name, &history);
            let kept = kept.map_or(0, |content| content.iter().map(|byte| u64::from(*byte)).sum());
            prop_assert_eq!(kept, switch.saturating_sub(begin).min(SEGMENT));
        }
    }
}

//! Timelines: the branches of a cluster's history, each begun by a promotion.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// A timeline's number, 1 for a new cluster. Two branches can carry the same number: compare switch points as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    /// Eight hexadecimal digits, as in WAL file names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

/// One line of a `.history` file: `timeline` ended at `switch_lsn`, where the next one began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// The position at which it was left; WAL of `timeline` after it belongs to another branch.
    pub switch_lsn: Lsn,
}

/// A timeline and how it came to be: the parents with their switch points, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineHistory {
    /// The newest timeline, the one that is being written.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first.
    #[serde(default)]
    pub ancestors: Vec<HistoryEntry>,
}

/// A `.history` file had a line that is neither blank, a comment, nor `<timeline> <lsn> …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the timeline history is malformed: \"{text}\"")]
pub struct ParseHistoryError {
    /// The line's number, from 1.
    pub line: usize,
    /// The start of the line.
    pub text: String,
}

impl TimelineHistory {
    /// A history without a switch: a cluster that was never promoted.
    #[must_use]
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Parses the text of `<timeline>.history` in the form that PostgreSQL writes: `<parent>\t<lsn>\t<reason>` lines.
    ///
    /// # Errors
    /// [`ParseHistoryError`] names the first malformed line.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, ParseHistoryError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let error = || ParseHistoryError { line: index + 1, text: line.chars().take(80).collect() };
            let mut fields = trimmed.split_whitespace();
            let parent: u32 = fields.next().and_then(|f| f.parse().ok()).ok_or_else(error)?;
            let switch_lsn: Lsn = fields.next().and_then(|f| f.parse().ok()).ok_or_else(error)?;
            let ascending = ancestors.last().is_none_or(|last| last.timeline.0 < parent);
            if !ascending || parent >= timeline.0 {
                return Err(error());
            }
            ancestors.push(HistoryEntry { timeline: TimelineId(parent), switch_lsn });
        }
        Ok(Self { timeline, ancestors })
    }

    /// True when (`timeline`, `lsn`) lies on this history: on the newest timeline, or on an ancestor at or before the
    /// point where it was left.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.timeline
            || self.ancestors.iter().any(|entry| entry.timeline == timeline && lsn <= entry.switch_lsn)
    }

    /// The text of `<timeline>.history`, readable by PostgreSQL and by [`Self::parse`]. Empty without ancestors:
    /// PostgreSQL writes no file for the first timeline.
    #[must_use]
    pub fn render(&self) -> String {
        let line = |entry: &HistoryEntry| {
            format!("{}\t{}\tno recovery target specified\n", entry.timeline.0, entry.switch_lsn)
        };
        self.ancestors.iter().map(line).collect()
    }

    /// How the point `lsn` on this history lies to the point `other_lsn` on the `other` history.
    ///
    /// Compares switch points, not timeline numbers alone: two promotions can have picked the same number.
    #[must_use]
    pub fn compare(&self, lsn: Lsn, other: &Self, other_lsn: Lsn) -> Relation {
        let mut mine = self.branches(lsn).into_iter().peekable();
        let mut theirs = other.branches(other_lsn).into_iter().peekable();
        let mut common = Lsn::ZERO;
        while let (Some((my_timeline, my_end)), Some((their_timeline, their_end))) = (mine.next(), theirs.next()) {
            if my_timeline != their_timeline {
                return Relation::Diverged { at: common };
            }
            common = my_end.min(their_end);
            match (mine.peek().is_some(), theirs.peek().is_some()) {
                (false, false) => return Relation::between(my_end, their_end),
                (true, true) if my_end != their_end => return Relation::Diverged { at: common },
                (true, true) => {}
                (false, true) if my_end > their_end => return Relation::Diverged { at: common },
                (false, true) => return Relation::Behind { bytes: other_lsn.bytes_since(lsn) },
                (true, false) if their_end > my_end => return Relation::Diverged { at: common },
                (true, false) => return Relation::Ahead { bytes: lsn.bytes_since(other_lsn) },
            }
        }
        Relation::Diverged { at: common }
    }

    /// The branches up to `lsn`, oldest first, each with the position at which it ends.
    fn branches(&self, lsn: Lsn) -> Vec<(TimelineId, Lsn)> {
        let past = self.ancestors.iter().map(|entry| (entry.timeline, entry.switch_lsn));
        past.chain([(self.timeline, lsn)]).collect()
    }
}

/// How one point of WAL lies to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same point of the same branch.
    Same,
    /// It holds everything that the other holds, and more (or the same bytes on a newer timeline).
    Ahead {
        /// Bytes between the two.
        bytes: u64,
    },
    /// The other holds everything that it holds, and more.
    Behind {
        /// Bytes between the two.
        bytes: u64,
    },
    /// Each holds something that the other doesn't.
    Diverged {
        /// The last position that they share.
        at: Lsn,
    },
}

impl Relation {
    /// The relation of two points of one branch.
    fn between(lsn: Lsn, other: Lsn) -> Self {
        match lsn.cmp(&other) {
            std::cmp::Ordering::Equal => Self::Same,
            std::cmp::Ordering::Greater => Self::Ahead { bytes: lsn.bytes_since(other) },
            std::cmp::Ordering::Less => Self::Behind { bytes: other.bytes_since(lsn) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let entry = |&(timeline, lsn)| HistoryEntry { timeline: TimelineId(timeline), switch_lsn: Lsn(lsn) };
        TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.iter().map(entry).collect() }
    }

    #[test]
    fn a_replica_on_the_parent_before_the_switch_is_behind() {
        let relation = history(1, &[]).compare(Lsn(90), &history(2, &[(1, 100)]), Lsn(150));
        assert_eq!(relation, Relation::Behind { bytes: 60 });
    }

    #[test]
    fn a_replica_on_the_parent_after_the_switch_has_diverged() {
        let relation = history(1, &[]).compare(Lsn(101), &history(2, &[(1, 100)]), Lsn(150));
        assert_eq!(relation, Relation::Diverged { at: Lsn(100) });
    }

    #[test]
    fn the_same_timeline_number_with_another_switch_point_has_diverged() {
        let relation = history(2, &[(1, 90)]).compare(Lsn(200), &history(2, &[(1, 100)]), Lsn(150));
        assert_eq!(relation, Relation::Diverged { at: Lsn(90) });
    }

    #[test]
    fn siblings_have_diverged_at_the_end_of_their_parent() {
        let relation = history(2, &[(1, 100)]).compare(Lsn(110), &history(3, &[(1, 100)]), Lsn(120));
        assert_eq!(relation, Relation::Diverged { at: Lsn(100) });
    }

    #[test]
    fn a_history_file_of_postgresql_is_read_and_a_malformed_line_is_named() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2000-01-01\n";
        let parsed = TimelineHistory::parse(TimelineId(3), text);
        assert_eq!(parsed, Ok(history(3, &[(1, 0x300_0148), (2, 0x500_0000)])));
        let error = TimelineHistory::parse(TimelineId(3), "1\tnowhere\n").expect_err("malformed");
        assert_eq!(error.line, 1);
    }
}

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
}

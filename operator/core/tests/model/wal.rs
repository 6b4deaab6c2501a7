//! Write-ahead log of unique records: what is lost or comes back is seen by itself, whatever the positions say. A position
//! is a number of records. Knows nothing of members.

use std::fmt;

use pgherd_core::{
    lsn::Lsn,
    timeline::{HistoryEntry, TimelineHistory, TimelineId},
};

/// No log grows longer.
pub(crate) const LONGEST: usize = 10;
/// The first record of a promotion has this number plus its term; transactions have lower ones, from 1.
pub(crate) const PROMOTION: u8 = 8;

/// The durable WAL of a data directory. One byte a record: the timeline above, the record's number below.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wal {
    records: [u8; LONGEST],
    length: u8,
}

impl Wal {
    pub(crate) fn len(&self) -> u8 {
        self.length
    }

    pub(crate) fn is_full(&self) -> bool {
        usize::from(self.length) == LONGEST
    }

    /// The newest timeline that it holds WAL of.
    pub(crate) fn timeline(&self) -> u8 {
        self.as_slice().last().map_or(1, |record| record >> 4)
    }

    fn as_slice(&self) -> &[u8] {
        &self.records[..usize::from(self.length)]
    }

    /// Adds a record on its timeline; more than the bound would be a mistake of the model's bounds.
    pub(crate) fn push(&mut self, record: u8, timeline: u8) {
        assert!(!self.is_full() && timeline < 16 && record < 16, "the model's bounds are too wide for a log");
        self.records[usize::from(self.length)] = timeline << 4 | record;
        self.length += 1;
    }

    /// The next record of `other` after the own length.
    pub(crate) fn pull(&mut self, other: &Self) {
        let record = other.records[usize::from(self.length)];
        self.push(record & 15, record >> 4);
    }

    pub(crate) fn prefix(&self, length: u8) -> Self {
        let mut prefix = Self::default();
        while prefix.length < length.min(self.length) {
            prefix.pull(self);
        }
        prefix
    }

    /// True when the other one is the beginning of this one, byte by byte.
    pub(crate) fn starts_with(&self, other: &Self) -> bool {
        self.as_slice().starts_with(other.as_slice())
    }

    /// The transactions in it, one bit each.
    pub(crate) fn transactions(&self) -> u8 {
        let numbers = self.as_slice().iter().map(|record| record & 15);
        numbers.filter(|number| *number < PROMOTION).fold(0, |mask, number| mask | 1 << number)
    }

    /// The history as PostgreSQL knows it: numbers and switch points, not contents.
    pub(crate) fn history(&self) -> TimelineHistory {
        let mut history = TimelineHistory::root(TimelineId(1));
        for (at, record) in self.as_slice().iter().enumerate() {
            let timeline = TimelineId(u32::from(record >> 4));
            if timeline != history.timeline {
                history
                    .ancestors
                    .push(HistoryEntry { timeline: history.timeline, switch_lsn: Lsn(u64::try_from(at).unwrap_or(0)) });
                history.timeline = timeline;
            }
        }
        history
    }

    /// True when this WAL is a branch of its own beside `theirs`: the agent's check before it follows, by numbers and
    /// switch points (`wal_dir::is_diverged`).
    pub(crate) fn is_diverged(&self, theirs: &Self) -> bool {
        let (mine, theirs) = (self.history(), theirs.history());
        if mine.timeline == theirs.timeline {
            return mine.ancestors != theirs.ancestors;
        }
        let shared = theirs.ancestors.iter().take_while(|entry| entry.timeline < mine.timeline);
        !theirs.contains(mine.timeline, Lsn(u64::from(self.length))) || !shared.eq(mine.ancestors.iter())
    }

    /// True when a receiver may go on where this WAL ends: what a WAL sender asks of a start point.
    pub(crate) fn continues_in(&self, theirs: &Self) -> bool {
        self.length < theirs.length && theirs.history().contains(self.history().timeline, Lsn(u64::from(self.length)))
    }
}

impl fmt::Debug for Wal {
    /// `1:a b | 2:#2 c`: letters are transactions, `#t` is the promotion in term t.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut timeline = 0;
        for record in self.as_slice() {
            if record >> 4 != timeline {
                timeline = record >> 4;
                write!(f, "[{timeline}]")?;
            }
            match record & 15 {
                promotion @ PROMOTION.. => write!(f, "#{}", promotion - PROMOTION)?,
                transaction => write!(f, "{}", char::from(b'`' + transaction))?,
            }
        }
        Ok(())
    }
}

//! Whether a recovery to a position ends there: PostgreSQL stops behind the first record that begins at the target or later, and fails
//! ("recovery ended before configured recovery target was reached") where the archive has none. How far a segment's records go is not to be
//! seen from its name: behind a switch it is empty.

use pgherd_core::{backup::ClusterLocation, lsn::Lsn, timeline::TimelineHistory};

use super::ProofError;
use crate::{
    store::ObjectStore,
    wal::{self, decide_needed, last_record},
};

/// The archive along a history.
pub(super) struct Archive<'a> {
    pub(super) store: &'a ObjectStore,
    pub(super) location: &'a ClusterLocation,
    pub(super) history: &'a TimelineHistory,
    pub(super) segment_bytes: u64,
    /// The end of the backup: no recovery stops before it.
    pub(super) stop_lsn: Lsn,
}

impl Archive<'_> {
    /// Proves that a record begins at `target` or later, in a segment that no hole is before.
    pub(super) async fn prove_stop(&self, target: Lsn) -> Result<(), ProofError> {
        let mut begin = Lsn(target.0 - target.0 % self.segment_bytes);
        // A segment without such a record: a switch came before the target, or one long record fills it.
        while let Some(segment) = self.read(begin).await? {
            if last_record(&segment, begin).is_some_and(|last| last >= target) {
                return Ok(());
            }
            begin = Lsn(begin.0.saturating_add(self.segment_bytes));
        }
        let reachable = self.find_last(begin).await;
        Err(ProofError::NoRecord { target, timeline: self.history.timeline, reachable })
    }

    /// The last target that can be reached without the segment at `hole`; None where that cannot be told.
    pub(super) async fn find_last(&self, hole: Lsn) -> Option<Lsn> {
        let begin = Lsn(hole.0.checked_sub(self.segment_bytes)?);
        let last = last_record(&self.read(begin).await.ok().flatten()?, begin)?;
        (last > self.stop_lsn).then_some(last)
    }

    async fn read(&self, begin: Lsn) -> Result<Option<Vec<u8>>, ProofError> {
        let end = Lsn(begin.0.saturating_add(1));
        let names = decide_needed(self.history, begin, end, self.segment_bytes)?;
        match names.last() {
            Some(name) => Ok(wal::read(self.store, self.location, name).await?),
            None => Ok(None),
        }
    }
}

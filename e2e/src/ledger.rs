//! The ledger: which rows were acknowledged, which failed for certain, and which nobody can know about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::appends::ListReport;

/// What the writer answers at `GET /ledger`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerReport {
    /// Rows whose commit was acknowledged.
    pub acknowledged: u64,
    /// Rows whose connection was lost or timed out at the commit: they may be there or not.
    pub unknown: u64,
    /// Attempts that surely wrote nothing.
    pub failed: u64,
    /// The longest time between two acknowledgements since the last reset, in milliseconds.
    pub longest_gap_ms: u64,
    /// Milliseconds since the last acknowledgement.
    pub since_last_ack_ms: u64,
    /// The last error, for people.
    pub last_error: String,
    /// Commits whose wait for replicas was cancelled; they are among the unknown.
    #[serde(default)]
    pub cancelled: u64,
    /// Appends that were acknowledged.
    #[serde(default)]
    pub appends: u64,
}

/// What the writer answers at `GET /verify`: the ledger held against the table on the primary.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Rows in the table.
    pub rows: u64,
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// How many acknowledged rows are missing.
    pub lost: u64,
    /// The first of them.
    pub lost_ids: Vec<i64>,
    /// Rows in the table that were never sent.
    pub phantom: u64,
    /// Rows in the table whose attempt failed.
    #[serde(default)]
    pub failed_present: u64,
    /// Rows that a reader saw on the primary and that are not there any more.
    #[serde(default)]
    pub vanished: u64,
    /// The lists of the appending clients, if there are any.
    #[serde(default)]
    pub lists: ListReport,
}

/// What the writer remembers of its rows.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Acknowledged rows.
    pub acknowledged: BTreeSet<i64>,
    /// Rows whose attempt surely wrote nothing.
    pub failed: BTreeSet<i64>,
    /// Rows that nobody can know about.
    pub unknown: BTreeSet<i64>,
    /// Rows that a reader saw on the primary.
    pub seen: BTreeSet<i64>,
}

impl Ledger {
    /// Holds the ledger against what is there. `sent` is the highest id that was ever sent.
    #[must_use]
    pub fn check(&self, present: &BTreeSet<i64>, sent: i64) -> Verification {
        Verification {
            failed_present: self.failed.intersection(present).count() as u64,
            vanished: self.seen.difference(present).count() as u64,
            ..verify(&self.acknowledged, present, sent)
        }
    }
}

/// Holds what was acknowledged against what is there. `sent` is the highest id that was ever sent.
#[must_use]
pub fn verify(acknowledged: &BTreeSet<i64>, present: &BTreeSet<i64>, sent: i64) -> Verification {
    let lost: Vec<i64> = acknowledged.difference(present).copied().collect();
    Verification {
        rows: present.len() as u64,
        acknowledged: acknowledged.len() as u64,
        lost: lost.len() as u64,
        lost_ids: lost.into_iter().take(20).collect(),
        phantom: present.iter().filter(|id| **id < 1 || **id > sent).count() as u64,
        ..Verification::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_row_that_is_not_there_is_lost() {
        let report = verify(&BTreeSet::from([1, 2, 3]), &BTreeSet::from([1, 3, 4]), 4);
        assert_eq!((report.lost, report.lost_ids, report.phantom), (1, vec![2], 0));
    }

    #[test]
    fn a_failed_row_that_is_there_and_a_seen_row_that_is_not_are_found() {
        let set = |ids: &[i64]| ids.iter().copied().collect::<BTreeSet<i64>>();
        let ledger = Ledger { acknowledged: set(&[1]), failed: set(&[2, 3]), unknown: set(&[4]), seen: set(&[1, 4]) };
        let report = ledger.check(&set(&[1, 2]), 4);
        assert_eq!((report.lost, report.failed_present, report.vanished, report.phantom), (0, 1, 1, 0));
    }

    #[test]
    fn a_row_that_was_never_sent_is_a_phantom() {
        let report = verify(&BTreeSet::from([1]), &BTreeSet::from([1, 9]), 4);
        assert_eq!((report.lost, report.phantom), (0, 1));
    }
}

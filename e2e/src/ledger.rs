//! The ledger: which rows were acknowledged, which failed for certain, and which nobody can know about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

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
    fn a_row_that_was_never_sent_is_a_phantom() {
        let report = verify(&BTreeSet::from([1]), &BTreeSet::from([1, 9]), 4);
        assert_eq!((report.lost, report.phantom), (0, 1));
    }
}

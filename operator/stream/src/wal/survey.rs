//! What can be restored from a store: from the oldest backup's end to the last WAL that reaches it without a hole. Reads
//! only, and lists no more than the folders that a replay from the oldest backup would read.

use std::collections::HashSet;

use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    lsn::Lsn,
    timeline::TimelineHistory,
};

use super::{decide_needed, missing_segments};
use crate::{
    catalogue::{CatalogueError, list_readable},
    store::ObjectStore,
    wal::WalError,
};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The oldest backup on the history.
    pub oldest: BackupRecord,
    /// How many backups there are on the history.
    pub backups: usize,
    /// The archive has WAL up to here, gaps aside; none when it has nothing of what was asked for.
    pub latest: Option<Lsn>,
    /// Files that are missing before that.
    pub gaps: Vec<String>,
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
    let Some(oldest) = backups.into_iter().next() else { return Ok(None) };
    let segment_bytes = oldest.wal_segment_bytes.max(1);
    // The segment that is being written is not in the archive, nor need it be.
    let complete = Lsn(written.0 / segment_bytes * segment_bytes);
    let needed = decide_needed(history, oldest.start_lsn, complete, segment_bytes)?;
    let missing = missing_segments(store, location, history, oldest.start_lsn, complete, segment_bytes).await?;
    let (behind, gaps) = split_missing(&needed, missing);
    let archived = needed.iter().filter(|name| !name.ends_with(".history")).count() > behind;
    let latest = archived.then(|| Lsn(complete.0.saturating_sub(behind as u64 * segment_bytes)));
    Ok(Some(Survey { oldest, backups: count, latest, gaps }))
}

/// How many segments at the end are missing, which the archive has yet to get, and what is missing before them.
fn split_missing(needed: &[String], missing: Vec<String>) -> (usize, Vec<String>) {
    let absent: HashSet<&String> = missing.iter().collect();
    let behind: HashSet<String> =
        needed.iter().rev().take_while(|name| absent.contains(name) && !name.ends_with(".history")).cloned().collect();
    let gaps = missing.into_iter().filter(|name| !behind.contains(name)).collect();
    (behind.len(), gaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_archived_yet_is_no_gap() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let needed = names("2.history a b c d e");
        assert_eq!(split_missing(&needed, names("")), (0, names("")));
        assert_eq!(split_missing(&needed, names("d e")), (2, names("")));
        assert_eq!(split_missing(&needed, names("2.history b d e")), (2, names("2.history b")));
        assert_eq!(split_missing(&needed, names("b d")), (0, names("b d")));
        assert_eq!(split_missing(&needed, needed.clone()), (5, names("2.history")));
    }
}

//! Why a recovery can't succeed, with what would help.

use jiff::Timestamp;
use pgherd_core::{
    chain::ChainError,
    lsn::Lsn,
    timeline::{ParseHistoryError, TimelineId},
};

use crate::{catalogue::CatalogueError, wal::WalError};

/// So many missing files are named.
const NAMED: usize = 5;

/// Why it can't succeed, or why nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The backups could not be read.
    #[error("reading the backups")]
    Catalogue(#[from] CatalogueError),
    /// The archive could not be read.
    #[error("reading the WAL archive")]
    Wal(#[from] WalError),
    /// The history file is damaged.
    #[error("the archive's {name} is damaged")]
    History {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: ParseHistoryError,
    },
    /// The target's time is none.
    #[error("target.time: \"{0}\" is not a time such as 2026-11-22T02:00:00Z")]
    Time(String),
    /// It has not come yet.
    #[error("target.time: {0} is in the future")]
    Future(Timestamp),
    /// It was not written yet.
    #[error("target.lsn: {target} was never written on timeline {timeline}: its WAL ends at {written}")]
    Ahead {
        /// The target.
        target: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// Its end.
        written: Lsn,
    },
    /// Nothing that the archive has begins there or later.
    #[error(
        "target.lsn: no record of timeline {timeline} that the archive has begins at {target} or later, so a recovery would not stop \
         there{}", render_reachable(*.reachable)
    )]
    NoRecord {
        /// The target.
        target: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// The last target that can be reached, if that is known.
        reachable: Option<Lsn>,
    },
    /// No such backup.
    #[error("backupId: there is no complete backup {0} of this cluster in the object store")]
    NoSuchBackup(String),
    /// It can't be replayed into the history.
    #[error("backupId: the backup {id} is not on the history of timeline {timeline}")]
    OffHistory {
        /// The backup.
        id: String,
        /// The timeline.
        timeline: TimelineId,
    },
    /// It is too new.
    #[error("backupId: the backup {id} ended at {stop_lsn} ({stopped_at}), after the target; choose an older one")]
    AfterTarget {
        /// The backup.
        id: String,
        /// Where.
        stop_lsn: Lsn,
        /// When.
        stopped_at: String,
    },
    /// There is none.
    #[error("the object store holds no backup on the history of timeline {0}")]
    NoBackup(TimelineId),
    /// There is none so old.
    #[error("no backup is as old as the target: the oldest one ended at {stop_lsn} ({stopped_at})")]
    TooEarly {
        /// Where the oldest ended.
        stop_lsn: Lsn,
        /// When.
        stopped_at: String,
    },
    /// The backup needs others, which are not as it needs them.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It has tablespaces, which go nowhere.
    #[error("the backup {id} has tablespaces, for which an instance has no place: {}; pgherd restore by hand can place them", .names.join(", "))]
    Tablespaces {
        /// The backup, or the one that it is made on.
        id: String,
        /// Their OIDs, and where they were.
        names: Vec<String>,
    },
    /// Files are missing.
    #[error("the archive lacks {} file(s) that the recovery needs: {}{}", .names.len(), render_names(.names), render_reachable(*.reachable))]
    Missing {
        /// Their names.
        names: Vec<String>,
        /// The last target that can be reached without them, if that is known and behind the end of the backup.
        reachable: Option<Lsn>,
    },
}

fn render_names(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names.get(..NAMED).unwrap_or(names).join(", "))
}

fn render_reachable(reachable: Option<Lsn>) -> String {
    reachable.map_or(String::new(), |end| format!("; a target.lsn up to {end} can be reached"))
}

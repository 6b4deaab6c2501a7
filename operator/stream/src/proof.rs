//! Whether a cluster can be recovered to a target from what its store holds, before anything is given up for it: by which
//! backup, along which history, and with every WAL file in between. Reads only.

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupRecord, ClusterLocation},
    chain::{ChainError, resolve_chain},
    instance::RecoveryTarget,
    lsn::Lsn,
    timeline::{ParseHistoryError, TimelineHistory, TimelineId},
};

use crate::{
    catalogue::{CatalogueError, list_backups},
    store::ObjectStore,
    wal::{self, WalError, missing_segments},
};

/// So many missing files are named.
const NAMED: usize = 5;

/// What is asked.
#[derive(Clone, Debug)]
pub struct RecoveryQuestion {
    /// The backup; None for the newest one from before the target.
    pub backup_id: Option<String>,
    /// Where recovery stops.
    pub target: RecoveryTarget,
    /// Whose history it follows.
    pub timeline: TimelineId,
    /// Up to where WAL was written on that timeline; None for whatever the archive has of it.
    pub written: Option<Lsn>,
    /// Now.
    pub now: Timestamp,
}

/// A recovery that lacks nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenRecovery {
    /// The backup that it begins with.
    pub backup: BackupRecord,
    /// The history that it follows.
    pub history: TimelineHistory,
    /// Room that the restore needs, in bytes: a chain is put together beside its members.
    pub needed_bytes: u64,
}

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
    /// Files are missing.
    #[error("the archive lacks {} file(s) that the recovery needs: {}", .0.len(), render_names(.0))]
    Missing(Vec<String>),
}

fn render_names(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names.get(..NAMED).unwrap_or(names).join(", "))
}

/// Proves a recovery, or names what is in its way.
///
/// # Errors
/// [`ProofError`].
pub async fn prove_recovery(
    store: &ObjectStore,
    location: &ClusterLocation,
    question: &RecoveryQuestion,
) -> Result<ProvenRecovery, ProofError> {
    let target = Target::parse(question)?;
    let history = read_history(store, location, question.timeline).await?;
    let all = list_backups(store, location).await?;
    if let Some(id) = &question.backup_id
        && !all.iter().any(|backup| backup.id == *id)
    {
        return Err(ProofError::NoSuchBackup(id.clone()));
    }
    let on_history = |backup: &&BackupRecord| history.contains(backup.timeline, backup.stop_lsn);
    let backups: Vec<BackupRecord> = all.iter().filter(on_history).cloned().collect();
    let backup = choose(&backups, question, &target)?.clone();
    let needed_bytes = measure(&backup, &all)?;
    let written = match question.written {
        Some(written) => written,
        None => observe_end(store, location, &history, backup.wal_segment_bytes).await?,
    };
    let to = target.replay_to(&backup, &backups, written);
    if to > written {
        return Err(ProofError::Ahead { target: to, timeline: question.timeline, written });
    }
    let missing = missing_segments(store, location, &history, backup.start_lsn, to, backup.wal_segment_bytes).await?;
    if !missing.is_empty() {
        return Err(ProofError::Missing(missing));
    }
    Ok(ProvenRecovery { backup, history, needed_bytes })
}

/// A target that can be compared with backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Time(Timestamp),
    Lsn(Lsn),
    EndOfBackup,
    /// The end, or a name: nobody knows where it lies.
    Open,
}

impl Target {
    fn parse(question: &RecoveryQuestion) -> Result<Self, ProofError> {
        Ok(match &question.target {
            RecoveryTarget::Time(text) => {
                let time: Timestamp = text.parse().map_err(|_| ProofError::Time(text.clone()))?;
                if time > question.now {
                    return Err(ProofError::Future(time));
                }
                Self::Time(time)
            }
            RecoveryTarget::Lsn(lsn) => Self::Lsn(*lsn),
            RecoveryTarget::Immediate => Self::EndOfBackup,
            RecoveryTarget::Latest | RecoveryTarget::Name(_) => Self::Open,
        })
    }

    /// Recovery from this backup can stop there: it is consistent by then.
    fn is_after(self, backup: &BackupRecord) -> bool {
        match self {
            Self::Time(time) => backup.stopped_at.parse::<Timestamp>().is_ok_and(|stopped| stopped <= time),
            Self::Lsn(lsn) => backup.stop_lsn <= lsn,
            Self::EndOfBackup | Self::Open => true,
        }
    }

    /// WAL up to here is read at most. What was committed before a time lies before the end of any backup that began later.
    fn replay_to(self, backup: &BackupRecord, backups: &[BackupRecord], written: Lsn) -> Lsn {
        match self {
            Self::Lsn(lsn) => lsn,
            Self::EndOfBackup => backup.stop_lsn,
            Self::Open => written,
            Self::Time(time) => {
                let begun_later =
                    |later: &&BackupRecord| later.started_at.parse::<Timestamp>().is_ok_and(|began| began > time);
                backups.iter().filter(begun_later).map(|later| later.stop_lsn).min().unwrap_or(written).min(written)
            }
        }
    }
}

fn choose<'a>(
    backups: &'a [BackupRecord],
    question: &RecoveryQuestion,
    target: &Target,
) -> Result<&'a BackupRecord, ProofError> {
    let timeline = question.timeline;
    if let Some(id) = &question.backup_id {
        let named = backups.iter().find(|backup| backup.id == *id);
        let named = named.ok_or_else(|| ProofError::OffHistory { id: id.clone(), timeline })?;
        let (stop_lsn, stopped_at) = (named.stop_lsn, named.stopped_at.clone());
        return if target.is_after(named) {
            Ok(named)
        } else {
            Err(ProofError::AfterTarget { id: id.clone(), stop_lsn, stopped_at })
        };
    }
    let oldest = backups.first().ok_or(ProofError::NoBackup(timeline))?;
    backups
        .iter()
        .rev()
        .find(|backup| target.is_after(backup))
        .ok_or_else(|| ProofError::TooEarly { stop_lsn: oldest.stop_lsn, stopped_at: oldest.stopped_at.clone() })
}

/// What a restore writes, in bytes: all that the backup needs, and what is made of several.
fn measure(backup: &BackupRecord, all: &[BackupRecord]) -> Result<u64, ProofError> {
    let chain = resolve_chain(all, &backup.id)?;
    let bytes = chain.iter().fold(0u64, |sum, member| sum.saturating_add(member.tar_bytes));
    Ok(if chain.len() > 1 { bytes.saturating_mul(2) } else { bytes })
}

/// PostgreSQL asks for the file of the timeline that it is told to follow, whatever else it needs.
async fn read_history(
    store: &ObjectStore,
    location: &ClusterLocation,
    timeline: TimelineId,
) -> Result<TimelineHistory, ProofError> {
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = format!("{timeline}.history");
    let Some(content) = wal::read(store, location, &name).await? else {
        return Err(ProofError::Missing(vec![name]));
    };
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
        .map_err(|source| ProofError::History { name, source })
}

/// The end of the last segment that the archive has of the newest timeline; the begin of that timeline where it has none.
async fn observe_end(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    segment_bytes: u64,
) -> Result<Lsn, ProofError> {
    let begin = history.ancestors.last().map_or(Lsn::ZERO, |entry| entry.switch_lsn);
    let folder = format!("{}/wal/{}/", location.root(), history.timeline);
    let keys = store.list(&folder).await.map_err(WalError::from)?;
    let names = keys.iter().filter_map(|(key, _)| key.rsplit('/').next()?.split('.').next());
    let ends = names.filter_map(|name| segment_end(name, segment_bytes));
    Ok(ends.max().unwrap_or(begin).max(begin))
}

fn segment_end(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let (log, segment) = (name.get(8..16)?, name.get(16..24).filter(|_| name.len() == 24)?);
    let (log, segment) = (u64::from_str_radix(log, 16).ok()?, u64::from_str_radix(segment, 16).ok()?);
    let start = (log << 32).checked_add(segment.checked_mul(segment_bytes)?)?;
    start.checked_add(segment_bytes).map(Lsn)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_listed_ends_somewhere_or_nowhere(name in "[0-9A-Fa-f.+-]{0,30}|\\PC{0,30}", power in 0u32..64) {
            let end = segment_end(&name, 1 << power);
            prop_assert!(end.is_none_or(|end| name.len() == 24 && end.0 >= 1 << power));
        }
    }

    fn backup(hour: u32, lsn: u64) -> BackupRecord {
        let json = format!(
            r#"{{"format":1,"id":"b{hour}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,
                "startLsn":"{}","stopLsn":"{}","startedAt":"2026-11-22T{hour:02}:00:00Z",
                "stoppedAt":"2026-11-22T{hour:02}:10:00Z","archives":[],"manifestSha256":"","tarBytes":0,
                "storedBytes":0,"walSegmentBytes":16777216}}"#,
            Lsn(lsn),
            Lsn(lsn + 100)
        );
        serde_json::from_str(&json).expect("a record")
    }

    fn question(target: RecoveryTarget, backup_id: Option<&str>) -> RecoveryQuestion {
        RecoveryQuestion {
            backup_id: backup_id.map(str::to_owned),
            target,
            timeline: TimelineId(1),
            written: None,
            now: "2026-11-22T12:00:00Z".parse().unwrap(),
        }
    }

    fn chosen(target: RecoveryTarget, backup_id: Option<&str>) -> Result<String, String> {
        let backups = [backup(1, 1_000), backup(5, 5_000), backup(9, 9_000)];
        let question = question(target, backup_id);
        let target = Target::parse(&question).map_err(|error| error.to_string())?;
        choose(&backups, &question, &target).map(|found| found.id.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_newest_backup_from_before_the_target_is_chosen() {
        let time = |text: &str| RecoveryTarget::Time(format!("2026-11-22T{text}:00Z"));
        assert_eq!(chosen(time("05:10"), None).unwrap(), "b5");
        assert_eq!(chosen(time("05:09"), None).unwrap(), "b1");
        assert!(chosen(time("01:00"), None).unwrap_err().contains("2026-11-22T01:10:00Z"));
        assert!(chosen(time("13:00"), None).unwrap_err().contains("future"));
        assert!(chosen(RecoveryTarget::Time("yesterday".to_owned()), None).unwrap_err().contains("target.time"));
        assert_eq!(chosen(RecoveryTarget::Lsn(Lsn(5_099)), None).unwrap(), "b1");
        assert_eq!(chosen(RecoveryTarget::Latest, None).unwrap(), "b9");
        assert_eq!(chosen(RecoveryTarget::Immediate, Some("b1")).unwrap(), "b1");
        assert!(chosen(RecoveryTarget::Lsn(Lsn(5_099)), Some("b5")).unwrap_err().contains("an older one"));
        assert!(chosen(RecoveryTarget::Latest, Some("b7")).unwrap_err().contains("b7"));
    }

    #[test]
    fn a_hole_after_the_next_backup_is_of_no_concern() {
        let backups = [backup(1, 1_000), backup(5, 5_000), backup(9, 9_000)];
        let to = |hour: &str| {
            Target::Time(format!("2026-11-22T{hour}:30:00Z").parse().unwrap()).replay_to(
                &backups[0],
                &backups,
                Lsn(20_000),
            )
        };
        assert_eq!(to("03"), Lsn(5_100));
        assert_eq!(to("08"), Lsn(9_100));
        assert_eq!(to("10"), Lsn(20_000));
    }

    #[test]
    fn a_segment_ends_where_the_next_begins() {
        assert_eq!(segment_end("0000000200000001000000FF", 16 << 20), Some(Lsn(0x2_0000_0000)));
        assert_eq!(segment_end("00000002", 16 << 20), None);
    }
}

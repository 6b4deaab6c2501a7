//! Where a recovery stops, compared with backups.

use jiff::Timestamp;
use pgherd_core::{backup::BackupRecord, instance::RecoveryTarget, lsn::Lsn};

use super::{ProofError, RecoveryQuestion};

/// A target that can be compared with backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Time(Timestamp),
    Lsn(Lsn),
    EndOfBackup,
    /// The end, or a name: nobody knows where it lies.
    Open,
}

impl Target {
    /// Reads the target of a question: a time must be one, and past.
    pub(super) fn parse(question: &RecoveryQuestion) -> Result<Self, ProofError> {
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
    pub(super) fn is_after(self, backup: &BackupRecord) -> bool {
        match self {
            Self::Time(time) => backup.stopped_at.parse::<Timestamp>().is_ok_and(|stopped| stopped <= time),
            Self::Lsn(lsn) => backup.stop_lsn <= lsn,
            Self::EndOfBackup | Self::Open => true,
        }
    }

    /// WAL up to here is read at most. What was committed before a time lies before the end of any backup that began later.
    pub(super) fn replay_to(self, backup: &BackupRecord, backups: &[BackupRecord], written: Lsn) -> Lsn {
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

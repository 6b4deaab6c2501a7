//! Why a backup was not found good, in a word and a sentence, and whether it is the backup's own fault. Pure.

use pgherd_agent::postgres::sql::SqlError;
use pgherd_stream::{catalogue::CatalogueError, restore::RestoreError, store::StoreError, wal::WalError};

use super::{VerifyError, outcome::VerifyFailure};
use crate::{jobs::backup::failure::describe_store_failure, telemetry::error_chain};

/// Who is to blame.
enum Blame {
    /// The backup's objects: it does not come back.
    Data,
    /// The WAL beside it, or what is in it.
    Content,
    /// Something else: it is not known whether the backup is good.
    Circumstances,
}

/// What the controller is told.
#[must_use]
pub fn describe_failure(error: &VerifyError) -> VerifyFailure {
    let (reason, blame) = match error {
        VerifyError::Restore(error) => judge_restore(error),
        VerifyError::MissingWal(_) => ("WalMissing".to_owned(), Blame::Content),
        VerifyError::Wal { .. } => ("WalDamaged".to_owned(), Blame::Content),
        VerifyError::Archive(error) => match &**error {
            WalError::Store(error) => judge_store(error),
            _ => ("ArchiveUnreadable".to_owned(), Blame::Circumstances),
        },
        VerifyError::Start(_) => ("DoesNotStart".to_owned(), Blame::Data),
        VerifyError::Amcheck(_) => ("AmcheckFailed".to_owned(), Blame::Content),
        VerifyError::NoDatabase(_) => ("NoDatabase".to_owned(), Blame::Content),
        VerifyError::Statement { .. } => ("StatementFailed".to_owned(), Blame::Content),
        VerifyError::Sql(SqlError::Timeout) => ("ServerSlow".to_owned(), Blame::Circumstances),
        VerifyError::Sql(_) => ("ServerFailed".to_owned(), Blame::Content),
        VerifyError::Version { .. } => ("WrongVersion".to_owned(), Blame::Circumstances),
        VerifyError::Cancelled => ("Cancelled".to_owned(), Blame::Circumstances),
        VerifyError::Program(_) | VerifyError::File { .. } => ("VerificationFailed".to_owned(), Blame::Circumstances),
    };
    VerifyFailure {
        reason,
        error: error_chain(error),
        blames_backup: !matches!(blame, Blame::Circumstances),
        unusable: matches!(blame, Blame::Data),
    }
}

fn judge_restore(error: &RestoreError) -> (String, Blame) {
    match error {
        RestoreError::Store(error) | RestoreError::Catalogue(CatalogueError::Store(error)) => judge_store(error),
        RestoreError::Index(_)
        | RestoreError::Manifest(_)
        | RestoreError::Tar(_)
        | RestoreError::Frame { .. }
        | RestoreError::Damaged { .. }
        | RestoreError::Inconsistent(_)
        | RestoreError::MissingObject(_)
        | RestoreError::Chain(_)
        | RestoreError::Catalogue(CatalogueError::Record { .. }) => ("Damaged".to_owned(), Blame::Data),
        RestoreError::BeingDeleted(_) | RestoreError::Deleted(_) => ("BackupGone".to_owned(), Blame::Circumstances),
        RestoreError::NoSpace { .. } => ("NoSpace".to_owned(), Blame::Circumstances),
        RestoreError::Cancelled => ("Cancelled".to_owned(), Blame::Circumstances),
        _ => ("RestoreFailed".to_owned(), Blame::Circumstances),
    }
}

fn judge_store(error: &StoreError) -> (String, Blame) {
    match error {
        StoreError::Damaged { .. } | StoreError::NoSuchObject(_) => ("Damaged".to_owned(), Blame::Data),
        // The object is shorter than its index says.
        StoreError::Other { code, .. } if code == "InvalidRange" || code == "416" => {
            ("Damaged".to_owned(), Blame::Data)
        }
        error => (describe_store_failure(error).reason, Blame::Circumstances),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_says_nothing_of_the_backup() {
        let away = StoreError::NoSuchBucket("backups".to_owned());
        let failure = describe_failure(&VerifyError::Restore(RestoreError::Store(away)));
        assert_eq!((failure.reason.as_str(), failure.blames_backup), ("NoSuchBucket", false));
        let full = VerifyError::Restore(RestoreError::NoSpace { needed: 2, free: 1 });
        assert!(!describe_failure(&full).blames_backup);
    }

    #[test]
    fn what_is_damaged_missing_or_false_is_the_backups_fault_and_is_named() {
        let lost = VerifyError::MissingWal(vec!["000000010000000000000003".to_owned()]);
        let failure = describe_failure(&lost);
        assert!(failure.blames_backup && !failure.unusable && failure.error.contains("000000010000000000000003"));
        let damaged = RestoreError::MissingObject("p/base.tar.zst.0000".to_owned());
        let failure = describe_failure(&VerifyError::Restore(damaged));
        assert!(failure.unusable && failure.error.contains("base.tar.zst.0000"), "{}", failure.error);
        let statement = VerifyError::Statement { statement: "select false".into(), problem: "returned false".into() };
        let failure = describe_failure(&statement);
        assert_eq!(
            (failure.reason.as_str(), failure.error.as_str()),
            ("StatementFailed", "\"select false\" returned false")
        );
    }
}

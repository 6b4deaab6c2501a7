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

/// What PostgreSQL says at FATAL or PANIC of data that it cannot start on.
const NAMES_DATA: [&str; 13] = [
    "invalid checkpoint record",
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
    "could not find redo location",
    "WAL ends before",
    "control file contains invalid",
    "WAL contains references to invalid pages",
    "invalid data in file",
    "invalid page in block",
    "incorrect checksum",
    "incorrect resource manager data checksum",
    "page verification failed",
    "database files are incompatible",
];

/// The same words may follow from these, of which the data knows nothing.
const NAMES_MACHINE: [&str; 6] = [
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "Cannot allocate memory",
    "Too many open files",
    "Permission denied",
];

/// Whether a server that ended named the data as the reason, and not the machine. Anything else says nothing of it.
fn names_data(words: &str) -> bool {
    let mut severe = words.split("; ").filter(|line| line.contains("FATAL:") || line.contains("PANIC:"));
    !names_machine(words) && severe.any(|line| NAMES_DATA.iter().any(|phrase| line.contains(phrase)))
}

fn names_machine(words: &str) -> bool {
    NAMES_MACHINE.iter().any(|phrase| words.contains(phrase))
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
        // The image, the node and the scratch space can all keep a good backup from starting.
        VerifyError::Start(words) if names_data(words) => ("DoesNotStart".to_owned(), Blame::Data),
        VerifyError::Start(_) | VerifyError::Refused(_) => ("ServerNotStarted".to_owned(), Blame::Circumstances),
        VerifyError::Files(words) if names_machine(words) => ("VerificationFailed".to_owned(), Blame::Circumstances),
        VerifyError::Files(_) => ("VerifyBackupFailed".to_owned(), Blame::Content),
        VerifyError::Short { .. } => ("WalDamaged".to_owned(), Blame::Content),
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
    fn what_pg_verifybackup_could_not_read_says_nothing_of_the_backup() {
        let judge = |words: &str| describe_failure(&VerifyError::Files(words.to_owned()));
        let read = judge("pg_verifybackup: error: could not read file \"base/5/1259\": Input/output error");
        assert!(!read.blames_backup, "{read:?}");
        let found = judge("pg_verifybackup: error: WAL parsing failed for timeline 1");
        assert!(found.blames_backup && !found.unusable && found.reason == "VerifyBackupFailed", "{found:?}");
    }

    #[test]
    fn a_server_that_does_not_start_condemns_a_backup_only_if_it_names_the_data() {
        let judge = |words: &str| describe_failure(&VerifyError::Start(words.to_owned()));
        for words in [
            "FATAL:  could not access file \"timescaledb\": No such file or directory (exit status: 1)",
            "FATAL:  could not write to file \"pg_wal/xlogtemp.5\": No space left on device",
            "PANIC:  could not read file: Input/output error; PANIC:  could not locate a valid checkpoint record",
            "FATAL:  recovery aborted because of insufficient parameter settings",
            "LOG:  startup process (PID 5) was terminated by signal 9: Killed; LOG:  invalid checkpoint record",
            " (signal: 9 (SIGKILL))",
        ] {
            let failure = judge(words);
            assert!(!failure.blames_backup && !failure.unusable, "{words}");
            assert_eq!(failure.reason, "ServerNotStarted");
        }
        for words in [
            "PANIC:  could not locate a valid checkpoint record at 0/3000028 (signal: 6 (SIGABRT))",
            "FATAL:  could not locate required checkpoint record at 0/3000028",
            "FATAL:  could not find redo location 0/2 referenced by checkpoint record at 0/3",
            "FATAL:  WAL ends before end of online backup",
            "PANIC:  WAL contains references to invalid pages",
            "FATAL:  incorrect checksum in control file",
            "FATAL:  database files are incompatible with server",
        ] {
            let failure = judge(words);
            assert!(failure.blames_backup && failure.unusable, "{words}");
            assert_eq!(failure.reason, "DoesNotStart");
        }
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

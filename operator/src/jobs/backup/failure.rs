//! Why a backup failed, in a word and a sentence, and whether another attempt may help. Pure.

use pgherd_stream::{
    backup::BackupError, base_backup::BaseBackupError, local::LocalError, replication::ReplicationError,
    store::StoreError,
};

use super::outcome::BackupFailure;
use crate::telemetry::error_chain;

/// What the controller is told. What only the user can change is not tried again.
#[must_use]
pub fn describe_failure(error: &BackupError) -> BackupFailure {
    let (reason, retry) = match error {
        BackupError::Store(error) => return describe_store_failure(error),
        BackupError::Key(_) => ("EncryptionKey", false),
        BackupError::Replication(error)
        | BackupError::BaseBackup(BaseBackupError::Replication(error))
        | BackupError::Local(LocalError::Session(error)) => (name_source_error(error), true),
        BackupError::BaseBackup(BaseBackupError::CorruptSource(_))
        | BackupError::Local(LocalError::CorruptPage { .. }) => ("CorruptSource", true),
        BackupError::SlotLost(_) => ("SourceLost", true),
        BackupError::WrongSystem { .. } => ("WrongSystem", false),
        BackupError::Cancelled => ("Cancelled", true),
        _ => ("BackupFailed", true),
    };
    BackupFailure { reason: reason.to_owned(), error: error_chain(error), retry }
}

/// The same for the store alone.
#[must_use]
pub fn describe_store_failure(error: &StoreError) -> BackupFailure {
    let (reason, retry) = match error {
        StoreError::Config(_) => ("StoreConfig", false),
        StoreError::CredentialsFile { .. } => ("CredentialsUnreadable", false),
        StoreError::WrongCredentials { .. } => ("WrongCredentials", false),
        StoreError::NoSuchBucket(_) => ("NoSuchBucket", false),
        StoreError::Tls { .. } => ("StoreTls", false),
        StoreError::Unreachable { .. } => ("StoreUnreachable", true),
        _ => ("StoreFailed", true),
    };
    // These two have the innermost cause in their text; the chain between would only repeat it.
    let text = match error {
        StoreError::Tls { .. } | StoreError::Unreachable { .. } => error.to_string(),
        _ => error_chain(error),
    };
    BackupFailure { reason: reason.to_owned(), error: text, retry }
}

fn name_source_error(error: &ReplicationError) -> &'static str {
    match error {
        ReplicationError::Server(_) => "SourceRefused",
        ReplicationError::Tls(_) | ReplicationError::Handshake { .. } | ReplicationError::TlsRefused(_) => "SourceTls",
        _ => "SourceLost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_user_can_change_is_not_tried_again() {
        let credentials =
            StoreError::WrongCredentials { what: "HeadBucket".to_owned(), code: "AccessDenied".to_owned() };
        let failure = describe_failure(&BackupError::Store(credentials));
        assert_eq!((failure.reason.as_str(), failure.retry), ("WrongCredentials", false));
        let failure = describe_failure(&BackupError::Store(StoreError::NoSuchBucket("backups".to_owned())));
        assert_eq!((failure.reason.as_str(), failure.retry), ("NoSuchBucket", false));
        assert!(failure.error.contains("backups"), "{}", failure.error);
    }

    #[test]
    fn a_lost_source_and_an_unreachable_store_are_tried_again() {
        let lost =
            BackupError::BaseBackup(BaseBackupError::Replication(ReplicationError::UnexpectedEnd("a base backup")));
        let failure = describe_failure(&lost);
        assert_eq!((failure.reason.as_str(), failure.retry), ("SourceLost", true));
        let unreachable = StoreError::Unreachable {
            endpoint: "https://minio:9000".to_owned(),
            what: "HeadBucket".to_owned(),
            reason: "connection refused".to_owned(),
            source: "dispatch failure".into(),
        };
        let failure = describe_failure(&BackupError::Store(unreachable));
        assert_eq!((failure.reason.as_str(), failure.retry), ("StoreUnreachable", true));
        assert!(!failure.error.contains("dispatch failure"), "{}", failure.error);
    }
}

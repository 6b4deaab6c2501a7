//! Errors of the object store, told apart so that a condition can name the cause.

use std::{error::Error, io, path::PathBuf};

/// What the SDK reported.
pub type StoreSource = Box<dyn Error + Send + Sync>;

/// Why the object store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The endpoint, region or CA file is unusable.
    #[error("the object store's configuration is unusable: {0}")]
    Config(String),
    /// A credentials file is missing or unreadable.
    #[error("reading the credentials file {}", path.display())]
    CredentialsFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The store does not accept the credentials, or they lack a right.
    #[error("the object store refuses the credentials ({code}) for {what}")]
    WrongCredentials {
        /// What was asked.
        what: String,
        /// The store's code, like `InvalidAccessKeyId`, `SignatureDoesNotMatch`, `AccessDenied`.
        code: String,
    },
    /// There is no such bucket.
    #[error("the bucket \"{0}\" does not exist")]
    NoSuchBucket(String),
    /// The object is not there where it must be.
    #[error("the object {0} does not exist")]
    NoSuchObject(String),
    /// No answer: name not resolved, connection refused, timeout.
    #[error("the object store at {endpoint} cannot be reached for {what}: {reason}")]
    Unreachable {
        /// Its endpoint.
        endpoint: String,
        /// What was asked.
        what: String,
        /// The innermost cause, in short.
        reason: String,
        /// What the SDK reported.
        #[source]
        source: StoreSource,
    },
    /// The TLS handshake failed: unknown CA, wrong name, expired.
    #[error("TLS with the object store at {endpoint} failed: {reason}")]
    Tls {
        /// Its endpoint.
        endpoint: String,
        /// The innermost cause, in short.
        reason: String,
        /// What the SDK reported.
        #[source]
        source: StoreSource,
    },
    /// Anything else that the store answered.
    #[error("the object store answered {what} with {code}: {message}")]
    Other {
        /// What was asked.
        what: String,
        /// The store's code or the HTTP status.
        code: String,
        /// The store's message.
        message: String,
        /// The store is overloaded, fails by itself, or got something else than was sent: the same request may be answered otherwise.
        passing: bool,
    },
    /// An object has other bytes or another size than it must have.
    #[error("the object {key} is damaged: {problem}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

impl StoreError {
    /// The same request may succeed a little later, without anybody's doing.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Other { passing: true, .. })
    }
}

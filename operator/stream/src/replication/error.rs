//! Errors of the replication protocol. The server's own errors keep their SQLSTATE.

use std::{io, path::PathBuf, time::Duration};

use pgherd_core::timeline::ParseHistoryError;

use crate::tls::TlsError;

/// An error that PostgreSQL reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{severity}: {message} (SQLSTATE {code})")]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`, not translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The detail, if any.
    pub detail: Option<String>,
    /// The hint, if any.
    pub hint: Option<String>,
}

/// Why a replication connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The host could not be reached.
    #[error("connecting to {address}")]
    Connect {
        /// Host and port, or the socket's path.
        address: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Connecting or an answer took too long.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The bound.
        after: Duration,
    },
    /// The TLS files are unusable.
    #[error("preparing TLS")]
    Tls(#[from] TlsError),
    /// The TLS handshake failed: wrong name, unknown CA, refused client certificate.
    #[error("TLS handshake with {address}")]
    Handshake {
        /// Host and port.
        address: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The server does not speak TLS but TLS is demanded.
    #[error("the server at {0} refuses TLS")]
    TlsRefused(String),
    /// The server asked for a way of authentication that is not offered here, like a cleartext password.
    #[error("the server asks for {0} authentication, which is refused")]
    AuthenticationRefused(&'static str),
    /// The password file could not be read.
    #[error("reading the password file {}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The SCRAM exchange failed.
    #[error("SCRAM authentication")]
    Scram(#[source] io::Error),
    /// Reading from or writing to the connection failed.
    #[error("talking to the server")]
    Io(#[from] io::Error),
    /// The connection ended where the protocol does not end.
    #[error("the server closed the connection in the middle of {0}")]
    UnexpectedEnd(&'static str),
    /// A message was longer than anything the protocol needs here.
    #[error("a message of {length} bytes exceeds the limit of {limit}")]
    MessageTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The server's answer was not understood.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The server reported an error.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// The timeline history sent by the server was malformed.
    #[error("parsing the timeline history")]
    History(#[from] ParseHistoryError),
}

impl From<ServerError> for ReplicationError {
    fn from(error: ServerError) -> Self {
        Self::Server(Box::new(error))
    }
}

impl ReplicationError {
    /// The server's SQLSTATE, if the server reported this error.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.code),
            _ => None,
        }
    }
}

//! An ordinary session: SQL by the simple protocol, for what the replication protocol has no command for.

use std::time::Duration;

use super::{
    ConnectOptions, ReplicationError, Row,
    connect::{self, Session, SessionKind},
    query::query_within,
    say_goodbye, watch,
};

/// A session in which SQL runs. Dropping it closes it.
#[derive(Debug)]
pub struct SqlClient {
    wire: Session,
}

impl SqlClient {
    /// Connects and authenticates within `connect_timeout`, to the database that is named or else to `postgres`.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn connect(options: &ConnectOptions) -> Result<Self, ReplicationError> {
        Ok(Self { wire: connect::connect(options, SessionKind::Sql).await? })
    }

    /// Runs SQL and returns its rows. After a timeout the session is of no more use.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub(crate) async fn query(&mut self, sql: &str, within: Duration) -> Result<Vec<Row>, ReplicationError> {
        query_within(&mut self.wire, sql, within).await
    }

    /// Runs SQL that has one row at least, and returns the first.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub(crate) async fn query_row(&mut self, sql: &str, within: Duration) -> Result<Row, ReplicationError> {
        let rows = self.query(sql, within).await?;
        rows.into_iter().next().ok_or_else(|| ReplicationError::Protocol(format!("{sql} was answered without a row")))
    }

    /// Waits while nothing is asked, and returns when the session is over, with the reason. Safe to cancel.
    pub(crate) async fn watch(&mut self) -> ReplicationError {
        watch(&mut self.wire).await
    }

    /// Says goodbye and closes the connection.
    pub async fn close(self) {
        say_goodbye(self.wire).await;
    }
}

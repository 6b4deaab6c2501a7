//! The agent's own session: superuser over the unix socket by peer authentication, with a fixed search_path, so that no
//! object of a tenant is ever called by name. Every statement is bounded in time: a frozen server is an answer too.

use std::{path::Path, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, NoTls, Row, types::ToSql};

/// Classes of SQLSTATE that pass: insufficient resources, and operator intervention, to which "the database system is starting up"
/// (57P03) and everything else belongs that a server says before it lets anybody in, or while it ends.
const PASSING: [&str; 2] = ["53", "57"];

/// The local superuser.
pub const SUPERUSER: &str = "postgres";

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// No session.
    #[error("failed to connect to PostgreSQL: {}", describe(.0))]
    Connect(#[source] tokio_postgres::Error),
    /// The statement failed.
    #[error("failed to run \"{statement}\": {}", describe(.source))]
    Statement {
        /// Its beginning, without values.
        statement: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("PostgreSQL did not answer in time")]
    Timeout,
}

impl SqlError {
    /// What the server said where it refused, and will refuse again: a database or role that is not there, a locale that the operating
    /// system lacks. None for what passes, and where no server answered.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        let (Self::Connect(source) | Self::Statement { source, .. }) = self else { return None };
        let said = source.as_db_error()?;
        let passes = PASSING.iter().any(|class| said.code().code().starts_with(class));
        (!passes).then(|| said.message())
    }
}

/// tokio-postgres prints only "db error"; the server's own words are in the source.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned())
}

/// A session; closed when dropped.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    patience: Duration,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects to `database`; the connection and every statement on it may take up to `patience`.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn connect(socket_dir: &Path, port: u16, database: &str, patience: Duration) -> Result<Self, SqlError> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(socket_dir).port(port).user(SUPERUSER).dbname(database).application_name("pgherd");
        config.options("-csearch_path=pg_catalog").connect_timeout(patience);
        let connect = timeout(patience, config.connect(NoTls)).await.map_err(|_| SqlError::Timeout)?;
        let (client, connection) = connect.map_err(SqlError::Connect)?;
        Ok(Self::from_parts(client, async move { drop(connection.await) }, patience))
    }

    /// Wraps a client whose connection is driven by `connection`.
    pub(crate) fn from_parts(
        client: Client,
        connection: impl Future<Output = ()> + Send + 'static,
        patience: Duration,
    ) -> Self {
        Self { client, connection: tokio::spawn(connection), patience }
    }

    /// Runs a query and returns its rows.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn query(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, SqlError> {
        let answer =
            timeout(self.patience, self.client.query(statement, values)).await.map_err(|_| SqlError::Timeout)?;
        answer.map_err(|source| SqlError::Statement { statement: beginning(statement), source })
    }

    /// Runs statements without values or results.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn execute(&self, statements: &str) -> Result<(), SqlError> {
        let answer =
            timeout(self.patience, self.client.batch_execute(statements)).await.map_err(|_| SqlError::Timeout)?;
        answer.map_err(|source| SqlError::Statement { statement: beginning(statements), source })
    }
}

/// The first words, which never hold a value.
fn beginning(statement: &str) -> String {
    statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

//! One command and its rows, read up to ReadyForQuery.

use std::time::Duration;

use postgres_protocol::message::{backend::Message, frontend};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    error::{ReplicationError, ServerError},
    wire::{Wire, parse_row, parse_server_error},
};

const WHAT: &str = "an answer";
/// No command of this module takes long: making a slot is the slowest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// No answer of this module has more rows.
const MAX_ROWS: usize = 1000;

/// A row: text or NULL.
pub(crate) type Row = Vec<Option<String>>;

/// Runs a command and returns its rows.
pub(super) async fn query<S>(wire: &mut Wire<S>, sql: &str) -> Result<Vec<Row>, ReplicationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    query_within(wire, sql, ANSWER_TIMEOUT).await
}

/// Runs a command that may take as long as `after`, and returns its rows.
pub(super) async fn query_within<S>(
    wire: &mut Wire<S>,
    sql: &str,
    after: Duration,
) -> Result<Vec<Row>, ReplicationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::time::timeout(after, async {
        wire.send(|buffer| frontend::query(sql, buffer)).await?;
        read_rows(wire).await
    })
    .await
    .map_err(|_| ReplicationError::Timeout { what: "answer", after })?
}

async fn read_rows<S>(wire: &mut Wire<S>) -> Result<Vec<Row>, ReplicationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut rows = Vec::new();
    let mut failure: Option<ServerError> = None;
    loop {
        let message = match (wire.read(WHAT).await, &failure) {
            (Ok(message), _) => message,
            // A FATAL error is followed by the end of the connection, not by ReadyForQuery.
            (Err(ReplicationError::UnexpectedEnd(_) | ReplicationError::Io(_)), Some(error)) => {
                return Err(error.clone().into());
            }
            (Err(error), _) => return Err(error),
        };
        match message {
            Message::DataRow(_) if rows.len() >= MAX_ROWS => {
                return Err(ReplicationError::Protocol("more rows than expected".into()));
            }
            Message::DataRow(body) => rows.push(parse_row(&body)?),
            Message::ErrorResponse(body) => failure = Some(parse_server_error(body.fields())?),
            Message::RowDescription(_)
            | Message::CommandComplete(_)
            | Message::NoticeResponse(_)
            | Message::ParameterStatus(_) => {}
            Message::ReadyForQuery(_) => return failure.map_or(Ok(rows), |error| Err(error.into())),
            _ => return Err(ReplicationError::Protocol("an answer out of place".into())),
        }
    }
}

/// A string literal of the replication grammar.
pub(crate) fn render_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A quoted identifier of the replication grammar.
pub(super) fn render_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

//! A client for PostgreSQL's replication protocol: connect, ask, make slots. Base backups go through [`crate::base_backup`].

mod connect;
mod error;
mod manifest;
mod query;
mod sql;
pub mod wire;

use std::{path::PathBuf, str::FromStr, time::Duration};

use pgherd_core::{
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};

use postgres_protocol::message::{backend::Message, frontend};

use connect::{Session, SessionKind};
pub use error::{ReplicationError, ServerError};
use query::{query, render_identifier};

pub(crate) use query::{Row, render_literal};
pub use sql::SqlClient;
use wire::parse_server_error;

use crate::tls::PostgresTls;

/// Where and as whom to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Host name or address; a path starting with `/` is the directory of a unix socket.
    pub host: String,
    /// TCP port, or the number in the unix socket's name.
    pub port: u16,
    /// The name that the server's certificate must carry.
    pub server_name: String,
    /// The role.
    pub user: String,
    /// A database name, only needed for the SQL of a `replication=database` session; `None` for physical replication.
    pub database: Option<String>,
    /// TLS by these files; `None` connects in the clear (unix sockets and tests).
    pub tls: Option<PostgresTls>,
    /// A file with the role's password for SCRAM-SHA-256; not needed with a client certificate.
    pub password_file: Option<PathBuf>,
    /// `application_name` of the session.
    pub application_name: String,
    /// Bound of the whole connect: TCP, TLS and authentication.
    pub connect_timeout: Duration,
}

/// Answer of `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The database system identifier.
    pub system_id: String,
    /// The timeline being written (primary) or replayed (standby).
    pub timeline: TimelineId,
    /// The flush position.
    pub lsn: Lsn,
}

/// A physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// WAL from here on is kept; `None` while the slot reserves nothing.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of `restart_lsn`.
    pub timeline: Option<TimelineId>,
}

/// A connection in physical replication mode. Dropping it closes it; a temporary slot goes with it.
#[derive(Debug)]
pub struct ReplicationClient {
    wire: Session,
}

const DUPLICATE_OBJECT: &str = "42710";
const UNDEFINED_OBJECT: &str = "42704";

impl ReplicationClient {
    /// Connects and authenticates within `connect_timeout`.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn connect(options: &ConnectOptions) -> Result<Self, ReplicationError> {
        Ok(Self { wire: connect::connect(options, SessionKind::Replication).await? })
    }

    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let row = self.query_row("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: column(&row, 0)?.to_owned(),
            timeline: TimelineId(parse_column(&row, 1)?),
            lsn: parse_column(&row, 2)?,
        })
    }

    /// `TIMELINE_HISTORY`; timeline 1 has none and is answered without asking.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistory, ReplicationError> {
        if timeline.0 <= 1 {
            return Ok(TimelineHistory::root(timeline));
        }
        let row = self.query_row(&format!("TIMELINE_HISTORY {}", timeline.0)).await?;
        Ok(TimelineHistory::parse(timeline, column(&row, 1)?)?)
    }

    /// `SHOW name`.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn show(&mut self, name: &str) -> Result<String, ReplicationError> {
        let row = self.query_row(&format!("SHOW {}", render_identifier(name))).await?;
        Ok(column(&row, 0)?.to_owned())
    }

    /// Makes a physical slot, reserving WAL at once if asked; one that exists already is read instead.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        temporary: bool,
        reserve: bool,
    ) -> Result<SlotInfo, ReplicationError> {
        let sql = format!(
            "CREATE_REPLICATION_SLOT {}{} PHYSICAL{}",
            render_identifier(name),
            if temporary { " TEMPORARY" } else { "" },
            if reserve { " RESERVE_WAL" } else { "" },
        );
        match query(&mut self.wire, &sql).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(DUPLICATE_OBJECT) => {}
            Err(error) => return Err(error),
        }
        let slot = self.read_slot(name).await?;
        slot.ok_or_else(|| ReplicationError::Protocol(format!("the slot {name} vanished")))
    }

    /// `READ_REPLICATION_SLOT`; `None` when there is no such slot.
    ///
    /// # Errors
    /// [`ReplicationError`]; also for a logical slot.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotInfo>, ReplicationError> {
        let row = self.query_row(&format!("READ_REPLICATION_SLOT {}", render_identifier(name))).await?;
        if row.first().is_none_or(Option::is_none) {
            return Ok(None);
        }
        let restart_lsn = row.get(1).is_some_and(Option::is_some).then(|| parse_column(&row, 1)).transpose()?;
        let timeline = row.get(2).is_some_and(Option::is_some).then(|| parse_column(&row, 2)).transpose()?;
        Ok(Some(SlotInfo { restart_lsn, timeline: timeline.map(TimelineId) }))
    }

    /// `DROP_REPLICATION_SLOT`; a slot that is not there is fine.
    ///
    /// # Errors
    /// [`ReplicationError`]; `55006` while the slot is in use.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        match query(&mut self.wire, &format!("DROP_REPLICATION_SLOT {}", render_identifier(name))).await {
            Err(error) if error.code() == Some(UNDEFINED_OBJECT) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// `server_version_num`, like 150013.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn server_version(&mut self) -> Result<u32, ReplicationError> {
        let text = self.show("server_version_num").await?;
        text.parse().map_err(|_| ReplicationError::Protocol(format!("server_version_num is \"{text}\"")))
    }

    /// The WAL segment size in bytes.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn wal_segment_bytes(&mut self) -> Result<u64, ReplicationError> {
        let text = self.show("wal_segment_size").await?;
        parse_segment_size(&text).ok_or_else(|| ReplicationError::Protocol(format!("wal_segment_size is \"{text}\"")))
    }

    /// Says goodbye and closes the connection.
    pub async fn close(self) {
        say_goodbye(self.wire).await;
    }

    /// Waits while nothing is asked, and returns when the connection is over, with the reason. Safe to cancel.
    pub(crate) async fn watch(&mut self) -> ReplicationError {
        watch(&mut self.wire).await
    }

    /// The framed connection, for a command with an answer of its own form.
    pub(crate) fn wire(&mut self) -> &mut Session {
        &mut self.wire
    }

    async fn query_row(&mut self, sql: &str) -> Result<Row, ReplicationError> {
        let rows = query(&mut self.wire, sql).await?;
        rows.into_iter().next().ok_or_else(|| ReplicationError::Protocol(format!("{sql} was answered without a row")))
    }
}

async fn watch(wire: &mut Session) -> ReplicationError {
    loop {
        match wire.read("an idle session").await {
            Ok(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
            Ok(Message::ErrorResponse(body)) => {
                return parse_server_error(body.fields()).map_or_else(|e| e, Into::into);
            }
            Ok(_) => return ReplicationError::Protocol("a message in an idle session".to_owned()),
            Err(error) => return error,
        }
    }
}

async fn say_goodbye(mut wire: Session) {
    let goodbye = async {
        let sent = wire.send(|buffer| {
            frontend::terminate(buffer);
            Ok(())
        });
        // The server may be gone already: then there is nobody to tell.
        let _ = sent.await;
        wire.shutdown().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
}

pub(crate) fn column(row: &Row, index: usize) -> Result<&str, ReplicationError> {
    row.get(index)
        .and_then(Option::as_deref)
        .ok_or_else(|| ReplicationError::Protocol(format!("column {index} is missing")))
}

pub(crate) fn parse_column<T: FromStr>(row: &Row, index: usize) -> Result<T, ReplicationError> {
    let text = column(row, index)?;
    text.parse().map_err(|_| ReplicationError::Protocol(format!("column {index} is \"{text}\"")))
}

/// `16MB`, `1GB`: a power of two from 1 MiB to 1 GiB.
fn parse_segment_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor: u64 = match unit {
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_are_read_as_the_server_shows_them() {
        assert_eq!(parse_segment_size("16MB"), Some(16 << 20));
        assert_eq!(parse_segment_size("1GB"), Some(1 << 30));
        for wrong in ["", "16", "MB", "3MB", "2GB", "16 MB", "99999999999999999999MB"] {
            assert_eq!(parse_segment_size(wrong), None, "{wrong}");
        }
    }
}

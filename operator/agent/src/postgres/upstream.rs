//! Questions to another instance's PostgreSQL over TLS with the replication certificate: who it is, on which timeline it
//! writes, and the slot that it keeps for us. Copies no data: that is pgherd-stream's.

use std::{net::IpAddr, path::Path, time::Duration};

use pgherd_core::{
    instance::REPLICATION_ROLE,
    lsn::Lsn,
    pg::quote::render_conninfo,
    timeline::{ParseHistoryError, TimelineHistory, TimelineId},
};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::sql::{Session, SqlError};
use crate::tls::{TlsError, build_client_config};

/// How long the connection and each question may take.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// How often an instance that is being promoted is asked.
const PROMOTION_POLL: Duration = Duration::from_millis(25);

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The pod.
    pub pod: String,
    /// Its host name, as in its certificate.
    pub host: String,
    /// Its address, where it is known without DNS.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// What an instance says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamState {
    /// The database system identifier.
    pub system_id: String,
    /// `server_version_num`.
    pub server_version: u32,
    /// It does not take writes (yet).
    pub in_recovery: bool,
    /// Its timeline and how that came to be; only on a primary is this the timeline that is written.
    pub history: TimelineHistory,
    /// Flushed, or replayed in recovery.
    pub lsn: Lsn,
}

/// Why an instance could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It did not answer, or with an error.
    #[error("failed to ask {pod}: {source}")]
    Sql {
        /// Which one.
        pod: String,
        /// Why.
        source: SqlError,
    },
    /// It answered with something that can't be understood.
    #[error("{pod} gave an unusable {what}")]
    Answer {
        /// Which one.
        pod: String,
        /// What was unusable.
        what: &'static str,
    },
    /// Its timeline history is malformed.
    #[error("{pod} gave a malformed history")]
    History {
        /// Which one.
        pod: String,
        /// Why.
        #[source]
        source: ParseHistoryError,
    },
}

/// A session with an instance.
pub struct UpstreamSession {
    pod: String,
    session: Session,
}

impl UpstreamSession {
    /// Connects as the replication role with its certificate; the server's certificate must bear the host's name.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn connect(upstream: &Upstream, tls: &Path) -> Result<Self, UpstreamError> {
        let connected = connect(upstream, build_client_config(tls)?).await;
        let session = connected.map_err(|source| UpstreamError::Sql { pod: upstream.pod.clone(), source })?;
        Ok(Self { pod: upstream.pod.clone(), session })
    }

    /// Waits on this session, for at most `bound`, until it takes writes: much cheaper than to connect over and over.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn await_writes(&self, bound: Duration) -> Result<(), UpstreamError> {
        let end = Instant::now() + bound;
        loop {
            let rows = self.session.query("SELECT pg_is_in_recovery()", &[]).await;
            let rows = rows.map_err(|source| UpstreamError::Sql { pod: self.pod.clone(), source })?;
            if rows.first().is_some_and(|row| !row.get::<_, bool>(0)) || Instant::now() >= end {
                return Ok(());
            }
            sleep(PROMOTION_POLL).await;
        }
    }

    /// Asks who it is and what it writes.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn observe(&self) -> Result<UpstreamState, UpstreamError> {
        let unusable = |what| UpstreamError::Answer { pod: self.pod.clone(), what };
        let statement = "SELECT r.rec, current_setting('server_version_num')::int4, \
            (SELECT system_identifier::text FROM pg_control_system()), \
            CASE WHEN r.rec THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text, \
            CASE WHEN r.rec THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) END, \
            (SELECT timeline_id FROM pg_control_checkpoint()) \
            FROM (SELECT pg_is_in_recovery() AS rec) r";
        let rows = self
            .session
            .query(statement, &[])
            .await
            .map_err(|source| UpstreamError::Sql { pod: self.pod.clone(), source })?;
        let row = rows.first().ok_or_else(|| unusable("status"))?;
        let timeline = match row.get::<_, Option<String>>(4) {
            Some(text) => u32::from_str_radix(&text, 16).map_err(|_| unusable("timeline"))?,
            None => u32::try_from(row.get::<_, i32>(5)).map_err(|_| unusable("timeline"))?,
        };
        Ok(UpstreamState {
            in_recovery: row.get(0),
            server_version: u32::try_from(row.get::<_, i32>(1)).map_err(|_| unusable("version"))?,
            system_id: row.get(2),
            lsn: row
                .get::<_, Option<String>>(3)
                .and_then(|lsn| lsn.parse().ok())
                .ok_or_else(|| unusable("position"))?,
            history: self.observe_history(TimelineId(timeline)).await?,
        })
    }

    /// Bytes of a file of its data directory; None when there is no such file, or not as many bytes in it.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn read_file(&self, file: &str, offset: u64, length: u64) -> Result<Option<Vec<u8>>, UpstreamError> {
        let (offset, length) = (i64::try_from(offset).unwrap_or(i64::MAX), i64::try_from(length).unwrap_or(i64::MAX));
        let statement = "SELECT pg_read_binary_file($1, $2, $3, true)";
        let rows = self.session.query(statement, &[&file, &offset, &length]).await;
        let rows = rows.map_err(|source| UpstreamError::Sql { pod: self.pod.clone(), source })?;
        let bytes: Option<Vec<u8>> = rows.first().and_then(|row| row.get(0));
        Ok(bytes.filter(|bytes| i64::try_from(bytes.len()).is_ok_and(|read| read == length)))
    }

    /// Asks for a checkpoint, for at most five seconds. Only a help for pg_rewind: a refusal is logged and no error.
    ///
    /// # Errors
    /// [`UpstreamError`] when the connection is lost.
    pub async fn checkpoint(&self) -> Result<(), UpstreamError> {
        match self.session.execute("CHECKPOINT").await {
            Ok(()) | Err(SqlError::Timeout) => Ok(()),
            Err(SqlError::Statement { source, .. }) if source.as_db_error().is_some() => {
                tracing::warn!(error = %super::sql::describe(&source), "no checkpoint before the rewind");
                Ok(())
            }
            Err(source) => Err(UpstreamError::Sql { pod: self.pod.clone(), source }),
        }
    }

    async fn observe_history(&self, timeline: TimelineId) -> Result<TimelineHistory, UpstreamError> {
        if timeline == TimelineId(1) {
            return Ok(TimelineHistory::root(timeline));
        }
        let file = format!("pg_wal/{timeline}.history");
        let sql = |source| UpstreamError::Sql { pod: self.pod.clone(), source };
        let rows = self.session.query("SELECT pg_read_binary_file($1)", &[&file]).await.map_err(sql)?;
        let content: Option<Vec<u8>> = rows.first().and_then(|row| row.get(0));
        let text = content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        TimelineHistory::parse(timeline, &text)
            .map_err(|source| UpstreamError::History { pod: self.pod.clone(), source })
    }

    /// Whether WAL of this segment's number is there, on this timeline or a later one. A slot does not tell: PostgreSQL takes any
    /// position for one, also one whose WAL was gone before.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn has_segment(&self, segment: &str) -> Result<bool, UpstreamError> {
        let statement = "SELECT EXISTS (SELECT FROM pg_ls_dir('pg_wal', true, false) AS name \
            WHERE length(name) = 24 AND right(name, 16) = right($1, 16) AND left(name, 8) >= left($1, 8))";
        let rows = self.session.query(statement, &[&segment]).await;
        let rows = rows.map_err(|source| UpstreamError::Sql { pod: self.pod.clone(), source })?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Makes our physical slot if it is not there, with WAL reserved from now on, and returns the position from which it
    /// keeps WAL. A slot that lost its WAL is made anew.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn ensure_slot(&self, slot: &str) -> Result<Lsn, UpstreamError> {
        let sql = |source| UpstreamError::Sql { pod: self.pod.clone(), source };
        let find = "SELECT restart_lsn::text, coalesce(wal_status = 'lost', false), active FROM pg_replication_slots WHERE slot_name = $1";
        let rows = self.session.query(find, &[&slot]).await.map_err(sql)?;
        let mut kept = None;
        if let Some(row) = rows.first() {
            let (restart, lost): (Option<String>, bool) = (row.get(0), row.get(1));
            kept = restart.and_then(|lsn| lsn.parse().ok()).filter(|_| !lost);
            if kept.is_none() {
                self.session.query("SELECT pg_drop_replication_slot($1)", &[&slot]).await.map_err(sql)?;
            }
        }
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let create = "SELECT lsn::text FROM pg_create_physical_replication_slot($1, true)";
        let rows = self.session.query(create, &[&slot]).await.map_err(sql)?;
        let lsn = rows.first().and_then(|row| row.get::<_, Option<String>>(0)).and_then(|lsn| lsn.parse().ok());
        lsn.ok_or_else(|| UpstreamError::Answer { pod: self.pod.clone(), what: "slot" })
    }
}

/// A session by address or, without one, by name. The name is verified in any case.
async fn connect(upstream: &Upstream, tls: ClientConfig) -> Result<Session, SqlError> {
    let mut options = tokio_postgres::Config::new();
    options
        .host(&upstream.host)
        .port(upstream.port)
        .user(REPLICATION_ROLE)
        .dbname("postgres")
        .application_name("pgherd")
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .options("-csearch_path=pg_catalog")
        .connect_timeout(PATIENCE);
    if let Some(address) = upstream.address {
        options.hostaddr(address);
    }
    let connect = timeout(PATIENCE, options.connect(MakeRustlsConnect::new(tls))).await;
    let (client, connection) = connect.map_err(|_| SqlError::Timeout)?.map_err(SqlError::Connect)?;
    Ok(Session::from_parts(client, async move { drop(connection.await) }, PATIENCE))
}

/// The connection string of a WAL receiver or of pg_rewind: verified TLS, and a dead peer is noticed within seconds.
#[must_use]
pub fn render_upstream_conninfo(
    upstream: &Upstream,
    tls: &Path,
    application_name: &str,
    database: Option<&str>,
) -> String {
    let (port, ca, cert, key) = (
        upstream.port.to_string(),
        tls.join("ca.crt").display().to_string(),
        tls.join("replication.crt").display().to_string(),
        tls.join("replication.key").display().to_string(),
    );
    // Where the address is known the name is only verified. libpq's look-up has no bound in time: a receiver that fell back to it
    // while its primary restarted would hang for as long as DNS is away.
    let address = upstream.address.map(|address| address.to_string());
    let mut pairs = vec![
        ("host", upstream.host.as_str()),
        ("port", &port),
        ("user", REPLICATION_ROLE),
        ("application_name", application_name),
        ("sslmode", "verify-full"),
        ("sslrootcert", &ca),
        ("sslcert", &cert),
        ("sslkey", &key),
        ("connect_timeout", "5"),
        ("keepalives_idle", "5"),
        ("keepalives_interval", "2"),
        ("keepalives_count", "3"),
    ];
    pairs.extend(address.as_deref().map(|address| ("hostaddr", address)));
    pairs.extend(database.map(|name| ("dbname", name)));
    render_conninfo(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_verifies_whom_it_follows() {
        let upstream = Upstream { pod: "c-0".into(), host: "c-0.c-pods.db.svc".into(), address: None, port: 5432 };
        let conninfo = render_upstream_conninfo(&upstream, Path::new("/run/pgherd/tls"), "m-1", None);
        assert!(conninfo.contains("host='c-0.c-pods.db.svc'"));
        assert!(conninfo.contains("sslmode='verify-full'"));
        assert!(conninfo.contains("application_name='m-1'"));
        assert!(!conninfo.contains("dbname") && !conninfo.contains("hostaddr"));
    }

    #[test]
    fn a_receiver_looks_no_name_up_where_the_address_is_known() {
        let address = Some("10.244.1.7".parse().expect("an address"));
        let upstream = Upstream { pod: "c-0".into(), host: "c-0.c-pods.db.svc".into(), address, port: 5432 };
        let conninfo = render_upstream_conninfo(&upstream, Path::new("/run/pgherd/tls"), "m-1", None);
        assert!(conninfo.contains("host='c-0.c-pods.db.svc'") && conninfo.contains("hostaddr='10.244.1.7'"));
    }
}

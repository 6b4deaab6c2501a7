//! What a running server says about itself, as one sample. Asks only; every question is bounded in time, and a server
//! that does not answer is told apart from one that was not asked.

use std::{collections::BTreeMap, time::Duration};

use pgherd_core::{instance::Standby, lsn::Lsn, quorum::parse_receiver_name};
use tokio_postgres::Row;

use super::sql::{Session, SqlError};
use crate::{clock::Boottime, layout::Layout};

/// How long one question may take.
pub const PATIENCE: Duration = Duration::from_millis(1_500);

/// What the WAL receiver of a standby says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverSample {
    /// Its process: one that ends and is started over and over never stays the same.
    pub pid: i32,
    /// `status` is `streaming`.
    pub streaming: bool,
    /// Milliseconds since the last message.
    pub silent_ms: u64,
    /// `sender_host`.
    pub host: String,
}

/// One look at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Just before the questions were asked.
    pub at: Boottime,
    /// [`super::process::Server::generation`] at that time.
    pub generation: u64,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// `server_version_num`.
    pub server_version: u32,
    /// The database system identifier.
    pub system_id: String,
    /// Bytes per WAL segment.
    pub segment_bytes: u64,
    /// Primary: flushed. Standby: the farther of received-and-flushed and replayed.
    pub received: Lsn,
    /// Standby: received and flushed by the receiver since the last start; none before it received anything.
    pub streamed: Option<Lsn>,
    /// Replayed; on a primary the same as `received`.
    pub replayed: Lsn,
    /// Primary: name of the segment at the flush position; it carries the timeline.
    pub wal_file: Option<String>,
    /// `synchronous_standby_names` as this session sees it.
    pub synchronous_standby_names: String,
    /// The checkpointer sleeps in a loop in which it has read the configuration.
    pub checkpointer_idle: bool,
    /// The startup process waits for more WAL: what there is, is replayed.
    pub replay_waits: bool,
    /// Replay is paused: by a person, or because settings are below those of the primary that wrote the WAL.
    pub replay_paused: bool,
    /// Parameters that take effect with the next start; not those that this standby was given because its primary has them higher.
    pub pending_restart: Vec<String>,
    /// The receiver.
    pub receiver: Option<ReceiverSample>,
    /// The standbys.
    pub standbys: Vec<Standby>,
    /// Replication slots that pgherd made, with whether they are in use.
    pub slots: Vec<(String, bool)>,
}

const STATE: &str = "SELECT r.rec, \
    current_setting('server_version_num')::int4, \
    (SELECT system_identifier::text FROM pg_control_system()), \
    pg_size_bytes(current_setting('wal_segment_size')), \
    CASE WHEN r.rec THEN NULL ELSE pg_current_wal_flush_lsn() END::text, \
    CASE WHEN r.rec THEN NULL ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END, \
    CASE WHEN r.rec THEN pg_last_wal_receive_lsn() END::text, \
    CASE WHEN r.rec THEN pg_last_wal_replay_lsn() END::text, \
    current_setting('synchronous_standby_names'), \
    coalesce((SELECT a.wait_event IN ('CheckpointerMain', 'CheckpointWriteDelay') FROM pg_stat_activity a WHERE a.backend_type = 'checkpointer'), false), \
    coalesce((SELECT a.wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream') FROM pg_stat_activity a WHERE a.backend_type = 'startup'), false), \
    CASE WHEN r.rec THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END, \
    ARRAY(SELECT name FROM pg_settings WHERE pending_restart AND source <> 'command line' ORDER BY name) \
    FROM (SELECT pg_is_in_recovery() AS rec) r";

const RECEIVER: &str = "SELECT status = 'streaming', \
    coalesce(greatest(extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000, 0), 0)::int8, \
    coalesce(sender_host, ''), pid FROM pg_stat_wal_receiver";

const STANDBYS: &str = "SELECT application_name, state, flush_lsn::text, replay_lsn::text FROM pg_stat_replication \
    WHERE usename = 'pgherd_replication' ORDER BY application_name";

const SLOTS: &str = "SELECT slot_name::text, active FROM pg_replication_slots WHERE slot_type = 'physical' AND slot_name LIKE 'pgherd\\_%' AND NOT temporary";

/// Opens the agent's session for sampling.
///
/// # Errors
/// [`SqlError`].
pub async fn connect(layout: &Layout) -> Result<Session, SqlError> {
    Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", PATIENCE).await
}

/// Takes a sample.
///
/// # Errors
/// [`SqlError`]; the session should then be opened anew.
pub async fn observe_sample(session: &Session, generation: u64) -> Result<Sample, SqlError> {
    let at = Boottime::now();
    let rows = session.query(STATE, &[]).await?;
    let row = rows.first().ok_or(SqlError::Timeout)?;
    let in_recovery: bool = row.get(0);
    let (mut receiver, mut standbys) = (None, Vec::new());
    if in_recovery {
        receiver = session.query(RECEIVER, &[]).await?.first().map(read_receiver);
    } else {
        standbys = session.query(STANDBYS, &[]).await?.iter().map(read_standby).collect();
    }
    let slots = session.query(SLOTS, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let streamed = read_lsn(row, 6);
    let replayed = read_lsn(row, 7).or_else(|| read_lsn(row, 4)).unwrap_or_default();
    Ok(Sample {
        at,
        generation,
        in_recovery,
        server_version: u32::try_from(row.get::<_, i32>(1)).unwrap_or_default(),
        system_id: row.get(2),
        segment_bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or_default(),
        received: read_lsn(row, 4).unwrap_or_default().max(streamed.unwrap_or_default()).max(replayed),
        streamed,
        replayed,
        wal_file: row.get(5),
        synchronous_standby_names: row.get(8),
        checkpointer_idle: row.get(9),
        replay_waits: row.get(10),
        replay_paused: row.get(11),
        pending_restart: row.get(12),
        receiver,
        standbys,
        slots,
    })
}

/// What a primary has flushed, and how far its standbys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admittance {
    /// Flushed by the primary itself.
    pub flushed: Lsn,
    /// The standbys.
    pub standbys: Vec<Standby>,
}

/// A small look for the gate; None while the server is in recovery.
///
/// # Errors
/// [`SqlError`]; the session should then be opened anew.
pub async fn observe_admittance(session: &Session) -> Result<Option<Admittance>, SqlError> {
    let statement = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END::text";
    let flushed = session.query(statement, &[]).await?.first().and_then(|row| read_lsn(row, 0));
    let Some(flushed) = flushed else { return Ok(None) };
    let standbys = session.query(STANDBYS, &[]).await?.iter().map(read_standby).collect();
    Ok(Some(Admittance { flushed, standbys }))
}

/// What the server runs with, of these settings with numbers for values.
///
/// # Errors
/// [`SqlError`].
pub async fn observe_settings(session: &Session, names: &[&str]) -> Result<BTreeMap<String, u64>, SqlError> {
    let rows = session.query("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", &[&names]).await?;
    Ok(rows.iter().filter_map(|row| Some((row.get(0), row.get::<_, String>(1).parse().ok()?))).collect())
}

fn read_lsn(row: &Row, column: usize) -> Option<Lsn> {
    row.get::<_, Option<String>>(column)?.parse().ok()
}

fn read_receiver(row: &Row) -> ReceiverSample {
    ReceiverSample {
        streaming: row.get(0),
        silent_ms: u64::try_from(row.get::<_, i64>(1)).unwrap_or_default(),
        host: row.get(2),
        pid: row.get(3),
    }
}

fn read_standby(row: &Row) -> Standby {
    let (member, term) = parse_receiver_name(row.get(0));
    Standby {
        member,
        term,
        state: row.get::<_, Option<String>>(1).unwrap_or_default(),
        flush_lsn: read_lsn(row, 2).unwrap_or_default(),
        replay_lsn: read_lsn(row, 3).unwrap_or_default(),
    }
}

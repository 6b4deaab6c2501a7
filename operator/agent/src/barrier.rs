//! The archive barrier: everything up to now is in the archive, or it is said that it is not. For a backup of an idle
//! database, whose last WAL would otherwise stay in an open segment.

use std::time::Duration;

use pgherd_core::{instance::ArchiveBarrier, lsn::Lsn};
use tokio::time::{Instant, sleep};

use crate::{
    agent::Agent,
    postgres::{
        sql::{Session, SqlError},
        wal_dir::parse_segment_name,
    },
};

/// From the request to the answer.
const BOUND: Duration = Duration::from_secs(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// Only the primary archives.
    #[error("this instance is not the primary")]
    NotPrimary,
    /// Nothing is archived.
    #[error("no object store is configured")]
    NoStore,
    /// PostgreSQL failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// PostgreSQL's answer can't be understood.
    #[error("PostgreSQL gave an unusable answer")]
    Answer,
}

/// Writes a record, switches segments, and waits until the segment with the record is archived.
///
/// # Errors
/// [`BarrierError`]; that the wait was too short is no error but in the answer.
pub async fn pass_archive_barrier(agent: &Agent) -> Result<ArchiveBarrier, BarrierError> {
    let deadline = Instant::now() + BOUND;
    let sample = agent
        .sample()
        .filter(|sample| !sample.in_recovery && agent.led_term().is_some())
        .ok_or(BarrierError::NotPrimary)?;
    if agent.config().store.is_none() {
        return Err(BarrierError::NoStore);
    }
    let session =
        Session::connect(&agent.layout.socket_dir, agent.layout.postgres_port, "postgres", Duration::from_secs(20))
            .await?;
    let statement = "SELECT r.lsn::text, pg_walfile_name(r.lsn), pg_switch_wal()::text \
        FROM (SELECT pg_create_restore_point('pgherd archive barrier') AS lsn) r";
    let rows = session.query(statement, &[]).await?;
    let row = rows.first().ok_or(BarrierError::Answer)?;
    let lsn: Lsn = row.get::<_, String>(0).parse().map_err(|_| BarrierError::Answer)?;
    let segment: String = row.get(1);
    let (timeline, _) = parse_segment_name(&segment, sample.segment_bytes).ok_or(BarrierError::Answer)?;
    let folder = agent.layout.pgdata.join("pg_wal");
    let mut archived = false;
    while !archived && Instant::now() < deadline {
        // The archiver renames .ready to .done; a segment that is gone altogether was archived and recycled.
        let done = folder.join("archive_status").join(format!("{segment}.done")).exists();
        let recycled = !folder.join(&segment).exists();
        archived = done || recycled;
        if !archived {
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(ArchiveBarrier { lsn, timeline, archived })
}

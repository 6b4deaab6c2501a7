//! The archive barrier: everything up to now is in the archive, or it is said that it is not. For a backup of an idle
//! database, whose last WAL would otherwise stay in an open segment.

use std::time::Duration;

use pgherd_core::{
    instance::{ArchiveBarrier, WalSpan},
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{WalError, missing_segments},
};
use tokio::time::{Instant, sleep};

use crate::{
    agent::Agent,
    archive::own_location,
    postgres::{
        sql::{Session, SqlError},
        wal_dir::parse_segment_name,
    },
    status::observe_history,
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
    /// The span that was asked for is not what this primary has written.
    #[error("the primary is on another history: {0} on timeline {1} is no part of it")]
    Elsewhere(Lsn, TimelineId),
    /// The archive can't be looked at.
    #[error(transparent)]
    Wal(#[from] WalError),
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
    Ok(ArchiveBarrier { lsn, timeline, archived, missing: None })
}

/// What the archive lacks of a span of this primary's history, by name. Also of a timeline that has been left: its end is archived by
/// whoever wrote it or, as a part of the next timeline, by its successor.
///
/// # Errors
/// [`BarrierError`].
pub async fn find_missing(agent: &Agent, span: &WalSpan) -> Result<Vec<String>, BarrierError> {
    let sample = agent.sample().ok_or(BarrierError::NotPrimary)?;
    let location = own_location(agent).ok_or(BarrierError::NoStore)?;
    let history = observe_history(agent, &sample).ok_or(BarrierError::Answer)?;
    if !history.contains(span.timeline, span.stop_lsn) {
        return Err(BarrierError::Elsewhere(span.stop_lsn, span.timeline));
    }
    let store = ObjectStore::connect(&location.store).await.map_err(WalError::from)?;
    Ok(missing_segments(&store, &location, &history, span.start_lsn, span.stop_lsn, sample.segment_bytes).await?)
}

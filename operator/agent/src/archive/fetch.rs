//! Bringing WAL from the archive to PostgreSQL.

use std::{path::Path, sync::Arc, time::Duration};

use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, WalError},
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Download, Shared, connect, count_ahead, own_location};
use crate::{
    actions::describe_chain,
    agent::{Agent, RecoverySource},
    postgres::wal_dir::parse_segment_name,
};

/// A standby that found the store failing leaves it alone for so long: it asks for several files in a row at its start.
const STANDBY_PAUSE: Duration = Duration::from_secs(10);
/// PostgreSQL would look into the archive before it streams, also when its primary restarts. The primary has what a replica lacks in
/// nearly every case, and commits may wait for that replica.
const STREAM_FIRST: Duration = Duration::from_secs(10);

/// A standby has another source of WAL, the primary, to which PostgreSQL goes on as soon as this one has failed.
pub(super) async fn fetch_for_standby(agent: &Agent, shared: &Shared, name: &str, dest: &Path) -> Answer {
    if is_from_the_future(agent, name) {
        return Answer::Absent;
    }
    // pg_rewind has no other source, and reads what the history that is followed left behind, to know what to bring back.
    let is_rewind = agent.role().is_none();
    if !is_rewind && agent.has_met_upstream_within(STREAM_FIRST) {
        return Answer::Failed("the primary is asked first".to_owned());
    }
    let Some(location) = own_location(agent) else {
        return Answer::Failed("no object store is configured, or the system identifier is not known yet".to_owned());
    };
    let failed_before = shared.failed_at.lock().await.is_some_and(|at| at.elapsed() < STANDBY_PAUSE);
    if failed_before {
        return Answer::Failed("the object store failed a moment ago".to_owned());
    }
    // It follows nobody whom it has not met: what that primary's history left behind is not for it, whatever the archive has.
    let history = if is_rewind { None } else { agent.upstream_history() };
    let source = RecoverySource { location, history };
    let answer = fetch(&source, shared, dest, name, ObjectStore::with_short_patience).await;
    *shared.failed_at.lock().await = matches!(answer, Answer::Failed(_)).then(Instant::now);
    answer
}

/// A recovery to a target has no other source.
pub(super) async fn fetch_for_recovery(source: &RecoverySource, shared: &Shared, name: &str, dest: &Path) -> Answer {
    fetch(source, shared, dest, name, ObjectStore::clone).await
}

/// Brings one file from the archive to `dest`, as far as it is on the history that is followed. Where a recovery goes from segment to
/// segment, the next ones are fetched meanwhile.
async fn fetch(
    source: &RecoverySource,
    shared: &Shared,
    dest: &Path,
    name: &str,
    patience: fn(&ObjectStore) -> ObjectStore,
) -> Answer {
    let RecoverySource { location, history } = source;
    let store = match connect(&shared.cached, &location.store).await {
        Ok(store) => Arc::new(patience(&store)),
        Err(error) => return Answer::Failed(error),
    };
    let begun = shared.downloads.lock().await.take(name);
    let goes_on = begun.is_some();
    let placed = async {
        let Some(content) = read(begun, &store, location, name).await? else { return Ok(false) };
        let Some(content) = keep_followed(content, name, history.as_ref()) else { return Ok(false) };
        begin_next(shared, &store, location, name, content.len() as u64, goes_on).await;
        wal::place(content, dest).await.map(|()| true)
    };
    match placed.await {
        Ok(true) => Answer::Done,
        Ok(false) => Answer::Absent,
        Err(error) => {
            *shared.cached.lock().await = None;
            shared.downloads.lock().await.forget();
            Answer::Failed(describe_chain(&error))
        }
    }
}

/// Only when it is asked for: by then another history may be followed than when it was fetched ahead.
fn keep_followed(content: Vec<u8>, name: &str, history: Option<&TimelineHistory>) -> Option<Vec<u8>> {
    match history {
        Some(history) => wal::cut_at_switch(content, name, history),
        None => Some(content),
    }
}

/// What was begun counts if it found the file: one that was absent then may be there now.
async fn read(
    begun: Option<AbortOnDropHandle<Download>>,
    store: &ObjectStore,
    location: &ClusterLocation,
    name: &str,
) -> Result<Option<Vec<u8>>, WalError> {
    if let Some(task) = begun
        && let Ok((from, Ok(Some(content)))) = task.await
        && from == *location
    {
        return Ok(Some(content));
    }
    wal::read(store, location, name).await
}

/// Begins with the segments after this one; with one only, until it was asked for as well.
async fn begin_next(
    shared: &Shared,
    store: &Arc<ObjectStore>,
    location: &ClusterLocation,
    name: &str,
    segment_bytes: u64,
    goes_on: bool,
) {
    let Some((timeline, number)) = parse_segment_name(name, segment_bytes) else { return };
    let count = if goes_on { count_ahead(segment_bytes) as u64 } else { 1 };
    let next = (1..=count).map(|ahead| {
        let start = number.saturating_add(ahead).saturating_mul(segment_bytes);
        wal::segment_name(timeline, Lsn(start), segment_bytes)
    });
    shared.downloads.lock().await.go_on_with(next.collect(), |name| {
        let (store, location, name) = (Arc::clone(store), location.clone(), name.to_owned());
        async move {
            let content = wal::read(&store, &location, &name).await;
            (location, content)
        }
    });
}

/// A history above the register's timeline is from a promotion that the register does not know (of another cluster in the
/// same place, or of one that was undone): a standby that followed it would leave the cluster.
fn is_from_the_future(agent: &Agent, name: &str) -> bool {
    let known = agent.register.borrow().as_ref().and_then(|seen| seen.lease.register.timeline);
    let named =
        name.strip_suffix(".history").and_then(|timeline| u32::from_str_radix(timeline, 16).ok()).map(TimelineId);
    matches!((named, known), (Some(named), Some(known)) if named > known)
}

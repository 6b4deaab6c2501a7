//! Bringing WAL into the archive.

use std::{path::Path, sync::Arc, time::Duration};

use pgherd_core::{backup::ClusterLocation, lsn::Lsn, timeline::TimelineHistory};
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, PushOutcome, WalError},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Shared, Upload, connect, count_ahead, own_location, resolve};
use crate::{
    actions::describe_chain,
    agent::Agent,
    postgres::{
        config::Role,
        wal_dir::{list, parse_segment_name},
    },
};

/// Less than what a whole request may take.
const GATE_PATIENCE: Duration = Duration::from_secs(60);

/// Brings the history of the primary's timeline into the archive, and those of the timelines before it, again and again until they are
/// there: PostgreSQL archives each once, on the primary that began it, which may have been lost before the store was back, and none
/// where the store was configured later. Never ends.
pub async fn keep_history(agent: Arc<Agent>) {
    let shared = Shared::default();
    let mut complete = None;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let status = agent.board.status();
        let Some(history) = status.history.filter(|_| status.is_primary) else { continue };
        if complete == Some(history.timeline) || agent.config().store.is_none() {
            continue;
        }
        if archive_histories(&agent, &shared, &history).await {
            complete = Some(history.timeline);
        }
    }
}

/// True when all that pg_wal has are in the archive.
async fn archive_histories(agent: &Agent, shared: &Shared, history: &TimelineHistory) -> bool {
    let ancestors = history.ancestors.iter().map(|entry| entry.timeline);
    let mut complete = true;
    for timeline in ancestors.chain([history.timeline]).filter(|timeline| timeline.0 > 1) {
        let name = format!("{timeline}.history");
        // A file that is not there was not received: a recovery along this timeline reads its own alone.
        if timeline != history.timeline && !agent.layout.pgdata.join("pg_wal").join(&name).exists() {
            continue;
        }
        if let Answer::Failed(error) = Box::pin(archive(agent, shared, &format!("pg_wal/{name}"), &name)).await {
            tracing::warn!(file = %name, error = %error, "a timeline's history is not in the archive yet");
            complete = false;
        }
    }
    complete
}

/// Archives one file, and begins with those that PostgreSQL will ask for next. Only the one that was asked for is answered
/// for.
pub(super) async fn archive(agent: &Agent, shared: &Shared, path: &str, name: &str) -> Answer {
    // A timeline is in the archive only once it is sure to be known to whoever is elected next: its number would be taken again.
    if leads(agent) && timeout(GATE_PATIENCE, agent.gate.await_passed()).await.is_err() {
        return Answer::Failed(format!("nothing is archived before clients are let in: {}", agent.gate.waits_for()));
    }
    if !leads(agent) {
        shared.uploads.lock().await.forget();
        return Answer::Failed("only the primary archives".to_owned());
    }
    let prepared = match own_location(agent) {
        Some(location) => connect(&shared.cached, &location.store).await.map(|store| (store, location)),
        None => Err("no object store is configured, or the system identifier is not known yet".to_owned()),
    };
    let (store, location) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Answer::Failed(error),
    };
    let Some(file) = resolve(agent, path) else { return Answer::Failed(format!("{path} is not in pg_wal")) };
    let begun = shared.uploads.lock().await.take(name);
    begin_next(agent, shared, &store, &location, name).await;
    match push(agent, begun, &store, location, &file, name).await {
        Ok(_) => Answer::Done,
        // What was written of a segment when its timeline was left. No recovery reads it, and who left it before has another one.
        Err(WalError::WalConflict { key }) if name.ends_with(".partial") => {
            tracing::warn!(key, "the archive has another one: this one is not kept");
            Answer::Done
        }
        Err(error) => {
            let text = describe_chain(&error);
            tracing::warn!(file = name, error = %text, "archiving failed; PostgreSQL tries again");
            // The next try reads the credentials anew.
            *shared.cached.lock().await = None;
            shared.uploads.lock().await.forget();
            Answer::Failed(text)
        }
    }
}

/// A standby that is being promoted leads its term already, and its first file is the new timeline's history.
fn leads(agent: &Agent) -> bool {
    let serves = matches!(agent.role(), Some(Role::Primary { .. } | Role::Standby { .. }));
    serves && agent.led_term().is_some()
}

/// What was begun counts if it went well, to where this file belongs now, in this run of the server.
async fn push(
    agent: &Agent,
    begun: Option<AbortOnDropHandle<Upload>>,
    store: &ObjectStore,
    location: ClusterLocation,
    file: &Path,
    name: &str,
) -> Result<PushOutcome, WalError> {
    if let Some(task) = begun
        && let Ok((to, generation, Ok(outcome))) = task.await
        && (&to, generation) == (&location, agent.server.generation())
    {
        return Ok(outcome);
    }
    wal::push(store, &location, file, name).await
}

/// Begins with the segments after this one that are marked as ready: they are complete and do not change any more.
async fn begin_next(agent: &Agent, shared: &Shared, store: &Arc<ObjectStore>, location: &ClusterLocation, name: &str) {
    let Some(sample) = agent.sample().filter(|sample| parse_segment_name(name, sample.segment_bytes).is_some()) else {
        return;
    };
    let (pg_wal, generation) = (agent.layout.pgdata.join("pg_wal"), sample.generation);
    let ready = list(&pg_wal.join("archive_status")).into_iter();
    let ready = ready.filter_map(|file| file.strip_suffix(".ready").map(str::to_owned));
    let next = ready.filter(|file| file.as_str() > name && parse_segment_name(file, sample.segment_bytes).is_some());
    let next = next.take(count_ahead(sample.segment_bytes)).collect();
    shared.uploads.lock().await.go_on_with(next, |name| {
        let (store, location, name, file) = (Arc::clone(store), location.clone(), name.to_owned(), pg_wal.join(name));
        async move {
            let outcome = Box::pin(wal::push(&store, &location, &file, &name)).await;
            (location, generation, outcome)
        }
    });
}

/// Where a segment ends; none for other files.
fn segment_end(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let (_, number) = parse_segment_name(name, segment_bytes)?;
    number.checked_add(1)?.checked_mul(segment_bytes).map(Lsn)
}

/// Shows how the archiver fares.
pub(super) fn note(agent: &Agent, name: &str, answer: &Answer) {
    let end = agent.sample().and_then(|sample| segment_end(name, sample.segment_bytes));
    agent.board.update(|status| match answer {
        Answer::Done => {
            status.archive.last_archived = Some(name.to_owned());
            status.archive.last_archived_lsn = end.or(status.archive.last_archived_lsn);
            status.archive.last_archived_at_ms = Some(jiff::Timestamp::now().as_millisecond());
            status.archive.last_error = None;
        }
        Answer::Failed(error) => {
            status.archive.last_error = Some(error.clone());
            status.archive.last_failed_at_ms = Some(jiff::Timestamp::now().as_millisecond());
        }
        Answer::Absent => {}
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_ends_where_the_next_one_begins() {
        let end = |name: &str| segment_end(name, 16 << 20);
        assert_eq!(end("0000000200000001000000FF"), Some(Lsn(0x2_0000_0000)));
        assert_eq!(end("00000002.history"), None);
    }
}

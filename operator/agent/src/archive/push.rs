//! Bringing WAL into the archive.

use std::{path::Path, sync::Arc, time::Duration};

use pgherd_core::{backup::ClusterLocation, lsn::Lsn};
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

/// Brings the history of the primary's timeline into the archive, again and again until it is there: PostgreSQL archives
/// it once, and not at all where the store was configured later. Never ends.
pub async fn keep_history(agent: Arc<Agent>) {
    let shared = Shared::default();
    let mut archived = None;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let status = agent.board.status();
        let Some(timeline) = status.history.filter(|_| status.is_primary).map(|history| history.timeline) else {
            continue;
        };
        let name = format!("{timeline}.history");
        if timeline.0 < 2 || archived.as_ref() == Some(&name) || agent.config().store.is_none() {
            continue;
        }
        match Box::pin(archive(&agent, &shared, &format!("pg_wal/{name}"), &name)).await {
            Answer::Failed(error) => {
                tracing::warn!(file = %name, error = %error, "the timeline's history is not in the archive yet")
            }
            _ => archived = Some(name),
        }
    }
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

//! Whether the cluster can be restored in place as somebody wishes: asked while it still serves, and answered without giving
//! anything up for it. A look takes as long as the archive needs, so the answer is fetched by asking again.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pgherd_core::{
    instance::{RestoreAnswer, RestoreQuestion},
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_stream::{
    proof::{RecoveryQuestion, prove_recovery},
    store::ObjectStore,
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    actions::{describe_chain, volume::observe_free},
    agent::Agent,
    archive::own_location,
    barrier::pass_archive_barrier,
    postgres::sql::Session,
};

/// An answer is given again for so long; after that it is looked at anew.
const VALID: Duration = Duration::from_secs(60);
/// Room that a restored server needs beside its files: WAL to replay, and to go on.
const SPARE_BYTES: u64 = 256 << 20;

/// The last look.
#[derive(Debug, Default)]
pub struct CheckBook(Mutex<Option<Entry>>);

#[derive(Debug)]
struct Entry {
    question: RestoreQuestion,
    answer: RestoreAnswer,
    at: Instant,
}

/// The answer, or that it is being looked at: then a look is under way.
pub async fn answer(agent: &Arc<Agent>, question: RestoreQuestion) -> RestoreAnswer {
    let mut book = agent.restore_checks.0.lock().await;
    if let Some(entry) = book.as_ref().filter(|entry| entry.question == question) {
        let open = entry.answer == RestoreAnswer::Checking;
        if open || entry.at.elapsed() < VALID {
            return entry.answer.clone();
        }
    }
    *book = Some(Entry { question: question.clone(), answer: RestoreAnswer::Checking, at: Instant::now() });
    let agent = Arc::clone(agent);
    drop(tokio::spawn(async move {
        let answer = check(&agent, &question).await.unwrap_or_else(RestoreAnswer::Refused);
        tracing::info!(?question, ?answer, "looked whether the cluster can be restored");
        let mut book = agent.restore_checks.0.lock().await;
        if let Some(entry) = book.as_mut().filter(|entry| entry.question == question) {
            (entry.answer, entry.at) = (answer, Instant::now());
        }
    }));
    RestoreAnswer::Checking
}

async fn check(agent: &Agent, question: &RestoreQuestion) -> Result<RestoreAnswer, String> {
    let location = own_location(agent)
        .ok_or_else(|| "there is no object store to restore from: set spec.backup.objectStore".to_owned())?;
    let (present, written) = observe_end(agent).await?;
    let timeline = question.timeline.unwrap_or(present);
    let store = ObjectStore::connect(&location.store).await.map_err(|error| describe_chain(&error))?;
    let asked = RecoveryQuestion {
        backup_id: question.backup_id.clone(),
        target: question.target.clone(),
        timeline: Some(timeline),
        written: (timeline == present).then_some(written),
        tablespaces: false,
        now: Timestamp::now(),
    };
    let proven = prove_recovery(&store, &location, &asked).await.map_err(|error| describe_chain(&error))?;
    decide_room(observe_free(&agent.layout), proven.needed_bytes)?;
    Ok(RestoreAnswer::Possible { backup_id: proven.backup.id, timeline })
}

/// The present timeline, and up to where its WAL goes. A primary brings all of it into the archive first, and with it a commit
/// that is later than any target: a recovery to a time ends at the first commit after it, and fails where there is none.
async fn observe_end(agent: &Agent) -> Result<(TimelineId, Lsn), String> {
    let status = agent.board.status();
    let history = status.history.as_ref().ok_or_else(|| "this instance does not know its timeline yet".to_owned())?;
    if !status.is_primary {
        return Ok((history.timeline, status.received_lsn));
    }
    commit_something(agent).await.map_err(|error| describe_chain(&error))?;
    let barrier = pass_archive_barrier(agent).await.map_err(|error| describe_chain(&error))?;
    if !barrier.archived {
        let why = agent.board.status().archive.last_error.unwrap_or_else(|| "it takes too long".to_owned());
        return Err(format!("the WAL up to now can't be brought into the archive: {why}"));
    }
    Ok((barrier.timeline, barrier.lsn))
}

async fn commit_something(agent: &Agent) -> Result<(), crate::postgres::sql::SqlError> {
    let layout = &agent.layout;
    let session =
        Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", Duration::from_secs(20)).await?;
    // It waits for no replica: nothing of it is wanted but its time.
    session.execute("SET synchronous_commit = local").await?;
    session.execute("SELECT pg_logical_emit_message(true, 'pgherd', 'restore')").await
}

fn decide_room(free: Option<u64>, backup_bytes: u64) -> Result<(), String> {
    let needed = backup_bytes.saturating_add(SPARE_BYTES);
    match free {
        Some(free) if free < needed => Err(format!(
            "the present data is kept beside the restored, which needs {needed} bytes, and the volume has {free} free: make \
             spec.storage.size larger first"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_must_fit_the_volume() {
        assert!(decide_room(Some(1 << 30), 700 << 20).is_ok() && decide_room(None, 1 << 40).is_ok());
        let refused = decide_room(Some(1 << 30), 800 << 20).unwrap_err();
        assert!(refused.contains("spec.storage.size"), "{refused}");
    }
}

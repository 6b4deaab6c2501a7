//! From time to time the primary looks through the store for what can be restored from it, and shows that in its status. It
//! alone does: the operator has no credentials, and one look in ten minutes is enough.

use std::{sync::Arc, time::Duration};

use pgherd_core::instance::RestorableWindow;
use pgherd_stream::{
    store::ObjectStore,
    wal::{Survey, survey_archive},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{actions::describe_chain, agent::Agent, archive::own_location};

/// The store is listed this often at most.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Whether it is time for a look is asked this often.
const TICK: Duration = Duration::from_secs(10);
/// A look takes no longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// So many missing files are named.
const NAMED: usize = 10;

/// Keeps the window in the status current; never ends.
pub async fn keep_window(agent: Arc<Agent>) {
    let mut looked: Option<Instant> = None;
    loop {
        sleep(TICK).await;
        let status = agent.board.status();
        if !status.is_primary || !status.postgres_up || agent.config().store.is_none() {
            if status.archive.window.is_some() {
                agent.board.update(|status| status.archive.window = None);
            }
            // The next primary's first look comes soon after it was promoted.
            looked = None;
            continue;
        }
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            continue;
        }
        looked = Some(Instant::now());
        match timeout(PATIENCE, Box::pin(look(&agent))).await {
            Ok(Ok(window)) => agent.board.update(|status| status.archive.window = window),
            // What was seen last stays.
            Ok(Err(error)) => tracing::warn!(error = %error, "what can be restored from the store is not known"),
            Err(_) => tracing::warn!("the object store did not answer in time when asked what can be restored from it"),
        }
    }
}

async fn look(agent: &Agent) -> Result<Option<RestorableWindow>, String> {
    let status = agent.board.status();
    let (Some(location), Some(history)) = (own_location(agent), status.history) else { return Ok(None) };
    let store = ObjectStore::connect(&location.store).await.map_err(|error| describe_chain(&error))?;
    let survey = survey_archive(&store, &location, &history, status.received_lsn).await;
    Ok(survey.map_err(|error| describe_chain(&error))?.map(render_window))
}

fn render_window(survey: Survey) -> RestorableWindow {
    let Survey { oldest, backups, latest, gaps } = survey;
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    RestorableWindow {
        earliest_backup: oldest.id,
        earliest_time: oldest.stopped_at,
        earliest_lsn: oldest.stop_lsn,
        backups: count(backups),
        latest_lsn: latest,
        gap_count: count(gaps.len()),
        gaps: gaps.into_iter().take(NAMED).collect(),
    }
}

//! From time to time the primary looks through the store for what can be restored from it, and shows that in its status. It
//! alone does: the operator has no credentials, and one look in ten minutes is enough once there is something.

use std::{sync::Arc, time::Duration};

use pgherd_core::{
    backup::BackupRecord,
    instance::{ArchiveStatus, EarlyBackup, RestorableWindow},
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{Survey, survey_archive},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{actions::describe_chain, agent::Agent, archive::own_location};

/// The store is listed this often at most.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Where nothing can be restored yet: whoever has just made the first backup looks whether it is there.
const LOOK_FOR_FIRST_EVERY: Duration = Duration::from_secs(30);
/// Whether it is time for a look is asked this often.
const TICK: Duration = Duration::from_secs(10);
/// A look takes no longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// What was seen so long ago, and could not be seen since, is not shown any more.
const SHOWN_FOR: Duration = Duration::from_secs(1800);

/// Keeps the window in the status current; never ends.
pub async fn keep_window(agent: Arc<Agent>) {
    let (mut looked, mut seen): (Option<Instant>, Instant) = (None, Instant::now());
    loop {
        sleep(TICK).await;
        let status = agent.board.status();
        if !status.is_primary || !status.postgres_up || agent.config().store.is_none() {
            if status.archive.window.is_some() || status.archive.window_error.is_some() {
                agent.board.update(|status| (status.archive.window, status.archive.window_error) = (None, None));
            }
            // The next primary's first look comes soon after it was promoted.
            (looked, seen) = (None, Instant::now());
            continue;
        }
        let every = if status.archive.window.is_some() { LOOK_EVERY } else { LOOK_FOR_FIRST_EVERY };
        if looked.is_some_and(|at| at.elapsed() < every) {
            continue;
        }
        looked = Some(Instant::now());
        let found = timeout(PATIENCE, Box::pin(look(&agent)))
            .await
            .unwrap_or_else(|_| Err(format!("the object store did not answer within {} s", PATIENCE.as_secs())));
        match &found {
            Ok(_) => seen = Instant::now(),
            Err(error) => tracing::warn!(error, "what can be restored from the store is not known"),
        }
        agent.board.update(|status| show(&mut status.archive, found, seen.elapsed()));
    }
}

/// Shows what a look found. After one that failed what was seen before stays, as long as it is not too old.
fn show(archive: &mut ArchiveStatus, found: Result<Option<RestorableWindow>, String>, age: Duration) {
    match found {
        Ok(window) => (archive.window, archive.window_error) = (window, None),
        Err(error) if age >= SHOWN_FOR => (archive.window, archive.window_error) = (None, Some(error)),
        Err(_) => {}
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
    let Survey { oldest, next, backups, latest, gaps, gap_count } = survey;
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    RestorableWindow {
        earliest_backup: oldest.id,
        earliest_time: oldest.stopped_at,
        earliest_lsn: oldest.stop_lsn,
        next_backups: next.into_iter().map(render_backup).collect(),
        backups: count(backups),
        latest_lsn: latest,
        gap_count: count(gap_count),
        gaps,
    }
}

fn render_backup(record: BackupRecord) -> EarlyBackup {
    EarlyBackup { id: record.id, time: record.stopped_at, lsn: record.stop_lsn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_stays_for_half_an_hour_and_then_the_reason_is_shown_instead() {
        let window = RestorableWindow { earliest_backup: "b".to_owned(), ..RestorableWindow::default() };
        let mut archive = ArchiveStatus::default();
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        show(&mut archive, Ok(Some(window.clone())), minutes(0));
        show(&mut archive, Err("access denied".to_owned()), minutes(20));
        assert_eq!((&archive.window, &archive.window_error), (&Some(window.clone()), &None));
        show(&mut archive, Err("access denied".to_owned()), minutes(30));
        assert_eq!((&archive.window, archive.window_error.as_deref()), (&None, Some("access denied")));
        show(&mut archive, Ok(Some(window.clone())), minutes(0));
        assert_eq!((archive.window, archive.window_error), (Some(window), None));
    }
}

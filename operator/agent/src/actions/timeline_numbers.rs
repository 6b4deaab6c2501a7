//! Numbers of timelines that the archive knows and this instance does not: those of a primary that was promoted, archived, and was gone
//! before anybody followed it. PostgreSQL takes the first number whose history it does not find; another history of the same number
//! could never be archived, and nothing after it.
//!
//! With a quorum this can't happen: nothing is archived before W voters follow (see [`crate::archive`]), and one of them is in every
//! election. So the archive is asked only where some set in force needs nobody's acknowledgement.

use std::{fs, time::Duration};

use pgherd_core::timeline::TimelineId;
use pgherd_stream::{store::ObjectStore, wal};
use tokio::time::timeout;

use super::describe_chain;
use crate::{agent::Agent, archive::own_location};

/// Nobody can write while the archive is asked: longer than this it is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// PostgreSQL skips comments, finds that such a timeline is no child of its own, and counts it. The file stays: a replica asks its primary
/// for the histories of all numbers in between.
const CONTENT: &str = "# pgherd: the archive has a timeline of this number that nobody follows\n";

/// Keeps PostgreSQL from taking a number above `own` whose history is in the archive. What can't be found out in time is left.
pub async fn hold_taken_numbers(agent: &Agent, own: TimelineId) {
    if agent.config().store.is_none() {
        return;
    }
    match timeout(PATIENCE, find_and_hold(agent, own)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!(why, "which timelines the archive has is not known"),
        Err(_) => tracing::warn!("which timelines the archive has could not be found out in time"),
    }
}

async fn find_and_hold(agent: &Agent, own: TimelineId) -> Result<(), String> {
    let location = own_location(agent).ok_or_else(|| "the system identifier is not known".to_owned())?;
    let store = ObjectStore::connect(&location.store).await.map_err(|error| describe_chain(&error))?;
    for number in own.0.saturating_add(1)..u32::MAX {
        let name = format!("{}.history", TimelineId(number));
        let path = agent.layout.pgdata.join("pg_wal").join(&name);
        // What is here already counts for PostgreSQL as it is.
        if path.exists() {
            continue;
        }
        if !wal::is_archived(&store, &location, &name).await.map_err(|error| describe_chain(&error))? {
            return Ok(());
        }
        fs::write(&path, CONTENT).map_err(|error| format!("{}: {error}", path.display()))?;
        tracing::warn!(file = name, "the archive has a timeline of this number that nobody follows: another is taken");
    }
    Ok(())
}

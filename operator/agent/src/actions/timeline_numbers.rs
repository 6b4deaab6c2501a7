//! Numbers of timelines that the archive knows and this instance does not: those of a primary that was promoted, archived, and was gone
//! before anybody followed it. PostgreSQL takes the first number whose history it does not find; another history of the same number
//! could never be archived, and nothing after it.
//!
//! With a quorum this can't happen: nothing is archived before W voters follow (see [`crate::archive`]), and one of them is in every
//! election. So only where nobody's acknowledgement is needed the archive is asked.

use std::{fs, path::PathBuf, time::Duration};

use pgherd_core::timeline::TimelineId;
use pgherd_stream::{store::ObjectStore, wal};
use tokio::time::timeout;

use super::describe_chain;
use crate::{agent::Agent, archive::own_location};

/// Nobody can write while the archive is asked: longer than this it is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// PostgreSQL skips comments, finds that such a timeline is no child of its own, and counts it.
const CONTENT: &str =
    "# The archive has another history of this number; pgherd removes this file after the promotion.\n";

/// Files in pg_wal that keep numbers from being taken. Dropping it removes them.
#[derive(Debug, Default)]
pub struct TakenNumbers(Vec<PathBuf>);

impl Drop for TakenNumbers {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), error = %error, "a file that stands for a timeline can't be removed");
            }
        }
    }
}

/// Keeps PostgreSQL from taking a number above `own` whose history is in the archive. What can't be found out in time is left.
pub async fn hold_taken_numbers(agent: &Agent, own: TimelineId) -> TakenNumbers {
    let mut taken = TakenNumbers::default();
    if agent.config().store.is_none() {
        return taken;
    }
    match timeout(PATIENCE, find_and_hold(agent, own, &mut taken)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!(why, "which timelines the archive has is not known"),
        Err(_) => tracing::warn!("which timelines the archive has could not be found out in time"),
    }
    taken
}

async fn find_and_hold(agent: &Agent, own: TimelineId, taken: &mut TakenNumbers) -> Result<(), String> {
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
        taken.0.push(path);
    }
    Ok(())
}

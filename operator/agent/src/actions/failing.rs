//! A standby whose recovery fails again and again (damaged pages or WAL on its volume) is built anew, since the primary has all of it.
//! Once: a copy that fails as well before it has streamed for a while says that something else is at fault, the configuration or the
//! primary itself, and is left to people.

use std::{
    fs, io,
    time::{Duration, SystemTime},
};

use super::{ActionError, last_words, rejoin};
use crate::{agent::Agent, layout::Layout, local_state::write_durably, postgres::process::ProcessState};

/// From so many failures on, and for so long, it is not taken for something that passes by itself.
const MANY: u32 = 3;
const LONG: Duration = Duration::from_secs(60);
/// A copy that streams this long after it was begun has shown that it can; the next failure is another one.
const PROVEN_AFTER: Duration = Duration::from_secs(3_600);

/// To be asked before each start. Why the data directory is to be replaced, once that is so.
pub async fn observe_failure(agent: &Agent) -> Option<String> {
    let log = agent.server.log();
    let died = matches!(agent.server.state().await, ProcessState::Died(_));
    if !died || !log.recovery_failed() || log.disk_full() {
        return None;
    }
    let deaths = agent.streaming.note_death();
    let lasts = agent.streaming.not_streaming_for();
    if deaths < MANY || lasts < LONG || agent.layout.replaced_record().exists() {
        return None;
    }
    Some(format!("its recovery failed {deaths} times in {} s: {}", lasts.as_secs(), last_words(&agent.server)))
}

/// Replaces the data directory, and remembers that.
///
/// # Errors
/// [`ActionError`].
pub async fn replace(agent: &Agent, why: String) -> Result<(), ActionError> {
    tracing::warn!(why, "this standby can't follow; building it anew");
    let path = agent.layout.replaced_record();
    write_durably(&path, why.as_bytes()).map_err(|source| ActionError::Files { action: "write", path, source })?;
    rejoin::replace_copy(agent, why).await
}

/// The standby streams: if it has shown for long enough that it can, it may be replaced again.
///
/// # Errors
/// [`ActionError::Files`].
pub fn note_streaming(layout: &Layout) -> Result<(), ActionError> {
    let path = layout.replaced_record();
    let Ok(made) = fs::metadata(&path).and_then(|found| found.modified()) else { return Ok(()) };
    if SystemTime::now().duration_since(made).is_ok_and(|age| age < PROVEN_AFTER) {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ActionError::Files { action: "remove", path, source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_counts_until_the_copy_has_streamed_for_long_enough() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { volume: root.path().to_owned(), ..Layout::pod() };
        note_streaming(&layout).unwrap();
        let record = layout.replaced_record();
        fs::write(&record, "why").unwrap();
        note_streaming(&layout).unwrap();
        assert!(record.exists());
        let file = fs::File::options().write(true).open(&record).unwrap();
        file.set_modified(SystemTime::now() - PROVEN_AFTER - Duration::from_secs(1)).unwrap();
        note_streaming(&layout).unwrap();
        assert!(!record.exists());
    }
}

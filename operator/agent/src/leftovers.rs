//! WAL that a primary did not get into the archive before it went: a standby never archives, and marks what it received as
//! archived. So a former primary brings what it still has once it follows again, and a new primary looks after the
//! segments that it holds from before its promotion. Only what lies on the history ever goes into the archive.

use std::{fs, path::Path, sync::Arc, time::Duration};

use pgherd_core::{
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{store::ObjectStore, wal};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::describe_chain,
    agent::Agent,
    archive::own_location,
    postgres::wal_dir::{list, parse_segment_name},
};

/// How often an instance looks whether anything is left over.
const EVERY: Duration = Duration::from_secs(10);
/// One round must not take longer.
const ROUND: Duration = Duration::from_secs(120);

/// Looks after what is left over; never ends.
pub async fn keep_bringing(agent: Arc<Agent>) {
    let mut complete: Option<TimelineId> = None;
    loop {
        sleep(EVERY).await;
        let status = agent.board.status();
        let (Some(history), Some(sample)) = (status.history, agent.sample()) else { continue };
        if agent.config().store.is_none() {
            continue;
        }
        let deadline = Instant::now() + ROUND;
        if status.is_primary {
            let Some(left) = history.ancestors.last().filter(|_| complete != Some(history.timeline)) else { continue };
            let names = observe_segments(&agent.layout.pgdata, &history, left.switch_lsn, sample.segment_bytes);
            if bring(&agent, &names, deadline).await {
                complete = Some(history.timeline);
            }
        } else if status.receiver.is_some_and(|receiver| receiver.streaming) {
            let names = observe_ready(&agent.layout.pgdata, &history, sample.replayed, sample.segment_bytes);
            bring(&agent, &names, deadline).await;
        }
    }
}

/// Brings what is marked as ready, and lies before `upto` on `history`, into the archive, until `deadline` at most.
pub async fn bring_ready(agent: &Agent, history: &TimelineHistory, upto: Lsn, segment_bytes: u64, deadline: Instant) {
    if agent.config().store.is_some() {
        let names = observe_ready(&agent.layout.pgdata, history, upto, segment_bytes);
        bring(agent, &names, deadline).await;
    }
}

/// True when all of them are in the archive.
async fn bring(agent: &Agent, names: &[String], deadline: Instant) -> bool {
    if names.is_empty() {
        return true;
    }
    let Some(location) = own_location(agent) else { return false };
    let all = async {
        let store = ObjectStore::connect(&location.store).await.map_err(|error| describe_chain(&error))?;
        for name in names {
            let file = agent.layout.pgdata.join("pg_wal").join(name);
            let archived = wal::is_archived(&store, &location, name).await.map_err(|error| describe_chain(&error))?;
            if !archived && file.exists() {
                wal::push(&store, &location, &file, name).await.map_err(|error| describe_chain(&error))?;
                tracing::info!(file = %name, "brought into the archive after the fact");
            }
            let status = agent.layout.pgdata.join("pg_wal/archive_status");
            let _ = fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done")));
        }
        Ok::<(), String>(())
    };
    match timeout_at(deadline, Box::pin(all)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(error, "WAL that is left over is not in the archive yet");
            false
        }
        Err(_) => false,
    }
}

/// Complete segments with a `.ready` that lie on `history` before `upto`, oldest first.
fn observe_ready(pgdata: &Path, history: &TimelineHistory, upto: Lsn, segment_bytes: u64) -> Vec<String> {
    let names = list(&pgdata.join("pg_wal/archive_status")).into_iter();
    let ready = names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned));
    ready.filter(|name| is_on(history, upto, name, segment_bytes)).collect()
}

/// Complete segments of `history` before `upto`, oldest first.
fn observe_segments(pgdata: &Path, history: &TimelineHistory, upto: Lsn, segment_bytes: u64) -> Vec<String> {
    list(&pgdata.join("pg_wal")).into_iter().filter(|name| is_on(history, upto, name, segment_bytes)).collect()
}

/// A segment that is complete on the timeline it is named after, before that was left. Timeline and position must fit
/// each other: a recycled segment bears the name of a position that its timeline has not reached.
fn is_on(history: &TimelineHistory, upto: Lsn, name: &str, segment_bytes: u64) -> bool {
    let Some((timeline, number)) = parse_segment_name(name, segment_bytes) else { return false };
    let end = Lsn(number.saturating_add(1).saturating_mul(segment_bytes));
    let begun = history.ancestors.iter().rev().find(|entry| entry.timeline < timeline).map(|entry| entry.switch_lsn);
    end <= upto && begun.is_none_or(|begun| end > begun) && history.contains(timeline, end)
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::HistoryEntry;

    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn only_complete_segments_of_the_history_are_brought() {
        let ancestors = vec![HistoryEntry { timeline: TimelineId(1), switch_lsn: Lsn(0x300_0100) }];
        let history = TimelineHistory { timeline: TimelineId(2), ancestors };
        let is = |name: &str| is_on(&history, Lsn(0x500_0000), name, SEGMENT);
        assert!(is("000000010000000000000002"));
        assert!(is("000000020000000000000003"), "the first segment of the new timeline");
        assert!(is("000000020000000000000004"));
        assert!(!is("000000010000000000000003"), "left in its middle");
        assert!(!is("000000010000000000000004"), "a branch that was left");
        assert!(!is("000000020000000000000002"), "before its timeline began");
        assert!(!is("000000020000000000000005"), "not complete yet");
        assert!(!is("000000030000000000000004") && !is("00000002.history"));
    }
}

//! WAL that a primary did not get into the archive before it went: a standby never archives, and marks what it received as
//! archived. So a former primary brings what it has kept ([`crate::kept_wal`]) once it follows again, and a new primary looks
//! after the segments that it holds from before its promotion. Only what lies on the history ever goes into the archive.

use std::{fs, path::Path, sync::Arc, time::Duration};

use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, WalError},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::describe_chain,
    agent::Agent,
    archive::own_location,
    kept_wal,
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
        let left = kept_wal::observe(&agent.layout).len() as u64;
        agent.board.update(|status| status.archive.left_over = left);
        sleep(EVERY).await;
        if agent.config().store.is_none() {
            forget_all(&agent);
            continue;
        }
        let status = agent.board.status();
        let (Some(history), Some(sample)) = (status.history, agent.sample()) else { continue };
        let deadline = Instant::now() + ROUND;
        if status.is_primary {
            let Some(switch) = history.ancestors.last().map(|entry| entry.switch_lsn) else { continue };
            bring_kept(&agent, &history, switch, sample.segment_bytes, deadline).await;
            if complete == Some(history.timeline) {
                continue;
            }
            let names = observe_segments(&agent.layout.pgdata, &history, switch, sample.segment_bytes);
            if bring(&agent, &names, deadline).await {
                complete = Some(history.timeline);
            }
        } else if status.receiver.is_some_and(|receiver| receiver.streaming) {
            bring_kept(&agent, &history, sample.replayed, sample.segment_bytes, deadline).await;
        }
    }
}

/// Without a store nothing is archived, and PostgreSQL drops such segments as well.
fn forget_all(agent: &Agent) {
    for name in kept_wal::observe(&agent.layout) {
        if let Err(error) = kept_wal::forget(&agent.layout, &name) {
            tracing::warn!(error = %describe_chain(&error), "WAL that is kept for no archive can't be removed");
        }
    }
}

/// Brings what is marked as ready, and lies before `upto` on `history`, into the archive, until `deadline` at most.
pub async fn bring_ready(agent: &Agent, history: &TimelineHistory, upto: Lsn, segment_bytes: u64, deadline: Instant) {
    if agent.config().store.is_some() {
        let ready = kept_wal::observe_ready(&agent.layout.pgdata.join("pg_wal"));
        let names: Vec<String> = ready.filter(|name| is_on(history, upto, name, segment_bytes)).collect();
        bring(agent, &names, deadline).await;
    }
}

/// Brings what is kept of an earlier time as primary, as far as `history` is known to hold it before `upto`.
async fn bring_kept(agent: &Agent, history: &TimelineHistory, upto: Lsn, segment_bytes: u64, deadline: Instant) {
    let mut names = Vec::new();
    for name in kept_wal::observe(&agent.layout) {
        match decide_kept(history, upto, &name, segment_bytes) {
            Kept::Bring => names.push(name),
            Kept::Wait => {}
            Kept::Forget => {
                tracing::info!(file = %name, "not on the history: it does not belong into the archive");
                let _ = kept_wal::forget(&agent.layout, &name);
            }
        }
    }
    bring(agent, &names, deadline).await;
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
            bring_one(agent, &store, &location, name).await.map_err(|error| describe_chain(&error))?;
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

async fn bring_one(agent: &Agent, store: &ObjectStore, location: &ClusterLocation, name: &str) -> Result<(), WalError> {
    let pg_wal = agent.layout.pgdata.join("pg_wal");
    let kept = kept_wal::find(&agent.layout, name);
    let file = kept.clone().unwrap_or_else(|| pg_wal.join(name));
    if !wal::is_archived(store, location, name).await? {
        match wal::push(store, location, &file, name).await {
            Ok(_) => tracing::info!(file = %name, "brought into the archive after the fact"),
            // Nothing could ever bring it.
            Err(error @ WalError::Foreign { .. }) if kept.is_some() => {
                tracing::error!(error = %describe_chain(&error), "WAL that was kept is not what it was");
            }
            Err(error) if !file.exists() => {
                tracing::error!(file = %name, error = %describe_chain(&error), "it was removed before it was archived");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    if kept.is_some()
        && let Err(error) = kept_wal::forget(&agent.layout, name)
    {
        tracing::warn!(error = %describe_chain(&error), "WAL that is archived can't be removed");
    }
    let status = pg_wal.join("archive_status");
    let _ = fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done")));
    Ok(())
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

/// What becomes of a segment that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It is on the history.
    Bring,
    /// That is not known yet: a copy that replays an older backup is on an older timeline for a while.
    Wait,
    /// It never will be.
    Forget,
}

/// It was written by this instance, so only what is before the present timeline can be its own: one of that very number is of
/// another promotion.
fn decide_kept(history: &TimelineHistory, upto: Lsn, name: &str, segment_bytes: u64) -> Kept {
    match parse_segment_name(name, segment_bytes) {
        Some((timeline, _)) if timeline >= history.timeline => Kept::Wait,
        Some((timeline, number)) => {
            let end = Lsn(number.saturating_add(1).saturating_mul(segment_bytes));
            match (history.contains(timeline, end), end <= upto) {
                (true, true) => Kept::Bring,
                (true, false) => Kept::Wait,
                (false, _) => Kept::Forget,
            }
        }
        None => Kept::Wait,
    }
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

    #[test]
    fn what_is_kept_is_brought_once_its_timeline_was_left_behind_it_and_forgotten_where_it_was_left_before() {
        let ancestors = vec![HistoryEntry { timeline: TimelineId(1), switch_lsn: Lsn(0x300_0100) }];
        let history = TimelineHistory { timeline: TimelineId(3), ancestors };
        let decide = |upto, name: &str| decide_kept(&history, Lsn(upto), name, SEGMENT);
        assert_eq!(decide(0x500_0000, "000000010000000000000002"), Kept::Bring);
        assert_eq!(decide(0x2FF_FFFF, "000000010000000000000002"), Kept::Wait, "not replayed so far");
        assert_eq!(decide(0x500_0000, "000000010000000000000003"), Kept::Forget, "left in its middle");
        assert_eq!(decide(0x500_0000, "000000020000000000000002"), Kept::Forget, "a branch that was left");
        assert_eq!(decide(0x500_0000, "000000030000000000000002"), Kept::Wait, "another promotion's");
        let older = TimelineHistory::root(TimelineId(1));
        assert_eq!(decide_kept(&older, Lsn(0x500_0000), "000000010000000000000002", SEGMENT), Kept::Wait);
    }
}

//! The divergent tail: what a former primary wrote beyond the history is kept in the object store before pg_rewind or a new
//! copy discards it, and is reported. Best effort within a bound: a store that is away does not keep an instance out.

use std::{fs, time::Duration};

use pgherd_core::{
    instance::DivergentTail,
    lsn::Lsn,
    register::{MemberId, Term},
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{push_divergent, segment_name},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{branch::OwnEnd, describe_chain};
use crate::{agent::Agent, archive::own_location, layout::Layout, local_state::LocalState, local_state::write_durably};

/// The whole tail must be in the store within this time.
const BOUND: Duration = Duration::from_secs(60);

/// What was done about a tail, on the volume: PGDATA itself is about to be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    member: MemberId,
    tail: DivergentTail,
}

/// Shows the last tail that was found on this volume.
pub fn show_recorded(agent: &Agent) {
    let tail = read(&agent.layout).map(|record| record.tail);
    agent.board.update(|status| status.divergent = tail);
}

fn read(layout: &Layout) -> Option<Record> {
    serde_json::from_slice(&fs::read(layout.divergent_record()).ok()?).ok()
}

/// Keeps the WAL from `fork` to this data directory's end, once, and reports it. Never fails: what could not be kept is
/// said in the report.
pub async fn keep_tail(agent: &Agent, local: &LocalState, own: &OwnEnd, fork: Lsn) {
    let mut tail =
        DivergentTail { timeline: own.history.timeline, from_lsn: fork, to_lsn: own.lsn, kept_at: None, error: None };
    let same = |record: &Record| {
        let known = (record.tail.timeline, record.tail.from_lsn, record.tail.to_lsn);
        record.member == local.member && known == (tail.timeline, fork, own.lsn)
    };
    if tail.to_lsn <= fork || read(&agent.layout).as_ref().is_some_and(same) {
        return;
    }
    match upload(agent, local.term, &local.member, own, fork).await {
        Ok(prefix) => tail.kept_at = Some(prefix),
        Err(error) => tail.error = Some(error),
    }
    tracing::warn!(
        timeline = %tail.timeline, from = %fork, to = %tail.to_lsn, bytes = tail.to_lsn.bytes_since(fork),
        kept_at = tail.kept_at.as_deref(), error = tail.error.as_deref(),
        "this former primary held WAL that is not on the history"
    );
    let record = Record { member: local.member.clone(), tail };
    let written = serde_json::to_vec(&record).map_err(std::io::Error::other);
    if let Err(error) = written.and_then(|text| write_durably(&agent.layout.divergent_record(), &text)) {
        tracing::warn!(error = %error, "the report of the divergent tail could not be written");
    }
    agent.board.update(|status| status.divergent = Some(record.tail));
}

/// Brings every segment of the tail to the store, one at a time; the key prefix under which they are.
async fn upload(agent: &Agent, term: Term, member: &MemberId, own: &OwnEnd, fork: Lsn) -> Result<String, String> {
    let Some(location) = own_location(agent) else { return Err("no object store is configured".to_owned()) };
    let deadline = Instant::now() + BOUND;
    let prefix = location.divergent_prefix(term, member);
    let store = ObjectStore::connect(&location.store).await.map_err(|error| describe_chain(&error))?;
    let names = observe_tail(&agent.layout, own, fork);
    let wanted = names.len();
    for (done, name) in names.into_iter().enumerate() {
        let file = agent.layout.pgdata.join("pg_wal").join(&name);
        let pushed = timeout_at(deadline, Box::pin(push_divergent(&store, &location, &file, &name, &prefix))).await;
        let why = match pushed {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => describe_chain(&error),
            Err(_) => format!("not within {} s", BOUND.as_secs()),
        };
        return Err(format!("{done} of {wanted} segments were kept under {prefix}: {why}"));
    }
    Ok(prefix)
}

/// The names of the tail's segments that pg_wal still holds, oldest first, of every timeline of this branch that reaches
/// there; the last one is partly filled.
fn observe_tail(layout: &Layout, own: &OwnEnd, fork: Lsn) -> Vec<String> {
    let segment_bytes = own.segment_bytes.max(1);
    let left_before = |switch: Lsn| switch <= fork;
    let mut timelines: Vec<_> = own
        .history
        .ancestors
        .iter()
        .filter(|entry| !left_before(entry.switch_lsn))
        .map(|entry| entry.timeline)
        .collect();
    timelines.push(own.history.timeline);
    let numbers = fork.0 / segment_bytes..own.lsn.0.div_ceil(segment_bytes);
    let names = numbers.flat_map(|number| {
        timelines.iter().map(move |timeline| segment_name(*timeline, Lsn(number * segment_bytes), segment_bytes))
    });
    names.filter(|name| layout.pgdata.join("pg_wal").join(name).exists()).collect()
}

#[cfg(test)]
mod tests {
    use pgherd_core::timeline::{HistoryEntry, TimelineHistory, TimelineId};

    use super::*;

    #[test]
    fn the_tail_has_the_segments_from_the_fork_to_the_partial_one_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { pgdata: root.path().to_owned(), ..Layout::pod() };
        fs::create_dir(root.path().join("pg_wal")).unwrap();
        for name in [
            "000000010000000000000002",
            "000000020000000000000002",
            "000000020000000000000003",
            "000000020000000000000004",
            "000000020000000000000005",
            "000000030000000000000004",
        ] {
            fs::write(root.path().join("pg_wal").join(name), "").unwrap();
        }
        let ancestors = vec![HistoryEntry { timeline: TimelineId(1), switch_lsn: Lsn(0x200_0100) }];
        let history = TimelineHistory { timeline: TimelineId(2), ancestors };
        let own = OwnEnd { history, lsn: Lsn(0x400_0100), known_to: Lsn(0x400_0100), segment_bytes: 16 << 20 };
        let names = observe_tail(&layout, &own, Lsn(0x300_0000));
        assert_eq!(names, ["000000020000000000000003", "000000020000000000000004"]);
        let names = observe_tail(&layout, &own, Lsn(0x200_0000));
        assert_eq!(names.len(), 4, "{names:?}");
    }
}

//! `.history` files, which are archived as they are, so that PostgreSQL's own tools and people can read them. Three things tell a
//! damaged one: a digest in the object's metadata, its form, and the history of its parent timeline, which it must go on from.
//!
//! The digest is not demanded: a copy of a bucket may have lost it, and a file may have been put there by hand.

use pgherd_core::{
    backup::ClusterLocation,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use sha2::{Digest, Sha256};

use super::WalError;
use crate::{manifest::render_hex, store::ObjectStore};

/// Name of the entry in the object's metadata that [`render_note`] fills.
pub(super) const HISTORY_NOTE: &str = "pgherd-sha256";
/// A longer one is refused: it tells of thousands of promotions.
const MAX_HISTORY_BYTES: u64 = 1 << 20;

/// The `.history` of a timeline, proven by its digest, or else by its form and by its parent's.
pub(super) async fn read_history(
    store: &ObjectStore,
    location: &ClusterLocation,
    timeline: TimelineId,
) -> Result<Option<Vec<u8>>, WalError> {
    let Some((content, history, proven)) = get_history(store, location, timeline).await? else { return Ok(None) };
    if !proven
        && let Some(parent) = parent_of(&history)
        && let Some((_, parent, _)) = get_history(store, location, parent).await?
    {
        let key = location.wal_key(&format!("{timeline}.history"));
        validate_parent(&history, &parent).map_err(|problem| WalError::Damaged { key, problem })?;
    }
    Ok(Some(content))
}

/// Gives also whether its digest fits, which it may lack.
async fn get_history(
    store: &ObjectStore,
    location: &ClusterLocation,
    timeline: TimelineId,
) -> Result<Option<(Vec<u8>, TimelineHistory, bool)>, WalError> {
    let name = format!("{timeline}.history");
    let key = location.wal_key(&name);
    let Some((content, note)) = store.get_noted(&key, MAX_HISTORY_BYTES, HISTORY_NOTE).await? else { return Ok(None) };
    let judge = || {
        if note.as_ref().is_some_and(|note| *note != render_note(&name, &content)) {
            return Err("it does not fit its own digest".to_owned());
        }
        parse_history(timeline, &content)
    };
    let history = judge().map_err(|problem| WalError::Damaged { key, problem })?;
    Ok(Some((content.into(), history, note.is_some())))
}

/// `<SHA-256 in hexadecimal>:<name>`: a copy under another name does not fit.
pub(super) fn render_note(name: &str, content: &[u8]) -> String {
    format!("{}:{name}", render_hex(&Sha256::digest(content)))
}

/// Reads the file of `timeline`. The error says what is wrong with it.
pub(super) fn parse_history(timeline: TimelineId, content: &[u8]) -> Result<TimelineHistory, String> {
    if content.len() as u64 > MAX_HISTORY_BYTES {
        return Err(format!("it has {} bytes", content.len()));
    }
    // A promotion's reason can quote a restore point's name, in any encoding.
    let history =
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(content)).map_err(|error| error.to_string())?;
    if history.ancestors.is_empty() {
        return Err("it names no timeline".to_owned());
    }
    if !content.ends_with(b"\n") {
        return Err("its last line has no end".to_owned());
    }
    let mut reached = Lsn::ZERO;
    for entry in &history.ancestors {
        if entry.switch_lsn <= Lsn::ZERO || entry.switch_lsn < reached {
            return Err(format!("it leaves timeline {} at {}, after {reached}", entry.timeline, entry.switch_lsn));
        }
        reached = entry.switch_lsn;
    }
    Ok(history)
}

/// The timeline that was left last, if it has a history of its own.
fn parent_of(history: &TimelineHistory) -> Option<TimelineId> {
    history.ancestors.last().map(|entry| entry.timeline).filter(|timeline| timeline.0 > 1)
}

/// Checks that a history is that of its parent, and the parent's end.
fn validate_parent(history: &TimelineHistory, parent: &TimelineHistory) -> Result<(), String> {
    match history.ancestors.split_last() {
        Some((_, before)) if before == parent.ancestors => Ok(()),
        _ => Err(format!("it does not go on from {}.history", parent.timeline)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As PostgreSQL writes it: what the parent's file holds, an empty line, and one line more.
    const THIRD: &[u8] =
        b"1\t0/3000060\tno recovery target specified\n\n2\t0/50000A0\tat restore point \"\xe9t\xe9\"\n";

    #[test]
    fn a_history_is_what_postgresql_writes_and_goes_on_from_its_parents() {
        let third = parse_history(TimelineId(3), THIRD).unwrap();
        assert_eq!(parent_of(&third), Some(TimelineId(2)));
        let second = parse_history(TimelineId(2), &THIRD[..42]).unwrap();
        assert_eq!(parent_of(&second), None, "the first timeline has no file");
        validate_parent(&third, &second).unwrap();
        let other = parse_history(TimelineId(2), b"1\t0/3000070\tx\n").unwrap();
        assert!(validate_parent(&third, &other).unwrap_err().contains("00000002.history"));
        for (what, content) in [
            ("nothing", &b""[..]),
            ("a comment", b"# nothing\n"),
            ("its own timeline", b"3\t0/3000060\tx\n"),
            ("cut off", &THIRD[..THIRD.len() - 1]),
            ("cut off in a position", &THIRD[..8]),
            ("positions that go back", b"1\t0/3000060\tx\n2\t0/3000050\tx\n"),
            ("timelines that go back", b"2\t0/3000060\tx\n1\t0/4000000\tx\n"),
            ("no position", b"1\t0/0\tx\n"),
            ("zstd", b"\x28\xb5\x2f\xfd\n"),
            ("too much", &vec![b'\n'; 2 << 20]),
        ] {
            assert!(parse_history(TimelineId(3), content).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_rendered_is_read_back(steps in prop::collection::vec(1u64..1 << 40, 1..12)) {
            let entry = |(timeline, lsn): (u32, u64)| pgherd_core::timeline::HistoryEntry {
                timeline: TimelineId(timeline), switch_lsn: Lsn(lsn),
            };
            let positions = steps.iter().scan(0, |sum, step| { *sum += step; Some(*sum) });
            let ancestors: Vec<_> = (1..).zip(positions).map(entry).collect();
            let history = TimelineHistory { timeline: TimelineId(99), ancestors };
            prop_assert_eq!(parse_history(TimelineId(99), history.render().as_bytes()).unwrap(), history);
        }

        #[test]
        fn arbitrary_and_changed_bytes_never_panic_and_what_is_read_goes_forward(
            bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let _ = parse_history(TimelineId(3), &bytes);
            let mut changed = THIRD.to_vec();
            changed[at.index(THIRD.len())] = byte;
            if let Ok(history) = parse_history(TimelineId(3), &changed) {
                prop_assert!(history.ancestors.is_sorted_by_key(|entry| (entry.timeline, entry.switch_lsn)));
                prop_assert!(history.ancestors.iter().all(|entry| entry.timeline < TimelineId(3)));
            }
        }
    }
}

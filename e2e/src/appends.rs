//! List-append: clients append values to lists, and the lists tell afterwards whether the history could have happened.
//!
//! Pure: no clock, no database. Times are ticks of one counter in the process of all clients, so that "before" is a fact
//! and not a matter of clocks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged, without a warning that its wait was cancelled.
    Acknowledged,
    /// The server said that nothing was written.
    Failed,
    /// Nobody can know: the connection was lost at the commit, or the wait for replicas was cancelled.
    Unknown,
}

/// One append of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The list.
    pub key: i64,
    /// The value, used once in the whole history.
    pub value: i64,
    /// The tick before it was sent.
    pub invoked: u64,
    /// The tick after its answer. Only of interest when acknowledged.
    pub completed: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a reader saw of the lists: the longest state of each, which has every earlier one as its beginning.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    longest: BTreeMap<i64, Vec<i64>>,
    forked: u64,
}

impl Seen {
    /// Enters what was read of a list. A state that is no beginning of the longest one, nor goes on from it, is a fork.
    pub fn note(&mut self, key: i64, list: Vec<i64>) {
        let known = self.longest.entry(key).or_default();
        let shared = known.len().min(list.len());
        if known[..shared] != list[..shared] {
            self.forked += 1;
        }
        if list.len() > known.len() {
            *known = list;
        }
    }
}

/// What the lists tell. Everything but the first two must be 0, and `lost`, `vanished` and `forked` may be more than 0 only
/// where a loss is allowed (mode `Off`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListReport {
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Appends that nobody can know about.
    pub unknown: u64,
    /// Acknowledged, but not there.
    pub lost: u64,
    /// Failed, but there.
    pub failed_present: u64,
    /// There more than once.
    pub duplicated: u64,
    /// There, but never sent.
    pub phantom: u64,
    /// Placed before a value whose append had been acknowledged before this one was sent.
    pub reordered: u64,
    /// Seen by a reader, but not there, or in another place.
    pub vanished: u64,
    /// States that a reader saw and that contradict each other.
    pub forked: u64,
}

impl ListReport {
    /// Anomalies that no mode allows: they are not losses, they are lies.
    #[must_use]
    pub fn impossible(&self) -> u64 {
        self.failed_present + self.duplicated + self.phantom + self.reordered
    }
}

/// Holds the history and what readers saw against the last state of the lists.
#[must_use]
pub fn check(history: &[Append], seen: &Seen, last: &BTreeMap<i64, Vec<i64>>) -> ListReport {
    let by_value: BTreeMap<i64, &Append> = history.iter().map(|append| (append.value, append)).collect();
    let mut report = ListReport { forked: seen.forked, ..ListReport::default() };
    let mut present = BTreeSet::new();
    for (key, list) in last {
        for value in list {
            if !present.insert(*value) {
                report.duplicated += 1;
            }
            match by_value.get(value) {
                Some(append) if append.key == *key => {
                    report.failed_present += u64::from(append.outcome == Outcome::Failed);
                }
                _ => report.phantom += 1,
            }
        }
        report.reordered += count_reordered(list, &by_value);
    }
    for append in history {
        match append.outcome {
            Outcome::Acknowledged => {
                report.acknowledged += 1;
                report.lost += u64::from(!present.contains(&append.value));
            }
            Outcome::Unknown => report.unknown += 1,
            Outcome::Failed => {}
        }
    }
    let nothing = Vec::new();
    for (key, list) in &seen.longest {
        let now = last.get(key).unwrap_or(&nothing);
        report.vanished += list.iter().enumerate().filter(|(at, value)| now.get(*at) != Some(value)).count() as u64;
    }
    report
}

/// From the end: a value is out of place if one behind it was acknowledged before this one was sent.
fn count_reordered(list: &[i64], by_value: &BTreeMap<i64, &Append>) -> u64 {
    let mut earliest_ack_behind = u64::MAX;
    let mut reordered = 0;
    for append in list.iter().rev().filter_map(|value| by_value.get(value)) {
        reordered += u64::from(earliest_ack_behind < append.invoked);
        if append.outcome == Outcome::Acknowledged {
            earliest_ack_behind = earliest_ack_behind.min(append.completed);
        }
    }
    reordered
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A history that happened: appends overlap, take effect one after the other, and end in any of the three ways. Of each:
    /// key, how long it waits before and after its effect, and its fate (0-5 acknowledged, 6 failed, 7 unknown and there,
    /// 8 unknown and absent).
    fn happened() -> impl Strategy<Value = (Vec<Append>, BTreeMap<i64, Vec<i64>>)> {
        prop::collection::vec((0..4_i64, 0..5_u64, 0..5_u64, 0..9_u8), 4..60).prop_map(|steps| {
            let mut history = Vec::new();
            let mut last: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
            for (at, (key, before, after, fate)) in steps.into_iter().enumerate() {
                // Each takes effect at 10 ticks a step; it is sent up to 4 steps earlier and answered up to 4 steps later.
                let (value, effect) = (at as i64 + 1, 100 + 10 * at as u64);
                let outcome = match fate {
                    0..=5 => Outcome::Acknowledged,
                    6 => Outcome::Failed,
                    _ => Outcome::Unknown,
                };
                if fate != 6 && fate != 8 {
                    last.entry(key).or_default().push(value);
                }
                let (invoked, completed) = (effect - 1 - 10 * before, effect + 1 + 10 * after);
                history.push(Append { key, value, invoked, completed, outcome });
            }
            (history, last)
        })
    }

    fn seen(last: &BTreeMap<i64, Vec<i64>>, part: usize) -> Seen {
        let mut seen = Seen::default();
        for (key, list) in last {
            seen.note(*key, list[..list.len() * part / 4].to_vec());
            seen.note(*key, list[..list.len() * (part / 2) / 4].to_vec());
        }
        seen
    }

    fn acknowledged(history: &[Append], pick: usize) -> Option<Append> {
        let all: Vec<_> = history.iter().filter(|append| append.outcome == Outcome::Acknowledged).collect();
        (!all.is_empty()).then(|| all[pick % all.len()].clone())
    }

    proptest! {
        #[test]
        fn a_history_that_happened_passes((history, last) in happened(), part in 0..=4_usize) {
            let report = check(&history, &seen(&last, part), &last);
            prop_assert_eq!((report.lost, report.impossible(), report.vanished, report.forked), (0, 0, 0, 0));
        }

        #[test]
        fn a_planted_loss_is_found((history, mut last) in happened(), pick in 0..60_usize) {
            let Some(victim) = acknowledged(&history, pick) else { return Ok(()) };
            let read = seen(&last, 4);
            last.entry(victim.key).or_default().retain(|value| *value != victim.value);
            let report = check(&history, &read, &last);
            prop_assert_eq!(report.lost, 1);
            prop_assert!(report.vanished >= 1, "it had been seen: {:?}", report);
        }

        #[test]
        fn a_planted_duplicate_is_found((history, mut last) in happened(), pick in 0..60_usize) {
            let Some(twice) = acknowledged(&history, pick) else { return Ok(()) };
            last.entry(twice.key).or_default().push(twice.value);
            prop_assert_eq!(check(&history, &Seen::default(), &last).duplicated, 1);
        }

        #[test]
        fn a_planted_phantom_is_found((history, mut last) in happened(), key in 0..4_i64) {
            last.entry(key).or_default().push(1_000_000);
            prop_assert_eq!(check(&history, &Seen::default(), &last).phantom, 1);
        }

        #[test]
        fn a_value_in_another_list_is_a_phantom((history, mut last) in happened(), pick in 0..60_usize) {
            let Some(moved) = acknowledged(&history, pick) else { return Ok(()) };
            last.entry(moved.key).or_default().retain(|value| *value != moved.value);
            last.entry(moved.key + 10).or_default().push(moved.value);
            prop_assert_eq!(check(&history, &Seen::default(), &last).phantom, 1);
        }

        #[test]
        fn a_failed_append_that_is_there_is_found((history, mut last) in happened(), pick in 0..60_usize) {
            let failed: Vec<_> = history.iter().filter(|append| append.outcome == Outcome::Failed).collect();
            if failed.is_empty() { return Ok(()) }
            let there = failed[pick % failed.len()];
            last.entry(there.key).or_default().push(there.value);
            prop_assert_eq!(check(&history, &Seen::default(), &last).failed_present, 1);
        }

        #[test]
        fn a_planted_reorder_is_found((mut history, mut last) in happened(), key in 0..4_i64) {
            // Two appends one after the other, the later of which stands first.
            let end = history.iter().map(|append| append.completed).max().unwrap_or_default();
            for (value, at) in [(1_000_001, end + 10), (1_000_002, end + 20)] {
                history.push(Append { key, value, invoked: at, completed: at + 5, outcome: Outcome::Acknowledged });
            }
            last.entry(key).or_default().extend([1_000_002, 1_000_001]);
            prop_assert_eq!(check(&history, &Seen::default(), &last).reordered, 1);
        }

        #[test]
        fn what_a_reader_saw_must_stay((history, mut last) in happened(), key in 0..4_i64) {
            let read = seen(&last, 4);
            let Some(list) = last.get_mut(&key) else { return Ok(()) };
            list.pop();
            prop_assert_eq!(check(&history, &read, &last).vanished, 1);
        }
    }

    #[test]
    fn states_that_contradict_each_other_are_forks() {
        let mut seen = Seen::default();
        seen.note(1, vec![1, 2, 3]);
        seen.note(1, vec![1, 2]);
        seen.note(1, vec![1, 9, 3, 4]);
        assert_eq!(check(&[], &seen, &BTreeMap::new()).forked, 1);
    }

    #[test]
    fn appends_that_overlap_may_stand_in_either_order() {
        let append =
            |value, invoked, completed| Append { key: 1, value, invoked, completed, outcome: Outcome::Acknowledged };
        let history = [append(1, 1, 10), append(2, 5, 12)];
        for list in [vec![1, 2], vec![2, 1]] {
            assert_eq!(check(&history, &Seen::default(), &BTreeMap::from([(1, list)])).reordered, 0);
        }
    }
}

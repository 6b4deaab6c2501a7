//! From looks at every pod to how long two of them took writes at once. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Acknowledgements of one pod that are no further apart than this are one span. Longer than any pause of a writable pod
/// on a slow machine would hide nothing: a pod that acknowledges before and after another did is found in any case.
const JOIN_MS: i64 = 1_000;

/// What a look at a pod found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// A row was committed and acknowledged.
    Acknowledged,
    /// The wait for replicas was cancelled: committed, but not as promised.
    Cancelled,
    /// It is in recovery or else refuses writes.
    ReadOnly,
    /// No connection, or none that lets the application in.
    Refused,
    /// No answer in time: cut off, frozen, or a commit that waits for replicas.
    Silent,
}

/// A look at a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Look {
    /// When it began, in milliseconds since the Unix epoch; all looks are of one machine.
    pub at_ms: i64,
    /// How long it took, in milliseconds.
    pub took_ms: i64,
    /// What it found.
    pub answer: Answer,
    /// The row's number within its pod, if one was acknowledged.
    #[serde(default)]
    pub row: Option<i64>,
    /// `pg_is_in_recovery()` as it was when the session began, if there was one.
    #[serde(default)]
    pub in_recovery: Option<bool>,
}

/// The spans in which a pod acknowledged writes.
fn spans(looks: &[Look]) -> Vec<(i64, i64)> {
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for look in looks.iter().filter(|look| matches!(look.answer, Answer::Acknowledged | Answer::Cancelled)) {
        let at = look.at_ms + look.took_ms;
        match spans.last_mut() {
            Some((_, end)) if at - *end <= JOIN_MS => *end = at.max(*end),
            _ => spans.push((at, at)),
        }
    }
    spans
}

/// For how long, in milliseconds, two pods acknowledged writes at once. A single acknowledgement amid another pod's counts
/// as one.
#[must_use]
pub fn measure_overlap(pods: &BTreeMap<String, Vec<Look>>) -> i64 {
    let all: Vec<_> = pods.values().map(|looks| spans(looks)).collect();
    let mut overlap = 0;
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            for (from, to) in one {
                for (other_from, other_to) in other {
                    let (begin, end) = (*from.max(other_from), *to.min(other_to));
                    if begin <= end {
                        overlap += (end - begin).max(1);
                    }
                }
            }
        }
    }
    overlap
}

/// When a pod acknowledged last after a point in time; None if not at all.
#[must_use]
pub fn last_acknowledged(looks: &[Look], after_ms: i64) -> Option<i64> {
    let acknowledged = looks.iter().filter(|look| look.answer == Answer::Acknowledged && look.at_ms >= after_ms);
    acknowledged.map(|look| look.at_ms + look.took_ms).max()
}

/// When a pod acknowledged last before it was silent for two seconds, after a point in time: what comes after that is
/// another life.
#[must_use]
pub fn last_before_silence(looks: &[Look], after_ms: i64) -> Option<i64> {
    let acknowledged = looks.iter().filter(|look| look.answer == Answer::Acknowledged && look.at_ms >= after_ms);
    let mut last = None;
    for at in acknowledged.map(|look| look.at_ms + look.took_ms) {
        if at - last.unwrap_or(after_ms) > 2_000 {
            break;
        }
        last = Some(at);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(at: impl IntoIterator<Item = i64>) -> Vec<Look> {
        let look = |at_ms| Look { at_ms, took_ms: 5, answer: Answer::Acknowledged, row: None, in_recovery: None };
        at.into_iter().map(look).collect()
    }

    fn overlap(one: Vec<Look>, other: Vec<Look>) -> i64 {
        measure_overlap(&BTreeMap::from([("a".to_string(), one), ("b".to_string(), other)]))
    }

    #[test]
    fn one_after_the_other_is_no_overlap() {
        assert_eq!(overlap(acks((0..10).map(|n| n * 100)), acks((10..20).map(|n| n * 100))), 0);
    }

    #[test]
    fn both_at_once_is_as_long_as_it_lasts() {
        assert_eq!(overlap(acks((0..20).map(|n| n * 100)), acks((10..30).map(|n| n * 100))), 900);
    }

    #[test]
    fn a_single_acknowledgement_of_the_old_primary_is_found() {
        assert_eq!(overlap(acks([0, 100, 5_000]), acks((40..60).map(|n| n * 100))), 1);
    }

    #[test]
    fn what_comes_after_a_silence_is_another_life() {
        assert_eq!(last_before_silence(&acks([0, 100, 200, 9_000]), 100), Some(205));
        assert_eq!(last_before_silence(&acks([9_000]), 100), None);
    }

    #[test]
    fn a_pod_that_only_waits_overlaps_with_nobody() {
        let mut silent = acks((0..20).map(|n| n * 100));
        for look in &mut silent {
            look.answer = Answer::Silent;
        }
        assert_eq!(overlap(silent, acks((0..20).map(|n| n * 100))), 0);
    }
}

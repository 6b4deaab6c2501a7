//! What was measured: `target/bench/failover.json` and a table.

use std::fmt;

use pgherd_crds::v1alpha1::postgres_cluster::LastFailover;
use pgherd_e2e::{Result, kubectl::root};
use serde::Serialize;

use crate::ways::Way;

/// One run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    /// The longest time between two acknowledged rows, in milliseconds.
    pub(crate) gap_ms: u64,
    pub(crate) acked: u64,
    pub(crate) lost: u64,
    pub(crate) detect_ms: Option<i64>,
    pub(crate) seal_ms: Option<i64>,
    pub(crate) promote_ms: Option<i64>,
    pub(crate) route_ms: Option<i64>,
}

impl Run {
    pub(crate) fn new(gap_ms: u64, acked: u64, lost: u64, failover: Option<&LastFailover>) -> Self {
        Self {
            gap_ms,
            acked,
            lost,
            detect_ms: failover.map(|f| f.detect_ms),
            seal_ms: failover.map(|f| f.seal_ms),
            promote_ms: failover.map(|f| f.promote_ms),
            route_ms: failover.map(|f| f.route_ms),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms without a write, {} acknowledged, {} lost", self.gap_ms, self.acked, self.lost)?;
        if let (Some(detect), Some(seal), Some(promote), Some(route)) =
            (self.detect_ms, self.seal_ms, self.promote_ms, self.route_ms)
        {
            write!(f, " (detect {detect}, seal {seal}, promote {promote}, route {route})")?;
        }
        Ok(())
    }
}

/// All runs of one way.
pub(crate) struct Figures {
    way: Way,
    pub(crate) runs: Vec<Run>,
    notes: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    way: &'a str,
    runs: usize,
    median_ms: Option<u64>,
    p95_ms: Option<u64>,
    max_ms: Option<u64>,
    goal_p95_ms: u64,
    /// None where nothing was measured.
    goal_met: Option<bool>,
    cloud_native_pg: &'a str,
    detect_median_ms: Option<u64>,
    seal_median_ms: Option<u64>,
    promote_median_ms: Option<u64>,
    route_median_ms: Option<u64>,
    lost: u64,
    each: &'a [Run],
    notes: &'a [String],
}

/// The smallest value that a share of all values, in percent, does not exceed.
fn percentile(values: &[u64], percent: usize) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// Ways whose goal was missed, or of which a run failed: one sentence each.
pub(crate) fn missed(all: &[Figures]) -> Vec<String> {
    let mut sentences = Vec::new();
    for figures in all {
        let summary = figures.summarise();
        if summary.goal_met == Some(false) {
            let p95 = summary.p95_ms.unwrap_or_default();
            sentences.push(format!("{}: p95 {p95} ms, goal {} ms", summary.way, summary.goal_p95_ms));
        }
        sentences.extend(summary.notes.iter().map(|note| format!("{}: a run failed: {note}", summary.way)));
    }
    sentences
}

impl Figures {
    pub(crate) fn new(way: Way) -> Self {
        Self { way, runs: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.to_string());
    }

    fn summarise(&self) -> Summary<'_> {
        let gaps: Vec<u64> = self.runs.iter().map(|run| run.gap_ms).collect();
        let median = |part: fn(&Run) -> Option<i64>| {
            let parts: Vec<u64> = self.runs.iter().filter_map(part).filter_map(|ms| u64::try_from(ms).ok()).collect();
            percentile(&parts, 50)
        };
        let p95 = percentile(&gaps, 95);
        Summary {
            way: self.way.name(),
            runs: self.runs.len(),
            median_ms: percentile(&gaps, 50),
            p95_ms: p95,
            max_ms: percentile(&gaps, 100),
            goal_p95_ms: self.way.goal_p95_ms(),
            goal_met: p95.map(|p95| p95 <= self.way.goal_p95_ms()),
            cloud_native_pg: self.way.peer(),
            detect_median_ms: median(|run| run.detect_ms),
            seal_median_ms: median(|run| run.seal_ms),
            promote_median_ms: median(|run| run.promote_ms),
            route_median_ms: median(|run| run.route_ms),
            lost: self.runs.iter().map(|run| run.lost).sum(),
            each: &self.runs,
            notes: &self.notes,
        }
    }
}

/// Writes `target/bench/failover.json`.
pub(crate) fn keep(all: &[Figures]) -> Result<()> {
    let folder = root().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let summaries: Vec<_> = all.iter().map(Figures::summarise).collect();
    std::fs::write(folder.join("failover.json"), serde_json::to_string_pretty(&summaries)?)?;
    Ok(())
}

/// The table for people, in milliseconds.
pub(crate) fn render(all: &[Figures]) -> String {
    let mut lines = vec![
        "| way | runs | median | p95 | max | goal p95 | CloudNativePG | detect, seal, promote, route (medians) | lost |".to_string(),
        "|---|---|---|---|---|---|---|---|---|".to_string(),
    ];
    let text = |value: Option<u64>| value.map_or_else(|| "-".to_string(), |value| value.to_string());
    for summary in all.iter().map(Figures::summarise) {
        lines.push(format!(
            "| {} | {} | {} | {} | {} | {} | {} | {}, {}, {}, {} | {} |{}",
            summary.way,
            summary.runs,
            text(summary.median_ms),
            text(summary.p95_ms),
            text(summary.max_ms),
            summary.goal_p95_ms,
            summary.cloud_native_pg,
            text(summary.detect_median_ms),
            text(summary.seal_median_ms),
            text(summary.promote_median_ms),
            text(summary.route_median_ms),
            summary.lost,
            summary.notes.first().map(|note| format!(" {note}")).unwrap_or_default()
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u64> = (1..=20).rev().collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 95), percentile(&values, 100)),
            (Some(10), Some(19), Some(20))
        );
        assert_eq!((percentile(&[7], 95), percentile(&[], 50)), (Some(7), None));
    }
}

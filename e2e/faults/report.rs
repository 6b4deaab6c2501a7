//! What came of the faults: `target/faults.json` for programs and a table for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

use pgherd_e2e::{Result, kubectl::root};
use serde::{Deserialize, Serialize};

use crate::registry::{self, Fault, Plan};

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    /// Every invariant held, and what the fault itself claims.
    Pass,
    /// Something did not hold; the note says what.
    Fail,
    /// This version does not have what is to be tested.
    Skipped,
    /// This machine or this version can't be made to have it; the note says why.
    NotInjected,
}

/// One entry of `target/faults.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FaultResult {
    pub(crate) fault: String,
    pub(crate) number: String,
    pub(crate) title: String,
    pub(crate) mode: String,
    pub(crate) runs: u32,
    /// The longest time between two acknowledged rows, of each run.
    pub(crate) gap_ms: Vec<u64>,
    pub(crate) acked: u64,
    pub(crate) lost: u64,
    pub(crate) unknown: u64,
    /// How long two instances acknowledged writes at once, all runs together.
    pub(crate) overlap_ms: i64,
    pub(crate) verdict: Verdict,
    pub(crate) note: String,
}

impl FaultResult {
    pub(crate) fn new(fault: &Fault) -> Self {
        let (mode, verdict, note) = match &fault.plan {
            Plan::Inject { mode, .. } => (format!("{mode:?}"), Verdict::Pass, String::new()),
            Plan::NotInjected(reason) => (String::new(), Verdict::NotInjected, (*reason).to_string()),
        };
        Self {
            fault: fault.name.into(),
            number: fault.number.into(),
            title: fault.title.into(),
            mode,
            runs: 0,
            gap_ms: Vec::new(),
            acked: 0,
            lost: 0,
            unknown: 0,
            overlap_ms: 0,
            verdict,
            note,
        }
    }

    /// Adds to the note; failures come first.
    pub(crate) fn add_note(&mut self, text: &str) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(text);
    }
}

fn file() -> PathBuf {
    root().join("target/faults.json")
}

/// Writes results beside those of other faults that an earlier run left, if there still are such faults.
pub(crate) fn keep(results: &[FaultResult]) -> Result<()> {
    let earlier: Vec<FaultResult> = match std::fs::read_to_string(file()) {
        Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let known: BTreeSet<&str> = registry::all().iter().map(|fault| fault.name).collect();
    let earlier = earlier.into_iter().filter(|result| known.contains(result.fault.as_str()));
    let mut all: BTreeMap<(u32, String), FaultResult> = BTreeMap::new();
    for result in earlier.chain(results.iter().cloned()) {
        all.insert((result.number.parse().unwrap_or_default(), result.fault.clone()), result);
    }
    std::fs::create_dir_all(root().join("target"))?;
    std::fs::write(file(), serde_json::to_string_pretty(&all.into_values().collect::<Vec<_>>())?)?;
    Ok(())
}

/// A table of the results.
pub(crate) fn render_table(results: &[FaultResult]) -> String {
    let mut text = format!(
        "\n{:>3} {:26} {:9} {:>8} {:>7} {:>5} {:>8} {:>8} verdict\n",
        "#", "fault", "mode", "gap ms", "acked", "lost", "unknown", "overlap"
    );
    for result in results {
        let gap = result.gap_ms.iter().max().map_or_else(String::new, u64::to_string);
        let _ = writeln!(
            text,
            "{:>3} {:26} {:9} {gap:>8} {:>7} {:>5} {:>8} {:>8} {:?}{}",
            result.number,
            result.fault,
            result.mode,
            result.acked,
            result.lost,
            result.unknown,
            result.overlap_ms,
            result.verdict,
            if result.note.is_empty() { String::new() } else { format!(": {}", result.note) }
        );
    }
    text
}

/// All faults, for `--list`.
pub(crate) fn render_list(all: &[Fault]) -> String {
    let mut text = String::new();
    for fault in all {
        let plan = match &fault.plan {
            Plan::Inject { mode, short, .. } => format!("{mode:?}{}", if *short { ", short" } else { "" }),
            Plan::NotInjected(reason) => format!("not injected: {reason}"),
        };
        let _ = writeln!(text, "{:>3} {:26} {} ({plan})", fault.number, fault.name, fault.title);
    }
    text
}

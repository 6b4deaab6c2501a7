//! What was measured: `target/bench/backup.json`.

use std::{collections::BTreeMap, fs, path::Path};

use pgherd_e2e::Result;
use serde::Serialize;

use crate::{
    archiving::Rate,
    load::Disturbance,
    meter::Cost,
    peers::{PEERS, PGHERD, PGHERD_LOCAL, Peer},
};

/// All of it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    pub(crate) at: String,
    pub(crate) machine: Machine,
    pub(crate) gib: f64,
    pub(crate) rate_kilobytes_per_second: u64,
    pub(crate) versions: BTreeMap<&'static str, String>,
    /// Who was not measured, and why.
    pub(crate) absent: BTreeMap<String, String>,
    pub(crate) sets: Vec<SetFigures>,
    pub(crate) archiving: Vec<Rate>,
    pub(crate) loaded: Vec<Disturbance>,
    pub(crate) failures: Vec<String>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_kilobytes: u64,
    kernel: String,
    /// Of one minute, when it began: a machine that has other work measures that too.
    load_average_before: String,
    /// The file that was measured as pgherd.
    pgherd: String,
}

impl Machine {
    pub(crate) fn observe(pgherd: &str) -> Result<Self> {
        let after = |file: &str, key: &str| -> Result<String> {
            let text = fs::read_to_string(file)?;
            let line = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':'));
            Ok(line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
        };
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            processor: after("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory_kilobytes: after("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse()?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_average_before: load.split(' ').next().unwrap_or_default().to_owned(),
            pgherd: pgherd.to_owned(),
        })
    }
}

/// One set of data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SetFigures {
    pub(crate) set: &'static str,
    /// Of the data directory without WAL; MB/s are of these.
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) ratios: Vec<Ratio>,
}

/// One way.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) runs: Vec<Run>,
}

/// One run of one way.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    pub(crate) backup: Option<Cost>,
    pub(crate) stored_bytes: u64,
    pub(crate) restore: Option<Cost>,
    /// What was left to write when the restore had ended.
    pub(crate) sync_seconds: Option<f64>,
    pub(crate) verified: Option<String>,
}

/// Medians of a row's runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) backup: Option<Cost>,
    pub(crate) stored_bytes: u64,
    pub(crate) restore: Option<Cost>,
    pub(crate) sync_seconds: Option<f64>,
}

/// pgherd's seconds in relation to another's: below 1 it is faster.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) what: &'static str,
    pub(crate) against: &'static str,
    pub(crate) name: &'static str,
    pub(crate) ratio: f64,
}

/// The median; of an even number of values the mean of the middle ones.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

fn median_cost(costs: &[Cost]) -> Option<Cost> {
    let of = |part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
    Some(Cost {
        seconds: of(|cost| cost.seconds)?,
        client_cpu_seconds: of(|cost| cost.client_cpu_seconds)?,
        postgres_cpu_seconds: of(|cost| cost.postgres_cpu_seconds)?,
        store_cpu_seconds: of(|cost| cost.store_cpu_seconds)?,
        peak_resident_bytes: costs.iter().map(|cost| cost.peak_resident_bytes).max()?,
    })
}

impl Row {
    pub(crate) fn summarise(&self) -> Summary {
        let costs = |part: fn(&Run) -> Option<Cost>| self.runs.iter().filter_map(part).collect::<Vec<_>>();
        Summary {
            backup: median_cost(&costs(|run| run.backup)),
            stored_bytes: self.runs.iter().map(|run| run.stored_bytes).max().unwrap_or(0),
            restore: median_cost(&costs(|run| run.restore)),
            sync_seconds: median(self.runs.iter().filter_map(|run| run.sync_seconds).collect()),
        }
    }

    fn seconds(&self, restore: bool) -> Option<f64> {
        let summary = self.summarise();
        if !restore {
            return summary.backup.map(|cost| cost.seconds);
        }
        Some(summary.restore?.seconds + summary.sync_seconds.unwrap_or(0.0))
    }
}

impl SetFigures {
    /// The row of a peer.
    pub(crate) fn row(&mut self, peer: &Peer) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == peer.name).unwrap_or_else(|| {
            self.rows.push(Row { name: peer.name, runs: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// pgherd against the fastest peer, and against the lowest ceiling: restores with what is left to write.
    pub(crate) fn compute_ratios(&mut self) {
        self.ratios.clear();
        for (what, restore) in [("backup", false), ("restore", true)] {
            let seconds: Vec<_> = self.rows.iter().filter_map(|row| Some((row.name, row.seconds(restore)?))).collect();
            let Some((_, own)) = seconds.iter().find(|(name, _)| *name == PGHERD) else { continue };
            let is_ceiling = |name: &str| PEERS.iter().any(|peer| peer.name == name && peer.is_ceiling());
            let (ceilings, peers): (Vec<_>, Vec<_>) = seconds.iter().partition(|(name, _)| is_ceiling(name));
            let others = peers.into_iter().filter(|(name, _)| ![PGHERD, PGHERD_LOCAL].contains(name));
            let best = others.min_by(|a, b| a.1.total_cmp(&b.1));
            let lowest = ceilings.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
            let ratios = [("the fastest peer", best), ("the lowest ceiling", lowest)];
            self.ratios.extend(ratios.into_iter().filter_map(|(against, other)| {
                let (name, seconds) = other?;
                Some(Ratio { what, against, name, ratio: own / seconds })
            }));
        }
    }
}

impl Figures {
    /// Writes `backup.json`.
    pub(crate) fn keep(&mut self, folder: &Path) -> Result<()> {
        self.sets.iter_mut().for_each(SetFigures::compute_ratios);
        fs::create_dir_all(folder)?;
        fs::write(folder.join("backup.json"), serde_json::to_string_pretty(self)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, seconds: &[f64]) -> Row {
        let run = |seconds| Run { backup: Some(Cost { seconds, ..Cost::default() }), ..Run::default() };
        Row { name, runs: seconds.iter().copied().map(run).collect() }
    }

    #[test]
    fn a_median_stands_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn pgherd_stands_against_the_fastest_peer_and_the_slowest_ceiling() {
        let rows = vec![
            row(PGHERD, &[10.0]),
            row("barman", &[40.0]),
            row("pgbackrest", &[9.0, 11.0, 20.0]),
            row("ceiling-stream", &[4.0]),
            row("ceiling-codec", &[8.0]),
        ];
        let mut set = SetFigures { set: "tables", bytes: 0, files: 0, rows, ratios: Vec::new() };
        set.compute_ratios();
        let ratios: Vec<_> = set.ratios.iter().map(|ratio| (ratio.what, ratio.name, ratio.ratio)).collect();
        assert_eq!(ratios, [("backup", "pgbackrest", 10.0 / 11.0), ("backup", "ceiling-codec", 10.0 / 8.0)]);
    }
}

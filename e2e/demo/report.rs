//! What the demo measured: a table for people and `target/demo.json` for programs.

use std::{future::Future, time::Instant};

use pgherd_e2e::{Result, kubectl::root};
use serde::Serialize;

/// The figures of a run, in the form of `target/demo.json`.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    steps: Vec<Step>,
    pub(crate) rows: Rows,
    pub(crate) backup: BackupFigures,
    pub(crate) failover: FailoverFigures,
    pub(crate) replica: ReplicaFigures,
}

#[derive(Serialize)]
struct Step {
    name: String,
    seconds: f64,
    ok: bool,
}

/// Rows of the ledger.
#[derive(Default, Serialize)]
pub(crate) struct Rows {
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
}

/// The schedule's first backup.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackupFigures {
    pub(crate) bytes: i64,
    pub(crate) stored_bytes: i64,
    pub(crate) seconds: f64,
    pub(crate) peak_rss_bytes: i64,
}

/// The failover after the primary's node was cut off.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailoverFigures {
    pub(crate) gap_ms: u64,
    pub(crate) promoted: String,
    pub(crate) candidates: Vec<Candidate>,
}

/// Who stood in it.
#[derive(Serialize)]
pub(crate) struct Candidate {
    pub(crate) pod: String,
    pub(crate) lsn: String,
    pub(crate) why: String,
}

/// The replica that was added.
#[derive(Default, Serialize)]
pub(crate) struct ReplicaFigures {
    pub(crate) source: String,
}

impl Report {
    /// Runs one step, prints it with its time, and keeps both.
    pub(crate) async fn step<T>(&mut self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        println!("\n== {}. {name}", self.steps.len() + 1);
        let begun = Instant::now();
        let outcome = work.await;
        let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        println!("   {} in {seconds:.1} s", if outcome.is_ok() { "done" } else { "FAILED" });
        self.steps.push(Step { name: name.into(), seconds, ok: outcome.is_ok() });
        outcome
    }

    /// Prints the table and writes the file.
    pub(crate) fn finish(&self) -> Result<()> {
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        println!("\n{:width$}  seconds  result", "step");
        for step in &self.steps {
            println!("{:width$}  {:7.1}  {}", step.name, step.seconds, if step.ok { "ok" } else { "FAILED" });
        }
        let total: f64 = self.steps.iter().map(|step| step.seconds).sum();
        println!("{:width$}  {total:7.1}", "all");
        println!("\nrows acknowledged {}, lost {}", self.rows.acknowledged, self.rows.lost);
        println!(
            "backup {:.1} MB read, {:.1} MB stored, {:.1} s, peak memory {:.1} MiB",
            self.backup.bytes as f64 / 1e6,
            self.backup.stored_bytes as f64 / 1e6,
            self.backup.seconds,
            self.backup.peak_rss_bytes as f64 / 1_048_576.0
        );
        println!(
            "longest time without a write at failover {} ms, promoted {}",
            self.failover.gap_ms, self.failover.promoted
        );
        println!("the added replica was built from: {}", self.replica.source);
        let file = root().join("target/demo.json");
        std::fs::create_dir_all(root().join("target"))?;
        std::fs::write(&file, serde_json::to_string_pretty(self)?)?;
        println!("the same figures: target/demo.json");
        Ok(())
    }

    /// # Errors
    /// A row is missing or a step failed.
    pub(crate) fn verdict(&self) -> Result<()> {
        if self.rows.lost > 0 {
            return Err(format!("{} acknowledged rows are missing", self.rows.lost).into());
        }
        match self.steps.iter().find(|step| !step.ok) {
            Some(step) => Err(format!("step \"{}\" fell short", step.name).into()),
            None => Ok(()),
        }
    }
}

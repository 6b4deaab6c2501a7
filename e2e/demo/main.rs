//! `make demo`: the main job on a real Kubernetes, step by step, with its times.
//!
//! It exits non-zero if an acknowledged row is missing or any step fell short, and writes `target/demo.json`.
#![forbid(unsafe_code)]

mod failover;
mod report;
mod steps;

use pgherd_e2e::Result;
use report::Report;

#[tokio::main]
async fn main() -> Result<()> {
    let client = pgherd_e2e::cluster::connect().await?;
    let mut report = Report::default();
    let outcome = steps::run(&client, &mut report).await;
    if let Err(error) = &outcome {
        let folder = pgherd_e2e::namespace::keep_evidence(steps::NAMESPACE).await;
        println!("\nThe demo fell short: {error}\nObjects, events and logs are in {}", folder.display());
    }
    report.finish()?;
    if outcome.is_ok() {
        println!("\nLook around:");
        println!("  export KUBECONFIG={}", std::env::var("KUBECONFIG").unwrap_or_default());
        println!("  kubectl -n {} get pgc,pgb,pgbs", steps::NAMESPACE);
        println!(
            "  kubectl -n {} get pgc shop -o yaml        # status.lastFailover, status.members[].source",
            steps::NAMESPACE
        );
        println!("  kubectl -n {} exec -it shop-0 -c postgres -- psql -U postgres app", steps::NAMESPACE);
        println!("  make cluster-down                          # removes the local Kubernetes");
    }
    outcome?;
    report.verdict()
}

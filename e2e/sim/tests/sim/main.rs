//! A deterministic simulation of whole clusters: the operator and the agent's decisions as they are, over simulated time,
//! network, API server and PostgreSQL. `make sim SEEDS=n` runs n random pairs of faults; see docs/adr/0003-simulation.md.
#![allow(unreachable_pub, reason = "one program")]

mod actions;
mod api;
mod checks;
mod control;
mod data;
mod faults;
mod instance;
mod net;
mod operators;
mod postgres;
mod random;
mod run;
mod scope;
mod store;
mod trace;
mod workload;
mod world;

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use run::{Report, Scenario, run};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Runs scenarios on two threads; the failed ones, by seed.
fn run_all(scenarios: Vec<Scenario>) -> Vec<Report> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                    let Some(scenario) = scenarios.get(index) else { return };
                    let report = run(scenario.clone());
                    println!("{report}");
                    if !report.violations.is_empty() {
                        failed.lock().unwrap().push(report);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|report| report.scenario.seed);
    failed
}

fn assert_none(failed: &[Report]) {
    let Some(first) = failed.first() else { return };
    println!("\ntrace of seed {}:", first.scenario.seed);
    for line in &first.trace {
        println!("{line}");
    }
    println!("\nfailed:");
    for report in failed {
        println!("{report}");
    }
    let seeds: Vec<String> = failed.iter().map(|report| report.scenario.seed.to_string()).collect();
    panic!("{} seeds failed: {}; run one of them by `make sim SEED=n`", failed.len(), seeds.join(", "));
}

#[test]
fn a_cluster_heals_from_any_pair_of_faults_and_loses_nothing() {
    let from = number("PGHERD_SIM_SEED", 1);
    let count = number("PGHERD_SIM_SEEDS", 20);
    assert_none(&run_all((from..from + count).map(Scenario::of).collect()));
}

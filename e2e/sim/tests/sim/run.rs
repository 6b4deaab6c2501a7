//! One run: a cluster comes up, faults come and go, then everything is checked. What a run is made of follows from its
//! seed alone.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    checks,
    control::{create_nodes, run_stateful_sets},
    faults::{Planned, Targets, draw},
    operators::Operator,
    random::Random,
    scope::{elapsed, start_clocks, stop_clocks},
    trace::{self, note},
    workload,
    world::{Mutant, World},
};

/// `synchronous.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Off,
    Preferred,
    Required,
}

/// What a run is given.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) mutant: Mutant,
    pub(crate) mode: Mode,
    pub(crate) acks: u32,
    pub(crate) faults: Vec<Planned>,
}

impl Scenario {
    /// Two faults, drawn from the seed.
    pub(crate) fn of(seed: u64) -> Self {
        let random = Random::new(seed ^ 0xFA17);
        let mode = match random.between(0, 100) {
            0..70 => Mode::Required,
            70..85 => Mode::Preferred,
            _ => Mode::Off,
        };
        let acks = if random.percent(75) { 1 } else { 2 };
        let faults = (0..2).map(|_| draw(&random, mode)).collect();
        Self { seed, mutant: Mutant::None, mode, acks, faults }
    }
}

/// What came of it.
pub(crate) struct Report {
    pub(crate) scenario: Scenario,
    pub(crate) violations: Vec<String>,
    pub(crate) remarks: Vec<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) terms: u64,
    pub(crate) longest_gap: Duration,
    pub(crate) simulated: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { seed, mode, acks, faults, .. } = &self.scenario;
        let faults: Vec<String> =
            faults.iter().map(|p| format!("{:?} at {:?} for {:?}", p.fault, p.at, p.lasts)).collect();
        let (acknowledged, unknown, terms) = (self.acknowledged, self.unknown, self.terms);
        write!(
            f,
            "seed {seed}: {mode:?} {acks}; {}; {acknowledged} acknowledged, {unknown} unknown, term {terms}, longest gap {:.1} s, {:.0} s simulated",
            faults.join(" and "),
            self.longest_gap.as_secs_f64(),
            self.simulated.as_secs_f64()
        )?;
        for remark in &self.remarks {
            write!(f, "\n  ({remark})")?;
        }
        for violation in &self.violations {
            write!(f, "\n  FAILED {violation}")?;
        }
        Ok(())
    }
}

/// Runs it on this thread.
pub(crate) fn run(scenario: Scenario) -> Report {
    fastrand::seed(scenario.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let _log = trace::capture();
    let _ = trace::take();
    let world = runtime.block_on(async {
        start_clocks();
        let world = World::new(scenario.seed, scenario.mutant, scenario.mode == Mode::Required);
        play(&world, &scenario).await;
        world
    });
    let simulated = runtime.block_on(async { elapsed() });
    // Tasks hold the world: they end with the runtime.
    drop(runtime);
    stop_clocks();
    world.instances.lock().unwrap().clear();
    let ledger = world.ledger.lock().unwrap();
    Report {
        violations: world.violations.lock().unwrap().clone(),
        remarks: world.remarks.lock().unwrap().clone(),
        trace: trace::take(),
        acknowledged: ledger.acknowledged.len(),
        unknown: ledger.unknown.len(),
        terms: world.register().map_or(0, |register| register.term.0),
        longest_gap: ledger.longest_gap,
        simulated,
        scenario,
    }
}

async fn play(world: &Arc<World>, scenario: &Scenario) {
    create_cluster(world, scenario);
    tokio::spawn(run_stateful_sets(Arc::clone(world)));
    let operators = vec![Operator::start(world, 0), Operator::start(world, 1)];
    if !checks::await_ready(world, Duration::from_secs(180)).await {
        world.violate(format!("I3: the new cluster is not Ready: {}", checks::why_not_ready(world)));
        return;
    }
    note("the cluster is Ready");
    workload::start(world);
    sleep(Duration::from_secs(3)).await;
    world.ledger.lock().unwrap().longest_gap = Duration::ZERO;
    let targets = Targets { world: Arc::clone(world), operators };
    futures::future::join_all(scenario.faults.iter().map(|planned| targets.inflict(planned))).await;
    note("all faults are healed");
    checks::after_healing(world).await;
    world.stopping.store(true, Ordering::SeqCst);
}

fn create_cluster(world: &World, scenario: &Scenario) {
    create_nodes(world);
    let synchronous = if scenario.mode == Mode::Off {
        json!({"mode": "Off"})
    } else {
        json!({"mode": format!("{:?}", scenario.mode), "replicas": scenario.acks})
    };
    let cluster = json!({"apiVersion": "pgherd.dev/v1alpha1", "kind": "PostgresCluster", "metadata": {},
        "spec": {"instances": 3, "storage": {"size": "10Gi"}, "synchronous": synchronous}});
    let key = ("postgresclusters".to_owned(), "web".to_owned(), "shop".to_owned());
    world.api.edit(|objects| objects.create(key, cluster, "2026-11-25T09:00:00Z"));
}

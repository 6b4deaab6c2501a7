//! The metrics. Labels come from closed sets only: controllers and stages, never names of objects.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Label of what is counted for each controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ControllerLabel {
    /// The controller's name.
    pub controller: &'static str,
}

/// Label of failed rounds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    /// The controller's name.
    pub controller: &'static str,
    /// The stage that failed.
    pub stage: &'static str,
}

type Histograms = Family<ControllerLabel, Histogram, fn() -> Histogram>;

/// All metrics of the operator. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Failovers that made another instance the primary.
    pub failovers: Counter,
    /// Requests to the API server that changed or could have changed an object.
    pub api_writes: Counter,
    /// 1 on the pod that leads.
    pub leader: Gauge,
    duration: Histograms,
    failures: Family<FailureLabels, Counter>,
}

fn rounds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            failovers: Counter::default(),
            api_writes: Counter::default(),
            leader: Gauge::default(),
            duration: Family::new_with_constructor(rounds),
            failures: Family::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and registers them.
    #[must_use]
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "pgherd_failovers",
            "Failovers that made another instance the primary",
            metrics.failovers.clone(),
        );
        registry.register("pgherd_api_writes", "Writing requests to the API server", metrics.api_writes.clone());
        registry.register("pgherd_leader", "1 on the pod that leads", metrics.leader.clone());
        registry.register_with_unit(
            "pgherd_reconcile_duration",
            "Time of a round",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register("pgherd_reconcile_failures", "Rounds that failed, by stage", metrics.failures.clone());
        metrics
    }

    /// Counts one round.
    pub fn reconciled(&self, controller: &'static str, took: Duration, failed_stage: Option<&'static str>) {
        self.duration.get_or_create(&ControllerLabel { controller }).observe(took.as_secs_f64());
        if let Some(stage) = failed_stage {
            self.failures.get_or_create(&FailureLabels { controller, stage }).inc();
        }
    }
}

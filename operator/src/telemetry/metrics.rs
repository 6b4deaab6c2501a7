//! The metrics. Labels come from closed sets only: controllers, stages and reasons. Those of single clusters are in
//! [`super::clusters`].

use std::time::Duration;

use pgherd_core::register::FailoverKind;
use pgherd_crds::v1alpha1::postgres_cluster::LastFailover;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::clusters::ClusterMetrics;

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

/// Label of failovers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// What set it off.
    pub reason: &'static str,
}

/// Label of the parts of a failover.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartLabel {
    /// `detect`, `seal`, `promote` or `route`.
    pub part: &'static str,
}

type Histograms = Family<ControllerLabel, Histogram, fn() -> Histogram>;

/// All metrics of the operator. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Of single clusters.
    pub clusters: ClusterMetrics,
    failovers: Family<ReasonLabel, Counter>,
    parts: Family<PartLabel, Histogram, fn() -> Histogram>,
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

fn parts() -> Histogram {
    Histogram::new([0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            clusters: ClusterMetrics::default(),
            failovers: Family::default(),
            parts: Family::new_with_constructor(parts),
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
            "Failovers and switchovers that were decided, by what set them off",
            metrics.failovers.clone(),
        );
        registry.register_with_unit(
            "pgherd_failover_duration",
            "Time of the parts of a failover",
            Unit::Seconds,
            metrics.parts.clone(),
        );
        registry.register_collector(Box::new(metrics.clusters.clone()));
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

    /// Counts a decided failover.
    pub fn failed_over(&self, kind: FailoverKind) {
        let reason = match kind {
            FailoverKind::Released => "released",
            FailoverKind::LeaseExpired => "lease_expired",
            FailoverKind::Silent => "silent",
            FailoverKind::PodGone => "pod_gone",
            FailoverKind::Switchover => "switchover",
            FailoverKind::Forced => "forced",
            FailoverKind::Unknown => "unknown",
        };
        self.failovers.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Takes in where the time of a complete failover went.
    pub fn failover_took(&self, record: &LastFailover) {
        let parts = [
            ("detect", record.detect_ms),
            ("seal", record.seal_ms),
            ("promote", record.promote_ms),
            ("route", record.route_ms),
        ];
        for (part, ms) in parts {
            let seconds = Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64();
            self.parts.get_or_create(&PartLabel { part }).observe(seconds);
        }
    }

    /// Counts one round.
    pub fn reconciled(&self, controller: &'static str, took: Duration, failed_stage: Option<&'static str>) {
        self.duration.get_or_create(&ControllerLabel { controller }).observe(took.as_secs_f64());
        if let Some(stage) = failed_stage {
            self.failures.get_or_create(&FailureLabels { controller, stage }).inc();
        }
    }
}

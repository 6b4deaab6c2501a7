//! What is known of each cluster, for Prometheus. These are the only metrics with names of objects as labels; they go with
//! the cluster. Values are those of the last round: nobody is asked when they are read.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

/// A cluster as the last round saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSample {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub cluster: String,
    /// The condition Ready is True.
    pub ready: bool,
    /// The condition PrimaryAvailable is True.
    pub primary_available: bool,
    /// The condition FailoverBlocked is True.
    pub failover_blocked: bool,
    /// How many replicas an acknowledged commit is on, at least.
    pub synchronous_replicas: u32,
    /// Commits whose wait for replicas was cancelled, since the primary started.
    pub cancelled_waits: u64,
    /// When the newest restorable backup was complete, in seconds since the Unix epoch.
    pub last_backup_at: Option<i64>,
    /// By pod: how far its replay is behind the primary, in bytes. Only of those that could be asked.
    pub lag_bytes: BTreeMap<String, u64>,
}

/// The samples of all clusters, by UID. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetrics {
    samples: Arc<Mutex<BTreeMap<String, ClusterSample>>>,
}

impl ClusterMetrics {
    /// Takes in what a round saw.
    pub fn set(&self, uid: &str, sample: ClusterSample) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), sample);
    }

    /// Forgets the clusters of this scope that are gone; those of other scopes are not this caller's.
    pub fn retain(&self, namespace: Option<&str>, uids: &[String]) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|uid, sample| uids.contains(uid) || namespace.is_some_and(|own| own != sample.namespace));
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    namespace: String,
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    namespace: String,
    cluster: String,
    pod: String,
}

/// Name, help and value of a gauge; no value, no line.
type Figure = (&'static str, &'static str, fn(&ClusterSample) -> Option<i64>);

const FIGURES: [Figure; 6] = [
    ("pgherd_cluster_ready", "1 when the cluster is Ready", |sample| Some(i64::from(sample.ready))),
    ("pgherd_cluster_primary_available", "1 when the primary takes writes", |sample| {
        Some(i64::from(sample.primary_available))
    }),
    ("pgherd_failover_blocked", "1 when a failover can't be decided", |sample| {
        Some(i64::from(sample.failover_blocked))
    }),
    ("pgherd_cluster_synchronous_replicas", "Replicas that an acknowledged commit is on, at least", |sample| {
        Some(i64::from(sample.synchronous_replicas))
    }),
    (
        "pgherd_cluster_cancelled_waits",
        "Commits whose wait for replicas was cancelled, since the primary started",
        |sample| i64::try_from(sample.cancelled_waits).ok(),
    ),
    (
        "pgherd_cluster_last_backup_timestamp_seconds",
        "When the newest restorable backup was complete; its age is time() less this",
        |sample| sample.last_backup_at,
    ),
];

impl Collector for ClusterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, value) in FIGURES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sample in samples.values() {
                let labels = ClusterLabels { namespace: sample.namespace.clone(), cluster: sample.cluster.clone() };
                if let Some(value) = value(sample) {
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let (name, help) = ("pgherd_instance_lag_bytes", "How far the instance's replay is behind the primary");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for sample in samples.values() {
            for (pod, lag) in &sample.lag_bytes {
                let (namespace, cluster) = (sample.namespace.clone(), sample.cluster.clone());
                let labels = InstanceLabels { namespace, cluster, pod: pod.clone() };
                ConstGauge::new(i64::try_from(*lag).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn text(metrics: &ClusterMetrics) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.clone()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_cluster_has_its_lines_until_it_is_gone() {
        let metrics = ClusterMetrics::default();
        let sample = ClusterSample {
            namespace: "web".into(),
            cluster: "shop".into(),
            ready: true,
            lag_bytes: [("shop-1".to_owned(), 64)].into(),
            ..ClusterSample::default()
        };
        metrics.set("u1", sample);
        let seen = text(&metrics);
        assert!(seen.contains("pgherd_cluster_ready{namespace=\"web\",cluster=\"shop\"} 1"), "{seen}");
        assert!(
            seen.contains("pgherd_instance_lag_bytes{namespace=\"web\",cluster=\"shop\",pod=\"shop-1\"} 64"),
            "{seen}"
        );
        assert!(!seen.contains("last_backup_timestamp_seconds{"), "there was no backup: {seen}");
        metrics.retain(Some("other"), &[]);
        assert!(text(&metrics).contains("shop"), "another namespace's controller knows nothing of it");
        metrics.retain(Some("web"), &[]);
        assert!(!text(&metrics).contains("shop"));
    }
}

//! The figures of a cluster for Prometheus: the status in numbers, and the lag that has no place in a status.

use jiff::Timestamp;
use pgherd_crds::{
    PostgresClusterStatus,
    v1alpha1::conditions::{FAILOVER_BLOCKED, PRIMARY_AVAILABLE, READY},
};

use super::StatusInput;
use crate::telemetry::clusters::ClusterSample;

/// What the round came to.
#[must_use]
pub fn build_sample(input: StatusInput<'_>, status: &PostgresClusterStatus) -> ClusterSample {
    let StatusInput { cluster, observed, .. } = input;
    let is = |type_: &str| status.conditions.iter().any(|is| is.type_ == type_ && is.status == "True");
    let primary = observed.serving_holder();
    let replicas = observed.pods.iter().filter_map(|pod| pod.status()).filter(|status| !status.is_primary);
    let lag_bytes = primary.map(|primary| {
        let with_data = replicas.filter(|replica| replica.member.is_some());
        with_data.map(|replica| (replica.pod.clone(), primary.received_lsn.bytes_since(replica.replayed_lsn))).collect()
    });
    let completed_at = status.last_backup.as_ref().and_then(|backup| backup.completed_at.parse::<Timestamp>().ok());
    ClusterSample {
        namespace: cluster.namespace.clone(),
        cluster: cluster.name.clone(),
        ready: is(READY),
        primary_available: is(PRIMARY_AVAILABLE),
        failover_blocked: is(FAILOVER_BLOCKED),
        synchronous_replicas: status.synchronous.as_ref().map_or(0, |now| now.effective),
        cancelled_waits: primary.map_or(0, |primary| primary.cancelled_waits),
        last_backup_at: completed_at.map(Timestamp::as_second),
        lag_bytes: lag_bytes.unwrap_or_default(),
    }
}

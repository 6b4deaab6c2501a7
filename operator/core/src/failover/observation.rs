//! What an observer carries from round to round: since when the Lease has not changed and since when a pod has not
//! answered, on the observer's own clock. Time stamps of others are never compared.

use std::collections::BTreeMap;

use crate::instance::InstanceStatus;

/// After a pause of the observer longer than this (milliseconds) nothing counts as unchanged: the API server may have
/// been away for the holder as well.
pub const MAX_GAP_MS: u64 = 6_000;

/// What a pod's agent said in this round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It answered.
    Reachable(Box<InstanceStatus>),
    /// It did not, within the probe's time.
    Unreachable,
}

/// A pod that exists in this round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// The pod's UID.
    pub uid: String,
    /// Its agent's answer.
    pub probe: Probe,
}

impl PodView {
    /// The status, if the agent answered.
    #[must_use]
    pub fn status(&self) -> Option<&InstanceStatus> {
        match &self.probe {
            Probe::Reachable(status) => Some(status),
            Probe::Unreachable => None,
        }
    }
}

/// What was seen up to now; kept by the caller between rounds, lost without harm when the operator restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// When this was updated, in milliseconds of a monotonic clock.
    pub now_ms: u64,
    /// The Lease's resourceVersion.
    pub lease_version: String,
    /// Since when it is unchanged.
    pub lease_since_ms: u64,
    /// Since when each pod's agent does not answer (or the pod does not exist).
    pub unreachable_since_ms: BTreeMap<String, u64>,
}

impl Observation {
    /// The observation of this round. `pods` are the pods by name; `prev` is None in the first round.
    #[must_use]
    pub fn update(prev: Option<&Self>, now_ms: u64, lease_version: &str, pods: &BTreeMap<String, PodView>) -> Self {
        let prev = prev.filter(|prev| now_ms.saturating_sub(prev.now_ms) <= MAX_GAP_MS);
        let lease_since_ms =
            prev.filter(|prev| prev.lease_version == lease_version).map_or(now_ms, |prev| prev.lease_since_ms);
        let unreachable_since_ms = pods
            .iter()
            .filter(|(_, view)| view.status().is_none())
            .map(|(pod, _)| {
                let since = prev.and_then(|prev| prev.unreachable_since_ms.get(pod)).copied();
                (pod.clone(), since.unwrap_or(now_ms))
            })
            .collect();
        Self { now_ms, lease_version: lease_version.to_owned(), lease_since_ms, unreachable_since_ms }
    }

    /// For how long the Lease is unchanged, in milliseconds.
    #[must_use]
    pub fn lease_unchanged_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.lease_since_ms)
    }

    /// For how long the pod's agent does not answer, in milliseconds; None if it answered in this round or does not
    /// exist.
    #[must_use]
    pub fn unreachable_ms(&self, pod: &str) -> Option<u64> {
        self.unreachable_since_ms.get(pod).map(|since| self.now_ms.saturating_sub(*since))
    }
}

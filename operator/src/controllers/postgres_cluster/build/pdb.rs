//! PodDisruptionBudgets: a drain takes one replica at a time, and the primary only after its role has moved.
//!
//! Two budgets that no pod shares: the eviction API refuses a pod that two of them select. Both count by `minAvailable`,
//! because `maxUnavailable` is counted against the StatefulSet's replicas, not against the pods that a budget selects.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};
use pgherd_crds::names::{self, ROLE_PRIMARY, keys};

use super::{metadata, selector};
use crate::controllers::postgres_cluster::validate::ValidatedCluster;

/// The replicas' budget and the primary's.
#[must_use]
pub fn build_budgets(cluster: &ValidatedCluster, protect_primary: bool) -> Vec<PodDisruptionBudget> {
    let replicas = cluster.instances.saturating_sub(1);
    vec![
        build_budget(cluster, names::pdb(&cluster.name), "NotIn", replicas.saturating_sub(1)),
        build_budget(cluster, names::primary_pdb(&cluster.name), "In", u32::from(protect_primary)),
    ]
}

fn build_budget(cluster: &ValidatedCluster, name: String, operator: &str, available: u32) -> PodDisruptionBudget {
    let is_primary = LabelSelectorRequirement {
        key: keys::ROLE.to_owned(),
        operator: operator.to_owned(),
        values: Some(vec![ROLE_PRIMARY.to_owned()]),
    };
    let selector = LabelSelector { match_expressions: Some(vec![is_primary]), ..selector(&cluster.name) };
    PodDisruptionBudget {
        metadata: metadata(cluster, name),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(available).unwrap_or(i32::MAX))),
            selector: Some(selector),
            // A pod that is broken anyway must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

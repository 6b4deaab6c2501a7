//! Where instances go when the user says nothing.

use k8s_openapi::{
    api::core::v1::{Affinity, PodAffinityTerm, PodAntiAffinity, WeightedPodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use pgherd_crds::names::{ROLE_PRIMARY, keys};

use crate::controllers::postgres_cluster::build::selector_labels;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Instances avoid each other's nodes, and where nodes tie, the primary's: the two that a failover needs should not be
/// lost together. Preferred, not required, so that a cluster still starts on a single node.
#[must_use]
pub fn build_default_affinity(cluster: &str) -> Affinity {
    let mut primary = selector_labels(cluster);
    primary.insert(keys::ROLE.to_owned(), ROLE_PRIMARY.to_owned());
    let term = |weight, labels| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            topology_key: HOSTNAME.to_owned(),
            label_selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                term(100, selector_labels(cluster)),
                term(50, primary),
            ]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

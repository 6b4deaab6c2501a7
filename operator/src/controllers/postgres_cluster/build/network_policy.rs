//! NetworkPolicy: who may reach the instances. Egress is left alone, because the object store can be anywhere.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use pgherd_core::instance::AGENT_PORT;
use pgherd_crds::names::{self, keys};

use super::{metadata, selector, services::POSTGRES_PORT};
use crate::controllers::{backup::build::BACKUP_APP, postgres_cluster::validate::ValidatedCluster};

/// A label of the operator's pods that no value of the chart changes.
const OPERATOR_LABELS: [(&str, &str); 1] = [(keys::COMPONENT, "operator")];

/// PostgreSQL from everywhere (pg_hba.conf demands TLS and a password or a certificate); the agents' API only from the
/// cluster's own pods, from backup Jobs and from the operator. Probes come from the node, which no policy stops.
#[must_use]
pub fn build_network_policy(cluster: &ValidatedCluster) -> NetworkPolicy {
    let own = peer([(keys::CLUSTER, cluster.name.as_str())].into_iter(), None);
    let operator = peer(OPERATOR_LABELS.into_iter(), Some(LabelSelector::default()));
    let jobs = peer([(keys::NAME, BACKUP_APP)].into_iter(), None);
    NetworkPolicy {
        metadata: metadata(cluster, names::network_policy(&cluster.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(&cluster.name)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(vec![port(POSTGRES_PORT)]), from: None },
                NetworkPolicyIngressRule { ports: Some(vec![port(AGENT_PORT)]), from: Some(vec![own, jobs, operator]) },
            ]),
            ..NetworkPolicySpec::default()
        }),
    }
}

fn peer<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>, namespaces: Option<LabelSelector>) -> NetworkPolicyPeer {
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    NetworkPolicyPeer {
        pod_selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
        namespace_selector: namespaces,
        ..NetworkPolicyPeer::default()
    }
}

fn port(number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(number))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    }
}

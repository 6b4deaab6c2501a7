//! The Services: `-rw` leads to the primary or nowhere, `-ro` to replicas, `-r` to any instance that is ready, `-pods` gives
//! every pod a name whether it is ready or not.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use pgherd_core::instance::AGENT_PORT;
use pgherd_crds::names::{ROLE_PRIMARY, ROLE_REPLICA, keys, pods_service, r_service, ro_service, rw_service};

use super::{metadata, selector_labels};
use crate::controllers::postgres_cluster::validate::ValidatedCluster;

/// Port of PostgreSQL.
pub const POSTGRES_PORT: u16 = 5432;
/// Its name in pods and Services.
pub const POSTGRES_PORT_NAME: &str = "postgres";
/// Name of the agent's port.
pub const AGENT_PORT_NAME: &str = "agent";

/// All four.
#[must_use]
pub fn build_services(cluster: &ValidatedCluster) -> Vec<Service> {
    vec![
        build_client_service(cluster, rw_service(&cluster.name), Some(ROLE_PRIMARY)),
        build_client_service(cluster, ro_service(&cluster.name), Some(ROLE_REPLICA)),
        build_client_service(cluster, r_service(&cluster.name), None),
        build_pods_service(cluster),
    ]
}

fn build_client_service(cluster: &ValidatedCluster, name: String, role: Option<&str>) -> Service {
    let mut selector = selector_labels(&cluster.name);
    selector.extend(role.map(|role| (keys::ROLE.to_owned(), role.to_owned())));
    let spec = ServiceSpec { type_: Some("ClusterIP".to_owned()), ..service_spec(selector, vec![postgres_port()]) };
    Service { metadata: metadata(cluster, name), spec: Some(spec), ..Service::default() }
}

/// Agents and replicas find each other by it while pods are not ready yet.
fn build_pods_service(cluster: &ValidatedCluster) -> Service {
    let agent = port(AGENT_PORT_NAME, AGENT_PORT);
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        ..service_spec(selector_labels(&cluster.name), vec![postgres_port(), agent])
    };
    Service { metadata: metadata(cluster, pods_service(&cluster.name)), spec: Some(spec), ..Service::default() }
}

fn service_spec(selector: BTreeMap<String, String>, ports: Vec<ServicePort>) -> ServiceSpec {
    ServiceSpec { selector: Some(selector), ports: Some(ports), ..ServiceSpec::default() }
}

fn postgres_port() -> ServicePort {
    port(POSTGRES_PORT_NAME, POSTGRES_PORT)
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

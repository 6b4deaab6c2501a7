//! The containers of an instance: one that installs the agent, and PostgreSQL's own image that runs under it.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, ObjectFieldSelector, SecurityContext,
};
use pgherd_core::instance::{AGENT_PORT, PROBE_PORT, paths};

use super::{
    probes::{self, PROBE_PORT_NAME},
    volumes,
};
use crate::controllers::postgres_cluster::{
    build::services::{AGENT_PORT_NAME, POSTGRES_PORT, POSTGRES_PORT_NAME},
    validate::ValidatedCluster,
};

/// Copies the static binary into the pod and writes a passwd entry, so that any image with PostgreSQL serves.
#[must_use]
pub fn build_install_container(cluster: &ValidatedCluster, pgherd_image: &str) -> Container {
    Container {
        name: "install".to_owned(),
        image: Some(pgherd_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["agent-install".to_owned()]),
        volume_mounts: Some(vec![volumes::mount(volumes::RUN, paths::RUN)]),
        resources: cluster.resources.clone(),
        security_context: Some(restricted()),
        ..Container::default()
    }
}

/// PostgreSQL under the agent.
#[must_use]
pub fn build_postgres_container(cluster: &ValidatedCluster) -> Container {
    Container {
        name: "postgres".to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![format!("{}/bin/pgherd", paths::RUN), "agent".to_owned()]),
        env: Some(vec![
            field("POD_NAME", "metadata.name"),
            field("POD_UID", "metadata.uid"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_IP", "status.podIP"),
        ]),
        ports: Some(vec![
            port(POSTGRES_PORT_NAME, POSTGRES_PORT),
            port(AGENT_PORT_NAME, AGENT_PORT),
            port(PROBE_PORT_NAME, PROBE_PORT),
        ]),
        volume_mounts: Some(volumes::build_mounts(cluster)),
        resources: cluster.resources.clone(),
        liveness_probe: Some(probes::build_liveness()),
        readiness_probe: Some(probes::build_readiness()),
        startup_probe: Some(probes::build_startup()),
        security_context: Some(restricted()),
        ..Container::default()
    }
}

/// What the Pod Security Standard "restricted" asks of a container, and a read-only root.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.to_owned(), api_version: Some("v1".to_owned()) }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

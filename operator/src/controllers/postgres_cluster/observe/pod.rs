//! What is read off a Pod object: identity, role, address, and what stands in its way in words that help.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use pgherd_core::{failover::Probe, instance::InstanceStatus};
use pgherd_crds::names::{self, keys};

use super::parse_ip;
use crate::{controllers::postgres_cluster::validate::ValidatedCluster, kubernetes::agent_client::AgentAddress};

/// Messages of the kubelet and the scheduler are cut here: some repeat whole manifests.
const MAX_MESSAGE_CHARS: usize = 400;

/// What the StatefulSet controller labels its pods with.
const REVISION_LABEL: &str = "controller-revision-hash";

/// Reasons of a waiting container that don't pass by themselves, or not soon.
const STUCK: [&str; 9] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "CrashLoopBackOff",
];

/// A pod of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its ordinal.
    pub ordinal: u32,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Value of the role label.
    pub role: Option<String>,
    /// Its address while its container runs.
    pub ip: Option<IpAddr>,
    /// The kubelet's last word on readiness.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// What Kubernetes cannot do for it.
    pub problem: Option<PodProblem>,
    /// Of the StatefulSet's template that it was made from.
    pub revision: Option<String>,
    /// What its agent says.
    pub probe: Probe,
    /// Why the agent's answer is missing.
    pub unreachable_why: Option<String>,
}

/// Something that keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    /// One word in CamelCase: `ImagePullBackOff`, `Unschedulable`…
    pub reason: String,
    /// What is wrong.
    pub message: String,
}

impl ObservedPod {
    /// The agent's answer.
    #[must_use]
    pub fn status(&self) -> Option<&InstanceStatus> {
        match &self.probe {
            Probe::Reachable(status) => Some(status),
            Probe::Unreachable => None,
        }
    }

    /// Where its agent is; none while its container does not run.
    #[must_use]
    pub fn address(&self, cluster: &ValidatedCluster) -> Option<AgentAddress> {
        Some(AgentAddress::new(&cluster.name, &cluster.namespace, &self.name, self.ip?))
    }
}

/// Reads a pod; none if it is not an instance of this cluster (a Job's pod carries the cluster's label as well). The
/// probe is filled in later.
#[must_use]
pub fn observe_pod(cluster: &str, pod: &Pod) -> Option<ObservedPod> {
    let name = pod.metadata.name.clone()?;
    let owned = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.kind == "StatefulSet" && owner.name == cluster);
    let ordinal = names::ordinal(cluster, &name).filter(|_| owned)?;
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let runs = containers.iter().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
    let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    Some(ObservedPod {
        ordinal,
        uid: pod.metadata.uid.clone()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        role: pod.metadata.labels.as_ref().and_then(|labels| labels.get(keys::ROLE)).cloned(),
        ip: parse_ip(status.and_then(|status| status.pod_ip.as_deref())).filter(|_| runs),
        ready,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        problem: pod_problem(pod),
        revision: pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).cloned(),
        probe: Probe::Unreachable,
        unreachable_why: None,
        name,
    })
}

fn pod_problem(pod: &Pod) -> Option<PodProblem> {
    let status = pod.status.as_ref()?;
    let unschedulable = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        return Some(PodProblem { reason: "Unschedulable".to_owned(), message: shorten(condition.message.as_deref()) });
    }
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(container_problem)
}

fn container_problem(container: &ContainerStatus) -> Option<PodProblem> {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|reason| STUCK.contains(&reason.as_str()))?;
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let detail = match (last, reason.as_str()) {
        (Some(ended), "CrashLoopBackOff" | "RunContainerError") => {
            let said = ended.message.as_deref().filter(|message| !message.trim().is_empty());
            format!("it ended with exit code {}: {}", ended.exit_code, shorten(said.or(ended.reason.as_deref())))
        }
        _ => shorten(waiting.message.as_deref()),
    };
    let message = format!("container {} of image {}: {detail}", container.name, container.image);
    Some(PodProblem { reason, message })
}

fn shorten(message: Option<&str>) -> String {
    let message = message.unwrap_or("no reason is given").trim();
    let mut short: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "shop-1", "uid": "u1", "labels": {"pgherd.dev/role": "replica"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "shop", "uid": "s"}]},
            "spec": {"containers": [], "nodeName": "node-a"},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_running_pod_has_an_address_and_a_role() {
        let status = json!({"podIP": "10.0.0.7", "containerStatuses": [
            {"name": "postgres", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        let seen = observe_pod("shop", &pod(status)).unwrap();
        assert_eq!((seen.ordinal, seen.role.as_deref(), seen.node.as_deref()), (1, Some("replica"), Some("node-a")));
        assert_eq!(seen.ip, Some("10.0.0.7".parse().unwrap()));
        assert_eq!(seen.problem, None);
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named() {
        let status = json!({"podIP": "10.0.0.7", "containerStatuses": [
            {"name": "postgres", "image": "nowhere/pg:1", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}}]});
        let seen = observe_pod("shop", &pod(status)).unwrap();
        assert_eq!(seen.ip, None, "its container does not run");
        let problem = seen.problem.unwrap();
        assert_eq!(problem.reason, "ImagePullBackOff");
        assert!(problem.message.contains("nowhere/pg:1"), "{}", problem.message);
    }

    #[test]
    fn a_crash_loop_says_how_it_ended() {
        let status = json!({"containerStatuses": [
            {"name": "postgres", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
             "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
             "lastState": {"terminated": {"exitCode": 127, "reason": "Error", "message": "no such file"}}}]});
        let problem = observe_pod("shop", &pod(status)).unwrap().problem.unwrap();
        assert!(problem.message.contains("exit code 127: no such file"), "{}", problem.message);
    }

    #[test]
    fn a_pod_that_no_node_takes_says_why() {
        let status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available"}]});
        let problem = observe_pod("shop", &pod(status)).unwrap().problem.unwrap();
        assert_eq!((problem.reason.as_str(), problem.message.as_str()), ("Unschedulable", "0/3 nodes are available"));
    }

    #[test]
    fn a_pod_of_a_job_is_no_instance() {
        let mut job = pod(json!({}));
        job.metadata.owner_references = None;
        assert_eq!(observe_pod("shop", &job), None);
    }
}

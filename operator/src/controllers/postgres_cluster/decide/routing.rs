//! Which pod carries which role label. `<cluster>-rw` leads to the holder or nowhere (I10).

use pgherd_core::instance::Phase;
use pgherd_crds::names::{ROLE_PRIMARY, ROLE_REPLICA};

use crate::controllers::postgres_cluster::observe::{Observed, ObservedPod};

/// A label to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The pod.
    pub pod: String,
    /// Its UID: a pod made again under the same name is left alone.
    pub uid: String,
    /// The new value; none removes the label.
    pub role: Option<&'static str>,
}

/// The changes of this round; none when every pod has the label that it should have.
#[must_use]
pub fn decide_roles(observed: &Observed) -> Vec<RoleChange> {
    let changes = observed.pods.iter().filter_map(|pod| {
        let role = decide_role(observed, pod);
        (role != pod.role.as_deref()).then(|| RoleChange { pod: pod.name.clone(), uid: pod.uid.clone(), role })
    });
    let mut changes: Vec<RoleChange> = changes.collect();
    // Removals first: at no moment two pods are called primary, but for one that ends.
    changes.sort_by_key(|change| change.role == Some(ROLE_PRIMARY));
    changes
}

/// What keeps anybody from being led to a primary that is given up. The holder's own label goes whether it was seen or not: a
/// round may just have set it, or the watch may be late.
#[must_use]
pub fn decide_unrouted(observed: &Observed, holder: Option<&str>) -> Vec<RoleChange> {
    let leads = |pod: &&ObservedPod| pod.role.as_deref() == Some(ROLE_PRIMARY) || Some(pod.name.as_str()) == holder;
    let routed = observed.pods.iter().filter(leads).filter(|pod| !ends_as_primary(observed, pod));
    routed.map(|pod| RoleChange { pod: pod.name.clone(), uid: pod.uid.clone(), role: None }).collect()
}

/// A pod that ends and whose PostgreSQL is known to be down keeps its label until its successor is routed to. Services lead
/// to a pod that ends only while no other is ready, and a change of their endpoints that is made for nothing holds up the one
/// that leads to the successor: a node's kube-proxy changes its rules once a second by default (`minSyncPeriod`).
fn ends_as_primary(observed: &Observed, pod: &ObservedPod) -> bool {
    let holder = observed.holder_pod();
    let holds = holder.is_some_and(|holder| holder.uid == pod.uid);
    let released = observed.register().is_some_and(|register| register.released);
    let succeeded = holder.is_some_and(|holder| !holds && holder.role.as_deref() == Some(ROLE_PRIMARY));
    pod.terminating && pod.role.as_deref() == Some(ROLE_PRIMARY) && (released || !holds) && !succeeded
}

fn decide_role(observed: &Observed, pod: &ObservedPod) -> Option<&'static str> {
    if ends_as_primary(observed, pod) {
        return Some(ROLE_PRIMARY);
    }
    let register = observed.register();
    let holds = observed.holder_pod().is_some_and(|holder| holder.uid == pod.uid);
    if holds {
        // An agent that does not answer the operator is no reason to unroute: its Lease says whether it serves.
        let in_force = register.is_some_and(|register| !register.is_sealing() && !register.released);
        let serves = observed.admitting_holder().is_some();
        let keeps = pod.role.as_deref() == Some(ROLE_PRIMARY) && in_force;
        return (serves || keeps).then_some(ROLE_PRIMARY);
    }
    match pod.status() {
        Some(status) if status.phase == Phase::Replica && status.postgres_up && !status.is_primary => {
            Some(ROLE_REPLICA)
        }
        Some(_) => None,
        None => (pod.role.as_deref() == Some(ROLE_REPLICA)).then_some(ROLE_REPLICA),
    }
}

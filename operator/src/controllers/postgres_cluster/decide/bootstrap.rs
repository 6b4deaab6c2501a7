//! The register names no holder: either the cluster is new, or the register was lost. A new cluster is initialised once;
//! where data may exist nothing is ever initialised over it, but the register is made again from what the instances
//! hold.

use pgherd_core::{
    failover::register_bootstrapped,
    instance::InstanceStatus,
    register::{Holder, Register, Term, Voter, VoterSet},
};
use pgherd_crds::names;

use super::{Action, ChangeKind, Plan, Stall, restore::ignored};
use crate::controllers::postgres_cluster::{observe::Observed, validate::ValidatedCluster};

/// Fills in who begins.
pub fn decide_bootstrap(cluster: &ValidatedCluster, observed: &Observed, plan: &mut Plan) {
    let Some(register) = observed.register() else { return };
    let known_system = register.system_id.as_ref().or(cluster.status.system_id.as_ref());
    let with_data: Vec<&InstanceStatus> =
        observed.pods.iter().filter_map(|pod| pod.status()).filter(|status| status.member.is_some()).collect();
    let old_claims = old_claims(cluster, observed);
    if with_data.is_empty() && old_claims.is_empty() && known_system.is_none() {
        plan_first_holder(cluster, observed, register, plan);
        return;
    }
    let silent = silent_pods(cluster, observed, &old_claims);
    if !silent.is_empty() {
        plan.note = Some(format!(
            "the register names no primary although data exists; waiting for every instance to say what it holds, missing: {}",
            silent.join(", ")
        ));
        return;
    }
    match (with_data.is_empty(), known_system) {
        (true, None) => plan_first_holder(cluster, observed, register, plan),
        (true, Some(system)) => {
            plan.stalled = Some(Stall::new(
                "DataLost",
                format!(
                    "this cluster was initialised before (system identifier {system}), but no instance holds its data; it is not \
                     initialised again: make a new PostgresCluster with bootstrap.recovery from its backup"
                ),
            ));
        }
        (false, _) => plan_rebuild(cluster, register, known_system, &with_data, plan),
    }
}

/// The lowest ordinal that answers makes the first data directory. Those that don't answer have none: their claims are
/// younger than the register.
fn plan_first_holder(cluster: &ValidatedCluster, observed: &Observed, register: &Register, plan: &mut Plan) {
    let answering = observed
        .pods
        .iter()
        .filter(|pod| !pod.terminating && pod.status().is_some() && pod.ordinal < cluster.instances);
    match answering.min_by_key(|pod| pod.ordinal) {
        Some(pod) => {
            let first = register_bootstrapped(register, &pod.name, &pod.uid, cluster.first_acks());
            let register = Box::new(Register { restore: ignored(cluster), ..first });
            plan.action = Action::Change { register, kind: ChangeKind::Bootstrap };
        }
        None => plan.note = Some("waiting for the first instance to start".to_owned()),
    }
}

/// Ordinals whose claim is older than the register: they may hold data. A claim of unknown age counts as old.
fn old_claims(cluster: &ValidatedCluster, observed: &Observed) -> Vec<u32> {
    let made = observed.register.as_ref().and_then(|stored| stored.created_at);
    let old = |created: Option<jiff::Timestamp>| created.is_none_or(|created| made.is_none_or(|made| created < made));
    let wanted = observed.claims.iter().filter(|(ordinal, _)| **ordinal < cluster.instances);
    wanted.filter(|(_, claim)| old(claim.created_at)).map(|(ordinal, _)| *ordinal).collect()
}

fn silent_pods(cluster: &ValidatedCluster, observed: &Observed, old_claims: &[u32]) -> Vec<String> {
    let expected = old_claims.iter().map(|ordinal| names::pod(&cluster.name, *ordinal));
    let existing = observed.pods.iter().map(|pod| pod.name.clone());
    let mut silent: Vec<String> =
        expected.chain(existing).filter(|name| observed.pod(name).is_none_or(|pod| pod.status().is_none())).collect();
    silent.sort();
    silent.dedup();
    silent
}

/// A register that begins with an election in which every data directory has to take part: one acknowledgement among all
/// of them as voters means that all must seal (R + W > N), and then the furthest wins. It names no pod by UID, so that
/// nobody takes itself for the holder meanwhile.
fn plan_rebuild(
    cluster: &ValidatedCluster,
    register: &Register,
    known_system: Option<&String>,
    members: &[&InstanceStatus],
    plan: &mut Plan,
) {
    let mut systems: Vec<&String> =
        members.iter().filter_map(|status| status.system_id.as_ref()).chain(known_system).collect();
    systems.sort();
    systems.dedup();
    let [system] = systems[..] else {
        let message = if systems.is_empty() {
            "the register is lost, and no instance can say which database system it holds".to_owned()
        } else {
            format!(
                "the register is lost, and the volumes hold data of different clusters (system identifiers {systems:?}): remove the foreign volumes"
            )
        };
        plan.stalled = Some(Stall::new("RegisterLost", message));
        return;
    };
    let mut voters: Vec<Voter> = members
        .iter()
        .filter_map(|status| Some(Voter { member: status.member.clone()?, pod: status.pod.clone() }))
        .collect();
    voters.sort();
    let term = members
        .iter()
        .map(|status| status.term.max(status.sealed_term))
        .max()
        .unwrap_or_default()
        .max(register.seal_term);
    let furthest =
        members.iter().max_by_key(|status| (status.term, status.received_lsn)).map(|status| status.pod.clone());
    let rebuilt = Register {
        term,
        seal_term: Term(term.0 + 1),
        holder: Some(Holder {
            pod: furthest.unwrap_or_default(),
            pod_uid: String::new(),
            boot_nonce: String::new(),
            address: None,
            member: None,
        }),
        released: true,
        system_id: Some(system.clone()),
        quorum: VoterSet { voters, acks: 1 },
        restore: ignored(cluster),
        ..Register::default()
    };
    plan.note = Some("the register was lost and is made again from what the instances hold".to_owned());
    plan.action = Action::Change { register: Box::new(rebuilt), kind: ChangeKind::Rebuild };
}

//! What is written down while the holder serves: what it is, and who may vote. One change a round.

use pgherd_core::{
    failover::register_observed,
    instance::{InstanceStatus, Phase},
    preferred::decide_acks,
    quorum::{Membership, Quorums, commit_pending, plan_voters},
    register::{Register, Voter},
};
use pgherd_crds::{names, v1alpha1::postgres_cluster::SynchronousMode};

use super::{Action, ChangeKind, Memory, Plan, Stall};
use crate::{
    context::Now,
    controllers::postgres_cluster::{observe::Observed, validate::ValidatedCluster},
};

/// Fills in the change, if there is one.
pub fn decide_settle(cluster: &ValidatedCluster, observed: &Observed, register: &Register, plan: &mut Plan) {
    if let Some(stall) = foreign_system(observed, register) {
        plan.stalled = Some(stall);
        return;
    }
    let Some(holder) = observed.serving_holder().filter(|_| register.handover.is_none()) else { return };
    if let Some(next) = register_observed(register, holder) {
        plan.action = Action::Change { register: Box::new(next), kind: ChangeKind::Record };
        return;
    }
    let committed = holder.applied_quorum.as_ref().and_then(|applied| commit_pending(register, applied));
    if let Some(Quorums { quorum, pending }) =
        committed.or_else(|| planned(cluster, observed, register, holder, plan.acks))
    {
        let register = Box::new(Register { quorum, pending, ..register.clone() });
        plan.action = Action::Change { register, kind: ChangeKind::Voters };
    }
}

fn planned(
    cluster: &ValidatedCluster,
    observed: &Observed,
    register: &Register,
    holder: &InstanceStatus,
    acks: u32,
) -> Option<Quorums> {
    let present: Vec<Voter> = observed.pods.iter().filter_map(|pod| voter(pod.status()?)).collect();
    let streaming = streaming(observed, holder);
    let removed_pods = removed_pods(cluster, observed, register);
    let members = Membership { streaming: &streaming, present: &present, removed_pods: &removed_pods };
    plan_voters(register, &members, acks)
}

/// Replicas that stream, as they and the holder say.
fn streaming(observed: &Observed, holder: &InstanceStatus) -> Vec<Voter> {
    let streams = |status: &InstanceStatus| {
        let receives = status.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
        let is_sent = holder.standbys.iter().any(|standby| {
            let same = Some(&standby.member) == status.member.as_ref() && standby.term == Some(holder.term);
            same && standby.state == "streaming"
        });
        status.phase == Phase::Replica && receives && is_sent
    };
    let statuses = observed.pods.iter().filter_map(|pod| pod.status().filter(|status| streams(status)));
    statuses.filter_map(voter).collect()
}

/// The W to ask for: the user's, but in mode `Preferred` only as far as replicas are there.
pub fn decide_wanted_acks(
    cluster: &ValidatedCluster,
    observed: &Observed,
    register: &Register,
    memory: &mut Memory,
    now: Now,
) -> u32 {
    if cluster.synchronous_mode != SynchronousMode::Preferred {
        return cluster.acks;
    }
    let in_force = register.quorum_to_apply();
    let holder = observed.serving_holder();
    let streaming: Vec<_> = match holder {
        Some(holder) => streaming(observed, holder).into_iter().map(|voter| voter.member).collect(),
        // While the holder can't be asked the replicas' own word counts: what is measured is their absence.
        None => {
            let receives =
                |status: &&InstanceStatus| status.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
            let statuses = observed.pods.iter().filter_map(|pod| pod.status());
            statuses.filter(receives).filter_map(|status| status.member.clone()).collect()
        }
    };
    let known: Vec<_> = in_force.voters.iter().map(|voter| voter.member.clone()).collect();
    memory.attendance = memory.attendance.update(now.monotonic_ms, &known, &streaming);
    if holder.is_none() {
        return in_force.acks;
    }
    decide_acks(cluster.acks, in_force, &streaming, &memory.attendance, now.monotonic_ms)
}

fn voter(status: &InstanceStatus) -> Option<Voter> {
    Some(Voter { member: status.member.clone()?, pod: status.pod.clone() })
}

/// Pods above the number of instances, whether they still exist or are only voters.
fn removed_pods(cluster: &ValidatedCluster, observed: &Observed, register: &Register) -> Vec<String> {
    let sets = [Some(&register.quorum), register.pending.as_ref()];
    let voters = sets.into_iter().flatten().flat_map(|set| &set.voters).map(|voter| voter.pod.as_str());
    let all = voters.chain(observed.pods.iter().map(|pod| pod.name.as_str()));
    let mut removed: Vec<String> = all
        .filter(|pod| names::ordinal(&cluster.name, pod).is_none_or(|ordinal| ordinal >= cluster.instances))
        .map(str::to_owned)
        .collect();
    removed.sort();
    removed.dedup();
    removed
}

fn foreign_system(observed: &Observed, register: &Register) -> Option<Stall> {
    let ours = register.system_id.as_ref()?;
    let pod = observed.holder_pod()?;
    let theirs = pod.status()?.system_id.as_ref().filter(|id| *id != ours)?;
    let message = format!(
        "{} holds data of another cluster (system identifier {theirs}, expected {ours}); it is not routed to: give it its own volume back",
        pod.name
    );
    Some(Stall::new("ForeignData", message))
}

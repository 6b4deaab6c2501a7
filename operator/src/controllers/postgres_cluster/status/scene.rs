//! What a status speaks of: what was observed, with what was done in the same round laid over it.

use pgherd_core::{
    failover::Probe,
    instance::{InstanceStatus, Phase},
    register::Register,
};
use pgherd_crds::{
    names::ROLE_PRIMARY,
    v1alpha1::{
        conditions::PRIMARY_AVAILABLE,
        postgres_cluster::{MemberStatus, SynchronousMode},
    },
};

use super::StatusInput;
use crate::controllers::postgres_cluster::{
    apply::Applied,
    decide::{Action, Memory, Plan},
    execute::Executed,
    observe::{Observed, ObservedPod},
    validate::ValidatedCluster,
};

/// An agent that misses a few questions is not reported as gone: a status that flickers helps nobody.
const TOLERATED_SILENCE_MS: u64 = 5_000;

/// See the module.
pub struct Scene<'a> {
    pub(super) cluster: &'a ValidatedCluster,
    pub(super) observed: &'a Observed,
    pub(super) plan: &'a Plan,
    pub(super) executed: Option<&'a Executed>,
    pub(super) applied: &'a Applied,
    pub(super) memory: &'a Memory,
    /// The register as it is now.
    pub(super) register: Option<Register>,
    /// The pods as they are now.
    pub(super) pods: Vec<ObservedPod>,
}

impl<'a> Scene<'a> {
    pub(super) fn of(input: StatusInput<'a>) -> Self {
        let StatusInput { cluster, observed, plan, executed, applied, memory, now: _ } = input;
        let mut pods = observed.pods.clone();
        for pod in pods.iter_mut() {
            let Some(executed) = executed else { continue };
            if let Some(status) = executed.statuses.get(&pod.name).filter(|status| status.pod_uid == pod.uid) {
                pod.probe = Probe::Reachable(Box::new(status.clone()));
            }
            if let Some(role) = executed.roles.get(&pod.name) {
                pod.role.clone_from(role);
            }
        }
        let written = executed.and_then(|executed| executed.register.clone());
        let register = written.or_else(|| observed.register().cloned());
        Self { cluster, observed, plan, executed, applied, memory, register, pods }
    }

    /// The pod that holds the role, if it is still the very pod.
    pub(super) fn holder_pod(&self) -> Option<&ObservedPod> {
        let holder = self.register.as_ref()?.holder.as_ref()?;
        self.pods.iter().find(|pod| pod.name == holder.pod && pod.uid == holder.pod_uid)
    }

    /// What the holder's agent says.
    pub(super) fn holder_status(&self) -> Option<&InstanceStatus> {
        self.holder_pod()?.status()
    }

    /// Where the recovery that the holder's data began with ended: the timeline that begins there, the position, and the time of the last
    /// transaction. To be asked before another promotion.
    pub(super) fn reached(&self) -> (Option<u32>, Option<String>, Option<String>) {
        let status = self.holder_status();
        let history = status.and_then(|status| status.history.as_ref());
        (
            history.map(|history| history.timeline.0),
            history.and_then(|history| history.ancestors.last()).map(|entry| entry.switch_lsn.to_string()),
            status.and_then(|status| status.source.as_ref()?.last_transaction.clone()),
        )
    }

    /// The holder of the current term takes writes, also from clients, and `<cluster>-rw` leads to it.
    pub(super) fn primary_available(&self) -> bool {
        let (Some(register), Some(pod)) = (self.register.as_ref(), self.holder_pod()) else { return false };
        let in_force = !register.is_sealing() && !register.released && self.lease_is_fresh();
        if !in_force || pod.role.as_deref() != Some(ROLE_PRIMARY) {
            return false;
        }
        match pod.status() {
            Some(status) => {
                let ours = register.system_id.is_some() && register.system_id == status.system_id;
                let admits = status.is_primary && status.phase == Phase::Primary;
                admits && status.postgres_up && status.term == register.term && ours
            }
            None => self.is_briefly_silent(pod) && self.was_true(PRIMARY_AVAILABLE),
        }
    }

    /// The pod is a replica that streams the primary's timeline.
    pub(super) fn replica_streams(&self, pod: &ObservedPod) -> bool {
        let Some(register) = self.register.as_ref() else { return false };
        match pod.status() {
            Some(status) => {
                let receives = status.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
                let timeline = status.history.as_ref().map(|history| history.timeline);
                let on_timeline = register.timeline.is_some() && timeline == register.timeline;
                status.phase == Phase::Replica && status.postgres_up && receives && on_timeline && self.is_sent(status)
            }
            None => {
                let before = self.published_member(&pod.name);
                self.is_briefly_silent(pod)
                    && before.is_some_and(|before| before.phase == "Replica" && before.message.is_none())
            }
        }
    }

    /// The primary agrees that it streams to this member; true while the primary itself can't be asked.
    fn is_sent(&self, replica: &InstanceStatus) -> bool {
        self.holder_status().is_none_or(|holder| {
            holder
                .standbys
                .iter()
                .any(|standby| Some(&standby.member) == replica.member.as_ref() && standby.state == "streaming")
        })
    }

    /// The wanted replicas: the pods below the number of instances that don't hold the role.
    pub(super) fn replicas(&self) -> impl Iterator<Item = &ObservedPod> {
        let holder = self.holder_pod().map(|pod| pod.uid.clone());
        self.pods.iter().filter(move |pod| pod.ordinal < self.cluster.instances && Some(&pod.uid) != holder.as_ref())
    }

    /// Instances that serve: the primary and the replicas that stream.
    pub(super) fn ready_instances(&self) -> usize {
        usize::from(self.primary_available()) + self.replicas().filter(|pod| self.replica_streams(pod)).count()
    }

    /// Nobody serves, and no other data directory than the primary's answers.
    pub(super) fn is_deserted(&self) -> bool {
        let holder = self.register.as_ref().and_then(|register| register.holder.as_ref());
        let member = holder.and_then(|holder| holder.member.as_ref());
        let others = self.pods.iter().filter_map(|pod| pod.status()?.member.as_ref());
        !self.primary_available() && others.into_iter().all(|other| Some(other) == member)
    }

    /// Nobody serves, and this round had nothing to do about it yet.
    pub(super) fn waits_for_primary(&self) -> bool {
        let sealing = self.register.as_ref().is_some_and(|register| register.is_sealing());
        !self.primary_available() && !sealing && self.plan.action == Action::Nothing
    }

    /// The agent has answered within the last seconds.
    pub(super) fn is_briefly_silent(&self, pod: &ObservedPod) -> bool {
        pod.ip.is_some() && self.memory.unreachable_ms(&pod.name).is_some_and(|ms| ms < TOLERATED_SILENCE_MS)
    }

    /// The W that the register should have.
    pub(super) fn wanted_acks(&self) -> u32 {
        match self.cluster.synchronous_mode {
            SynchronousMode::Preferred => self.plan.acks,
            SynchronousMode::Off | SynchronousMode::Required => self.cluster.acks,
        }
    }

    fn lease_is_fresh(&self) -> bool {
        // What was written in this round is fresh.
        let written = self.executed.is_some_and(|executed| executed.register.is_some());
        let observation = self.memory.observation.as_ref();
        written || observation.is_some_and(|seen| seen.lease_unchanged_ms() < self.cluster.timings.take_over_ms)
    }

    pub(super) fn was_true(&self, type_: &str) -> bool {
        self.cluster.status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    }

    pub(super) fn published_member(&self, pod: &str) -> Option<&MemberStatus> {
        self.cluster.status.members.iter().find(|member| member.pod == pod)
    }

    /// What the round waits for or does, without numbers that change from round to round.
    pub(super) fn note(&self) -> Option<String> {
        let executed = self.executed.and_then(|executed| executed.note.as_deref());
        executed.or(self.plan.note.as_deref()).map(without_duration)
    }
}

/// `x does not answer for 1234 ms` loses its number: it would be another status each second.
fn without_duration(note: &str) -> String {
    match note.rsplit_once(" for ") {
        Some((text, tail)) if tail.ends_with(" ms") => text.to_owned(),
        _ => note.to_owned(),
    }
}

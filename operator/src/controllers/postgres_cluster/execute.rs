//! Carries out the plan: labels first, then at most one change of the register; a failover goes on here until its winner
//! serves, as far as its bounds allow. Everything can be broken off at any point: the next round goes on from the
//! register.

pub mod claim;
pub mod force;
pub mod handover;
pub mod rebuild;
pub mod register_change;
pub mod requests;
pub mod restore;
pub mod route;
pub mod seal;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use kube::runtime::events::EventType;
use pgherd_core::{
    failover::{Step, is_chosen_in_vain},
    instance::{InstanceStatus, SealReport},
    register::{LeaseView, Register},
};
use pgherd_crds::v1alpha1::postgres_cluster::SwitchoverStatus;
use tokio::time::timeout;

use super::{
    decide::{Action, Blocked, ChangeKind, Memory, POLL_MS, Plan, QUORUM_MISSING, RoleChange},
    observe::Observed,
    tls::OperatorIdentity,
    validate::ValidatedCluster,
};
use crate::{
    context::Context,
    kubernetes::{
        agent_client::{AgentClient, AgentClientError},
        events::publish,
        register::RegisterError,
    },
    telemetry::error_chain,
};

/// After a change of the register the next round follows at once, in milliseconds.
const AT_ONCE_MS: u64 = 100;
/// A failover waits for its changes of labels no longer than this.
const LABELS_BOUND: Duration = Duration::from_secs(2);

/// What was done, and what is newer than what was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// The register as it was written last.
    pub register: Option<Register>,
    /// Newer answers of agents, by pod.
    pub statuses: BTreeMap<String, InstanceStatus>,
    /// Labels that were changed, by pod.
    pub roles: BTreeMap<String, Option<String>>,
    /// A failover that cannot be decided.
    pub blocked: Option<Blocked>,
    /// What became of a planned change of the primary.
    pub switchover: Option<SwitchoverStatus>,
    /// The Backup that was made of a restored cluster.
    pub restore_backup: Option<String>,
    /// What is under way, for the status.
    pub note: Option<String>,
    /// Look again after this many milliseconds.
    pub requeue_after_ms: u64,
}

/// A step that failed. The next round decides anew.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The Lease could not be read or written; whether it was written may be unknown.
    #[error("failed to change the register")]
    Register(#[from] RegisterError),
    /// A role label could not be changed.
    #[error("failed to change the role label of {pod}")]
    Label {
        /// The pod.
        pod: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The operator's certificate for this cluster cannot be used.
    #[error("failed to make a client for the agents")]
    AgentClient(#[source] AgentClientError),
    /// The Backup of a restored cluster could not be made.
    #[error("failed to create the Backup {name}")]
    Backup {
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What the steps of one round share.
pub(super) struct Round<'a> {
    pub(super) context: &'a Context,
    pub(super) cluster: &'a ValidatedCluster,
    pub(super) observed: &'a Observed,
    pub(super) agents: Arc<AgentClient>,
    pub(super) done: Executed,
    /// Published at the end: nobody waits for them.
    pub(super) events: Vec<(EventType, &'static str, String)>,
}

/// Carries out the plan.
///
/// # Errors
/// If a write failed; the next round decides anew.
pub async fn execute(
    context: &Context,
    cluster: &ValidatedCluster,
    identity: &OperatorIdentity,
    observed: &Observed,
    plan: &Plan,
    memory: &mut Memory,
) -> Result<Executed, ExecuteError> {
    let agents = context.agents.of(&cluster.uid, identity).map_err(ExecuteError::AgentClient)?;
    let done = Executed {
        requeue_after_ms: plan.requeue_after_ms,
        note: plan.note.clone(),
        blocked: plan.blocked.clone(),
        ..Executed::default()
    };
    let mut round = Round { context, cluster, observed, agents, done, events: Vec::new() };
    let outcome = round.act(plan, memory).await;
    round.publish_events().await;
    outcome.map(|()| round.done)
}

impl Round<'_> {
    async fn act(&mut self, plan: &Plan, memory: &mut Memory) -> Result<(), ExecuteError> {
        let is_urgent = matches!(plan.action, Action::Failover(_) | Action::Change { kind: ChangeKind::Regrant, .. });
        if is_urgent {
            self.try_roles(&plan.roles).await;
        } else {
            self.change_roles(&plan.roles).await?;
        }
        self.note_completed(memory);
        self.answer(&plan.answers).await;
        match &plan.action {
            Action::Nothing => Ok(()),
            Action::CreateRegister => self.create_register().await,
            Action::Change { register, kind } => self.change(register, *kind).await,
            Action::Failover(step) => {
                let lease = self.observed.register.as_ref().map(|stored| stored.view.clone());
                self.fail_over(step.clone(), lease, memory).await
            }
            Action::HandOver(step) => self.hand_over(step, memory).await,
            Action::Rebuild(request) => {
                self.rebuild_instance(request).await;
                Ok(())
            }
            Action::Restore(action) => self.restore(action, memory).await,
        }
    }

    /// Labels in a failover, which does not depend on them: a webhook for pods may have been on the very node that is lost. What keeps
    /// an old primary from acknowledging is the seal, or the end of its Lease.
    async fn try_roles(&mut self, changes: &[RoleChange]) {
        let why = match timeout(LABELS_BOUND, self.change_roles(changes)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error_chain(&error),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        tracing::warn!(cluster = self.cluster.name, why, "role labels can't be changed; the failover goes on");
        self.tell(EventType::Warning, "LabelsNotChanged", format!("the role labels of pods can't be changed: {why}"));
    }

    /// Notes an Event about the cluster, to be published when the round has ended.
    pub(super) fn tell(&mut self, type_: EventType, reason: &'static str, note: String) {
        self.events.push((type_, reason, note));
    }

    async fn publish_events(&mut self) {
        for (type_, reason, note) in std::mem::take(&mut self.events) {
            publish(self.context, &self.cluster.reference, type_, reason, "Failover", &note).await;
        }
    }

    /// A change that follows from the register's content alone.
    async fn change(&mut self, register: &Register, kind: ChangeKind) -> Result<(), ExecuteError> {
        let Some(stored) = &self.observed.register else { return Ok(()) };
        let written = match kind {
            // Whether a barrier has passed was said of this very version: voters that left and came back meanwhile leave
            // the same content behind.
            ChangeKind::Voters => self.replace_exactly(stored, register).await?,
            _ => self.replace_if_same(&stored.view.register, register).await?,
        };
        if written.is_none() {
            self.done.requeue_after_ms = AT_ONCE_MS;
            return Ok(());
        }
        tracing::info!(cluster = self.cluster.name, ?kind, term = register.term.0, "changed the register");
        // Those that have to act on it need not wait for their next poll.
        self.wake_all();
        self.done.requeue_after_ms = match kind {
            ChangeKind::Bootstrap | ChangeKind::Record => POLL_MS / 2,
            ChangeKind::Rebuild | ChangeKind::Regrant | ChangeKind::Voters | ChangeKind::Restore => AT_ONCE_MS,
        };
        Ok(())
    }

    /// Goes through the steps of a failover until one has to wait.
    pub(super) async fn fail_over(
        &mut self,
        mut step: Step,
        mut lease: Option<LeaseView>,
        memory: &mut Memory,
    ) -> Result<(), ExecuteError> {
        let mut sealed: Vec<SealReport> = Vec::new();
        loop {
            let Some(seen) = lease.take() else {
                self.done.requeue_after_ms = AT_ONCE_MS;
                return Ok(());
            };
            match step {
                Step::Seal { reason, detect_ms, .. } => {
                    self.done.note = Some(format!("failover: {reason}"));
                    lease = self.seal_register(&seen, reason, detect_ms, memory).await?;
                    step = self.next_step(lease.as_ref(), None, memory);
                }
                Step::CollectSeals { term, pods } => {
                    let (reports, next) = self.collect_seals(term, &pods, &seen, memory).await;
                    tracing::info!(
                        cluster = self.cluster.name,
                        term = term.0,
                        sealed = reports.len(),
                        asked = pods.len(),
                        "sealed"
                    );
                    (lease, step, sealed) = (Some(seen), next, reports);
                }
                Step::Claim { pod, pod_uid, member, fork, candidates, possible_loss_bytes } => {
                    let holder = seen.register.holder.as_ref().and_then(|holder| holder.member.as_ref());
                    let in_vain = is_chosen_in_vain(&seen.register) && holder == Some(&member);
                    let forced = if in_vain { self.grant_force(&seen, &sealed, &candidates).await } else { None };
                    let winner = forced.unwrap_or(claim::Winner {
                        pod,
                        pod_uid,
                        member,
                        fork,
                        candidates,
                        possible_loss_bytes,
                        forced: None,
                    });
                    return self.claim(&seen, winner, memory).await;
                }
                Step::Blocked { missing, why, candidates } => {
                    if let Some(winner) = self.grant_force(&seen, &sealed, &candidates).await {
                        return self.claim(&seen, winner, memory).await;
                    }
                    self.done.blocked = Some(Blocked::new(QUORUM_MISSING, missing, why, candidates));
                    self.done.requeue_after_ms = POLL_MS;
                    return Ok(());
                }
                Step::Wait { why, recheck_after_ms } => {
                    self.done.note = Some(why);
                    self.done.requeue_after_ms = recheck_after_ms.unwrap_or(POLL_MS).clamp(AT_ONCE_MS, POLL_MS);
                    return Ok(());
                }
                _ => {
                    self.done.requeue_after_ms = AT_ONCE_MS;
                    return Ok(());
                }
            }
        }
    }

    /// Tells every agent that answered to read the register now. Nobody waits for that, and failures don't matter: agents
    /// watch and poll it.
    pub(super) fn wake_all(&self) {
        let answering = self.observed.pods.iter().filter(|pod| pod.status().is_some());
        let addresses: Vec<_> = answering.filter_map(|pod| pod.address(self.cluster)).collect();
        let agents = Arc::clone(&self.agents);
        drop(tokio::spawn(async move {
            join_all(addresses.iter().map(|address| agents.wake(address))).await;
        }));
    }
}

#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod tests;

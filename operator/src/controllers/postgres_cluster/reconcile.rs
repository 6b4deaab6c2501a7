//! One round for one cluster, as a row of stages: validate -> secrets -> observe -> decide -> execute -> build -> apply ->
//! status. Executing comes before applying: an object that can't be applied must not hold up a failover.
//!
//! Waiting is no error: a round ends, and the next one begins a second later and decides anew.

use std::{sync::Arc, time::Duration};

use kube::{ResourceExt, runtime::controller::Action};
use pgherd_crds::{PostgresCluster, PostgresClusterStatus};

use super::{
    apply::{Applied, ApplyProblem, apply_resources},
    build::{BuildError, BuildInput, build_resources},
    decide::{Plan, decide},
    execute::{ExecuteError, Executed, execute},
    memory::ClusterMemory,
    observe::{ObserveError, observe},
    references::observe_references,
    secrets::{SecretsError, Secured, apply_secrets},
    status::{StatusError, StatusInput, apply_status, build_stalled_status, build_status, sample::build_sample},
    tls::OperatorIdentity,
    validate::{Requests, ValidatedCluster, validate_cluster},
};
use crate::{
    context::{Context, Now},
    kubernetes::store::get,
};

/// Failure detection asks the agents this often, unless the plan asks for less.
const ROUND: Duration = Duration::from_secs(1);
/// However urgent it is.
const SOONEST: Duration = Duration::from_millis(50);
/// A cluster that waits for a change of its spec is looked at this often, for what it refers to may have come.
const STALLED_ROUND: Duration = Duration::from_secs(15);

/// A round that broke off, by its stage.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Reading or writing the Secrets.
    #[error("secrets")]
    Secrets(#[source] SecretsError),
    /// Reading what is there.
    #[error("observe")]
    Observe(#[source] ObserveError),
    /// Carrying out the plan.
    #[error("execute")]
    Execute(#[source] ExecuteError),
    /// Building the objects.
    #[error("build")]
    Build(#[source] BuildError),
    /// Writing the status.
    #[error("status")]
    Status(#[source] StatusError),
}

impl ReconcileError {
    /// The stage, for metrics.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Secrets(_) => "secrets",
            Self::Observe(_) => "observe",
            Self::Execute(_) => "execute",
            Self::Build(_) => "build",
            Self::Status(_) => "status",
        }
    }
}

/// One round.
///
/// # Errors
/// [`ReconcileError`], when the API server does not do as it should; tried again after a moment.
pub async fn reconcile(cluster: Arc<PostgresCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() || !context.leadership.holds() {
        return Ok(Action::requeue(ROUND));
    }
    let memory = context.memories.of(&cluster.uid().unwrap_or_default());
    let mut memory = memory.lock().await;
    let outcome = run_round(&context, &cluster, &mut memory, context.clock.now()).await;
    memory.failures = if outcome.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    outcome
}

async fn run_round(
    context: &Context,
    cluster: &PostgresCluster,
    memory: &mut ClusterMemory,
    now: Now,
) -> Result<Action, ReconcileError> {
    let references = observe_references(context, cluster);
    let (validated, invalid) = match validate_cluster(cluster, &references, &context.settings.postgres_images) {
        Ok(valid) => (valid, None),
        Err(invalid) => {
            // After a restart of the operator there is no last one; then what failovers go by must do.
            let last = with_current_status(memory.last_valid.clone(), cluster);
            match (last.or_else(|| invalid.watchable.as_deref().cloned()), invalid.to_string()) {
                (Some(last), problems) => (last, Some(problems)),
                (None, problems) => return stall(context, cluster, "InvalidSpec", &problems, now).await,
            }
        }
    };
    if invalid.is_none() {
        memory.last_valid = Some(validated.clone());
    }
    let Secured { identity, problem } = match apply_secrets(context, &validated, &mut memory.secrets, now).await {
        Ok(secured) => secured,
        Err(SecretsError::Blocked(problem)) => {
            return stall(context, cluster, &problem.reason, &problem.message, now).await;
        }
        Err(error) => return Err(ReconcileError::Secrets(error)),
    };
    let round = Round { context, cluster: &validated, identity: &identity, may_apply: invalid.is_none(), now };
    let Outcome { mut status, executed, again_after } = round.run(memory).await?;
    let problem = invalid.map(|message| ApplyProblem::new("InvalidSpec", message)).or(problem);
    if let Some(problem) = problem {
        // What is seen of the instances stays true; only the spec is not followed.
        status = build_stalled_status(cluster, Some(status), &problem.reason, &problem.message, now);
    }
    apply_status(context, cluster, status).await.map_err(ReconcileError::Status)?;
    executed.map_err(ReconcileError::Execute)?;
    Ok(Action::requeue(again_after))
}

/// The last valid spec with the status and the requests as they are now.
fn with_current_status(last: Option<ValidatedCluster>, cluster: &PostgresCluster) -> Option<ValidatedCluster> {
    let status = cluster.status.clone().unwrap_or_default();
    let (requests, generation) = (Requests::of(cluster), cluster.metadata.generation.unwrap_or_default());
    last.map(|last| ValidatedCluster { status, generation, requests, ..last })
}

async fn stall(
    context: &Context,
    cluster: &PostgresCluster,
    reason: &str,
    message: &str,
    now: Now,
) -> Result<Action, ReconcileError> {
    let status = build_stalled_status(cluster, None, reason, message, now);
    apply_status(context, cluster, status).await.map_err(ReconcileError::Status)?;
    Ok(Action::requeue(STALLED_ROUND))
}

struct Outcome {
    status: PostgresClusterStatus,
    /// A failed step shows in the status before it ends the round.
    executed: Result<(), ExecuteError>,
    again_after: Duration,
}

struct Round<'a> {
    context: &'a Context,
    cluster: &'a ValidatedCluster,
    identity: &'a OperatorIdentity,
    may_apply: bool,
    now: Now,
}

impl Round<'_> {
    async fn run(&self, memory: &mut ClusterMemory) -> Result<Outcome, ReconcileError> {
        let Self { context, cluster, identity, now, .. } = *self;
        let observed = observe(context, cluster, identity).await.map_err(ReconcileError::Observe)?;
        let plan = decide(cluster, &observed, &mut memory.decide, now);
        let executed: Result<Option<Executed>, ExecuteError> = if cluster.suspended {
            Ok(None)
        } else {
            execute(context, cluster, identity, &observed, &plan, &mut memory.decide).await.map(Some)
        };
        let applied = self.apply(&plan, memory).await?;
        let input = StatusInput {
            cluster,
            observed: &observed,
            plan: &plan,
            executed: executed.as_ref().ok().and_then(Option::as_ref),
            applied: &applied,
            memory: &memory.decide,
            // Executing may have taken seconds.
            now: context.clock.now(),
        };
        let again_ms = input.executed.map_or(plan.requeue_after_ms, |executed| executed.requeue_after_ms);
        let again_after = Duration::from_millis(again_ms).clamp(SOONEST, ROUND);
        let status = build_status(input);
        context.metrics.clusters.set(&cluster.uid, build_sample(input, &status));
        Ok(Outcome { status, executed: executed.map(|_| ()), again_after })
    }

    async fn apply(&self, plan: &Plan, memory: &mut ClusterMemory) -> Result<Applied, ReconcileError> {
        let Self { context, cluster, now, .. } = *self;
        if cluster.suspended || !self.may_apply {
            return Ok(Applied::default());
        }
        let live = get(&context.stores.stateful_sets, &cluster.namespace, &cluster.name);
        let claim_size = live.as_ref().and_then(|set| {
            let template = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?;
            template.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
        });
        let (replicas, protect_primary) = (plan.replicas, plan.protect_primary);
        let input =
            BuildInput { cluster, replicas, protect_primary, pgherd_image: &context.settings.image, claim_size };
        let resources = build_resources(&input).map_err(ReconcileError::Build)?;
        Ok(apply_resources(context, cluster, &resources, &mut memory.apply, now).await)
    }
}

/// The delay before a round is tried again after `failures` in a row: from one second to three, spread by a fifth so that
/// clusters don't come all at once. Even at its longest it is shorter than the pause after which the observation of the primary
/// begins anew (`MAX_GAP_MS`): what fails must not keep a dead primary from being noticed.
#[must_use]
pub fn retry_delay(failures: u32, random: f64) -> Duration {
    let seconds = f64::from(failures.clamp(1, 3));
    Duration::from_secs_f64(seconds * (0.8 + 0.4 * random.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use pgherd_core::failover::MAX_GAP_MS;

    use super::*;
    use crate::controllers::postgres_cluster::observe::REGISTER_TIMEOUT;

    #[test]
    fn retries_slow_down_and_never_as_far_as_that_the_primary_is_lost_from_sight() {
        assert_eq!(retry_delay(0, 0.5), Duration::from_secs(1));
        assert_eq!(retry_delay(1, 0.5), Duration::from_secs(1));
        assert_eq!(retry_delay(3, 0.5), Duration::from_secs(3));
        assert!(retry_delay(50, 1.0) + REGISTER_TIMEOUT < Duration::from_millis(MAX_GAP_MS));
    }
}

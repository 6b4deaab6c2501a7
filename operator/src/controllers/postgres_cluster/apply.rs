//! Applies what was built, in an order in which each object finds what it needs, and grows the volumes.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use pgherd_core::quantity::parse_bytes;

use super::{build::Resources, validate::ValidatedCluster};
use crate::{
    context::{Context, Now},
    kubernetes::{
        apply::{AppliedObjects, Applier, ApplyError},
        store::of_cluster,
    },
    telemetry::error_chain,
};

/// Owner of the fields that this controller sets.
pub const FIELD_MANAGER: &str = "pgherd/postgres-cluster";
/// Before a refused expansion of volumes is tried again, in milliseconds.
const EXPANSION_RETRY_MS: u64 = 300_000;

/// What was applied last, so that a settled cluster causes no writes.
#[derive(Debug, Default)]
pub struct ApplyMemory {
    objects: AppliedObjects,
    refused: Option<RefusedExpansion>,
}

#[derive(Clone, Debug)]
struct RefusedExpansion {
    bytes: u64,
    at_ms: u64,
    problem: ApplyProblem,
}

/// What applying came to; data for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What could not be applied, and why: each is shown in the status.
    pub problems: Vec<ApplyProblem>,
    /// Objects that were written in this round.
    pub writes: u32,
}

/// Something that stands in the way and that somebody has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyProblem {
    /// One word in CamelCase: `ForeignObject`, `VolumeExpansionRefused`…
    pub reason: String,
    /// What is wrong, and what would help.
    pub message: String,
}

impl ApplyProblem {
    /// Something that somebody has to change.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    /// An object of the cluster's names belongs to somebody else.
    #[must_use]
    pub fn foreign(kind: &str, name: &str) -> Self {
        let message = ApplyError::Foreign { kind: kind.to_owned(), name: name.to_owned() }.to_string();
        Self { reason: "ForeignObject".to_owned(), message }
    }
}

/// Applies everything. Objects of somebody else and objects that are refused become problems and don't keep the others
/// from being applied, but for the StatefulSet, which comes last and only if all it needs is there.
pub async fn apply_resources(
    context: &Context,
    cluster: &ValidatedCluster,
    resources: &Resources,
    memory: &mut ApplyMemory,
    now: Now,
) -> Applied {
    // Without `..`: a kind that is built and that nobody applies must not compile.
    let Resources { account, role, role_binding, config_map, services, budgets, network_policy, stateful_set } =
        resources;
    let stores = &context.stores;
    let applier = Applier {
        client: &context.client,
        field_manager: FIELD_MANAGER,
        owner_uid: &cluster.uid,
        now_ms: now.monotonic_ms,
    };
    let mut round = Round { context, applied: Applied::default() };
    let objects = &mut memory.objects;
    round.note(applier.apply(&stores.accounts, account, objects).await);
    round.note(applier.apply(&stores.roles, role, objects).await);
    round.note(applier.apply(&stores.role_bindings, role_binding, objects).await);
    round.note(applier.apply(&stores.config_maps, config_map, objects).await);
    for service in services {
        round.note(applier.apply(&stores.services, service, objects).await);
    }
    for budget in budgets {
        round.note(applier.apply(&stores.budgets, budget, objects).await);
    }
    round.note(applier.apply(&stores.network_policies, network_policy, objects).await);
    if round.applied.problems.is_empty() {
        round.note(applier.apply(&stores.stateful_sets, stateful_set, objects).await);
    }
    let mut applied = round.applied;
    grow_volumes(context, cluster, memory, now, &mut applied).await;
    applied
}

struct Round<'a> {
    context: &'a Context,
    applied: Applied,
}

impl Round<'_> {
    fn note(&mut self, outcome: Result<bool, ApplyError>) {
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                self.context.metrics.api_writes.inc();
                self.applied.writes += 1;
            }
            Err(error @ ApplyError::Foreign { .. }) => self.problem("ForeignObject", &error),
            Err(error) => self.problem("ApplyFailed", &error),
        }
    }

    fn problem(&mut self, reason: &str, error: &ApplyError) {
        let message = error_chain(error);
        tracing::warn!(reason, error = message, "an object could not be applied");
        self.applied.problems.push(ApplyProblem { reason: reason.to_owned(), message });
    }
}

/// Asks for larger volumes where the spec does. Whether that is possible is up to the storage class.
async fn grow_volumes(
    context: &Context,
    cluster: &ValidatedCluster,
    memory: &mut ApplyMemory,
    now: Now,
    applied: &mut Applied,
) {
    let claims = of_cluster(&context.stores.claims, &cluster.namespace, &cluster.name);
    let small: Vec<_> =
        claims.iter().filter(|claim| needs_growth(claim, cluster)).map(|claim| claim.name_any()).collect();
    if small.is_empty() {
        memory.refused = None;
        return;
    }
    if let Some(refused) = &memory.refused
        && refused.bytes == cluster.storage.bytes
        && now.monotonic_ms.saturating_sub(refused.at_ms) < EXPANSION_RETRY_MS
    {
        applied.problems.push(refused.problem.clone());
        return;
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let patch = serde_json::json!({"spec": {"resources": {"requests": {"storage": cluster.storage.size}}}});
    for name in small {
        context.metrics.api_writes.inc();
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => applied.writes += 1,
            Err(error) => {
                let message = format!(
                    "the volume {name} cannot grow to {}: {}; use a storage class with allowVolumeExpansion, or set spec.storage.size back",
                    cluster.storage.size,
                    error_chain(&error)
                );
                let problem = ApplyProblem { reason: "VolumeExpansionRefused".to_owned(), message };
                memory.refused = Some(RefusedExpansion {
                    bytes: cluster.storage.bytes,
                    at_ms: now.monotonic_ms,
                    problem: problem.clone(),
                });
                applied.problems.push(problem);
                return;
            }
        }
    }
}

/// Only a bound claim can grow.
fn needs_growth(claim: &PersistentVolumeClaim, cluster: &ValidatedCluster) -> bool {
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let asked = requests.and_then(|requests| parse_bytes(&requests.get("storage")?.0).ok());
    bound && claim.metadata.deletion_timestamp.is_none() && asked.is_some_and(|asked| asked < cluster.storage.bytes)
}

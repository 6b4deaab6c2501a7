//! The status of a cluster, from what was seen and done. Pure but for the one patch.
//!
//! It holds nothing that changes while a cluster is settled (no LSN, no lag, no time of the last look), and it says Ready
//! only while that is so.

pub mod backups;
pub mod conditions;
pub mod members;
pub mod recovery;
pub mod restore;
pub mod sample;
pub mod scene;
pub mod switchover;
pub mod window;

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use pgherd_core::conditions as core_conditions;
use pgherd_crds::{
    PostgresCluster, PostgresClusterStatus, names,
    v1alpha1::{
        conditions::{READY, RECONCILING, STALLED},
        postgres_cluster::{EffectiveValues, LastFailover, SynchronousStatus},
        shared::Condition,
    },
};

use self::{conditions::build_conditions, members::build_members, scene::Scene};
use super::{
    apply::Applied,
    decide::{Memory, Plan},
    events::decide_events,
    execute::Executed,
    observe::Observed,
    validate::ValidatedCluster,
};
use crate::{
    context::{Context, Now},
    kubernetes::events::publish,
};

/// Owner of the fields of the status.
const FIELD_MANAGER: &str = "pgherd/postgres-cluster";

/// Everything that a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct StatusInput<'a> {
    /// The cluster; its published status too.
    pub cluster: &'a ValidatedCluster,
    /// What was seen.
    pub observed: &'a Observed,
    /// What was decided.
    pub plan: &'a Plan,
    /// What was done; none if a step failed or the cluster is suspended.
    pub executed: Option<&'a Executed>,
    /// What applying came to.
    pub applied: &'a Applied,
    /// Of failure detection and of the last failover.
    pub memory: &'a Memory,
    /// Now.
    pub now: Now,
}

/// A status patch that failed.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The patch failed.
    #[error("failed to patch the status")]
    Patch(#[source] kube::Error),
}

/// The status of a cluster that is worked on.
#[must_use]
pub fn build_status(input: StatusInput<'_>) -> PostgresClusterStatus {
    let StatusInput { cluster, memory, now, .. } = input;
    let published = &cluster.status;
    let scene = Scene::of(input);
    let register = scene.register.as_ref();
    let members = build_members(&scene);
    let holder = register.and_then(|register| register.holder.as_ref());
    let bootstrapped = register.is_some_and(|register| register.system_id.is_some());
    let version = scene.holder_status().and_then(|status| status.server_version).map(render_version);
    let conditions = build_conditions(&scene, &members);
    PostgresClusterStatus {
        observed_generation: Some(cluster.generation),
        conditions: merge(&published.conditions, conditions, cluster.generation, now.wall),
        instances: u32::try_from(scene.pods.len()).unwrap_or(u32::MAX),
        ready_instances: Some(format!("{}/{}", scene.ready_instances(), cluster.instances)),
        selector: Some(cluster.selector()),
        primary: if bootstrapped { holder.map(|holder| holder.pod.clone()) } else { published.primary.clone() },
        term: register.filter(|register| register.term.0 > 0).map(|register| register.term.0).or(published.term),
        timeline: register.and_then(|register| register.timeline).map(|timeline| timeline.0).or(published.timeline),
        // Once known it is never forgotten: it is what keeps the cluster from being initialised again.
        system_id: register.and_then(|register| register.system_id.clone()).or_else(|| published.system_id.clone()),
        version: version.or_else(|| published.version.clone()),
        endpoint: Some(format!("{}.{}.svc:5432", names::rw_service(&cluster.name), cluster.namespace)),
        effective: Some(effective(cluster)),
        synchronous: synchronous(&scene).or_else(|| published.synchronous.clone()),
        switchover: switchover::build_switchover(&scene),
        recovery: recovery::build_recovery(&scene, now),
        restore: restore::build_restore(&scene, now),
        last_failover: last_failover(&scene, memory),
        last_backup: backups::last_backup(&scene.observed.backups).or_else(|| published.last_backup.clone()),
        backup: window::restorable_window(&scene),
        members,
    }
}

/// The status of a cluster that nothing can be done for until somebody changes something: Stalled=True, Ready=False,
/// everything else as `seen`, or as published.
#[must_use]
pub fn build_stalled_status(
    cluster: &PostgresCluster,
    seen: Option<PostgresClusterStatus>,
    reason: &str,
    message: &str,
    now: Now,
) -> PostgresClusterStatus {
    let published = cluster.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let seen = seen.or_else(|| cluster.status.clone()).unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let new = |type_: &str, status: &str| conditions::Draft::new(type_, status, reason, message);
    let mut conditions =
        vec![new(READY, "False"), conditions::Draft::new(RECONCILING, "False", "Stalled", ""), new(STALLED, "True")];
    let kept = seen.conditions.iter().filter(|old| ![READY, RECONCILING, STALLED].contains(&old.type_.as_str()));
    conditions.extend(kept.map(|old| conditions::Draft::new(&old.type_, &old.status, &old.reason, &old.message)));
    PostgresClusterStatus {
        observed_generation: Some(generation),
        conditions: merge(&published, conditions, generation, now.wall),
        ..seen
    }
}

/// One server-side apply of the status, skipped if it equals the published one. True if it was written. Transitions are
/// told as Events.
///
/// # Errors
/// If the patch failed.
pub async fn apply_status(
    context: &Context,
    cluster: &PostgresCluster,
    status: PostgresClusterStatus,
) -> Result<bool, StatusError> {
    let published = cluster.status.clone().unwrap_or_default();
    if status == published {
        return Ok(false);
    }
    let api: Api<PostgresCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let patch = serde_json::json!({
        "apiVersion": PostgresCluster::api_version(&()),
        "kind": PostgresCluster::kind(&()),
        "metadata": {"name": cluster.name_any(), "uid": cluster.uid()},
        "status": status,
    });
    context.metrics.api_writes.inc();
    api.patch_status(&cluster.name_any(), &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch))
        .await
        .map_err(StatusError::Patch)?;
    let about = cluster.object_ref(&());
    for event in decide_events(&published, &status) {
        publish(context, &about, event.type_, event.reason, event.action, &event.note).await;
    }
    Ok(true)
}

fn effective(cluster: &ValidatedCluster) -> EffectiveValues {
    EffectiveValues {
        image: cluster.image.clone(),
        synchronous_mode: cluster.synchronous_mode,
        synchronous_replicas: cluster.acks,
        replica_source: cluster.replica_source,
        object_store_prefix: cluster.store.as_ref().map(|store| store.config.prefix.clone()),
    }
}

/// `server_version_num` 170011 is 17.11.
fn render_version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

/// So many roles and databases are named whose commits wait for nobody.
const EXEMPT_SHOWN: usize = 10;

/// What commits wait for: of two sets in force the weaker promise is the one that holds.
fn synchronous(scene: &Scene<'_>) -> Option<SynchronousStatus> {
    let register = scene.register.as_ref().filter(|register| register.holder.is_some())?;
    let primary = scene.holder_status().filter(|status| status.is_primary);
    let published = scene.cluster.status.synchronous.as_ref();
    let weak = primary.and_then(|primary| primary.weak_commits.as_deref());
    let exempt = match weak.or(published.map(|published| published.exempt.as_slice())) {
        Some(known) if scene.cluster.acks > 0 => known.get(..EXEMPT_SHOWN).unwrap_or(known).to_vec(),
        _ => Vec::new(),
    };
    Some(SynchronousStatus {
        mode: scene.cluster.synchronous_mode,
        replicas: scene.cluster.acks,
        effective: register.quorum.acks.min(register.quorum_to_apply().acks),
        cancelled_waits: match primary {
            Some(primary) => i64::try_from(primary.cancelled_waits).ok().filter(|number| *number > 0),
            None => published.and_then(|published| published.cancelled_waits),
        },
        exempt,
    })
}

/// The newest record there is, completed by what the old primary says of itself once it is back.
fn last_failover(scene: &Scene<'_>, memory: &Memory) -> Option<LastFailover> {
    let published = scene.cluster.status.last_failover.as_ref();
    let remembered =
        memory.last_failover.as_ref().filter(|record| published.is_none_or(|known| known.term <= record.term));
    let mut record = remembered.or(published)?.clone();
    record.divergent_bytes = published
        .filter(|known| known.term == record.term)
        .and_then(|known| known.divergent_bytes)
        .or_else(|| divergent_bytes(scene, &record));
    Some(record)
}

/// How much of its own the old primary of this failover had: of the timeline that the candidates were on.
fn divergent_bytes(scene: &Scene<'_>, record: &LastFailover) -> Option<i64> {
    if scene.register.as_ref().is_none_or(|register| register.term.0 != record.term) {
        return None;
    }
    let tail = scene.pods.iter().find(|pod| pod.name == record.from)?.status()?.divergent.as_ref()?;
    let left = record.candidates.iter().any(|candidate| candidate.timeline == Some(tail.timeline.0));
    left.then(|| i64::try_from(tail.to_lsn.bytes_since(tail.from_lsn)).unwrap_or(i64::MAX))
}

/// With the transition times that the published conditions have, where the status is the same.
fn merge(published: &[Condition], new: Vec<conditions::Draft>, generation: i64, now: Timestamp) -> Vec<Condition> {
    let parse = |text: &str| text.parse().unwrap_or(now);
    let old: Vec<core_conditions::Condition> = published
        .iter()
        .map(|old| core_conditions::Condition {
            type_: old.type_.clone(),
            status: old.status.clone(),
            reason: old.reason.clone(),
            message: old.message.clone(),
            observed_generation: old.observed_generation,
            last_transition: parse(&old.last_transition_time),
        })
        .collect();
    let new = new.into_iter().map(|new| new.observed(generation, now)).collect();
    core_conditions::merge_conditions(&old, new, now)
        .into_iter()
        .map(|merged| Condition {
            last_transition_time: render_time(published, &merged),
            type_: merged.type_,
            status: merged.status,
            reason: merged.reason,
            message: merged.message,
            observed_generation: merged.observed_generation,
        })
        .collect()
}

/// In whole seconds, as Kubernetes writes it; an old time is kept to the letter.
fn render_time(published: &[Condition], merged: &core_conditions::Condition) -> String {
    let old = published.iter().find(|old| old.type_ == merged.type_ && old.status == merged.status);
    let time = merged.last_transition;
    old.map_or_else(
        || Timestamp::from_second(time.as_second()).unwrap_or(time).to_string(),
        |old| old.last_transition_time.clone(),
    )
}

#[cfg(test)]
mod tests;

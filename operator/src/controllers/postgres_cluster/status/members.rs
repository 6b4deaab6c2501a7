//! One entry an instance.

use pgherd_core::instance::{DivergentTail, Phase, SourceReport};
use pgherd_crds::{
    names::{ROLE_PRIMARY, ROLE_REPLICA},
    v1alpha1::postgres_cluster::{DivergentStatus, MemberSource, MemberStatus},
};

use super::scene::Scene;
use crate::controllers::postgres_cluster::observe::ObservedPod;

/// The entries, by ordinal.
pub(super) fn build_members(scene: &Scene<'_>) -> Vec<MemberStatus> {
    scene.pods.iter().map(|pod| build_member(scene, pod)).collect()
}

fn build_member(scene: &Scene<'_>, pod: &ObservedPod) -> MemberStatus {
    let before = scene.published_member(&pod.name);
    let Some(status) = pod.status() else {
        return build_silent(scene, pod, before);
    };
    let holds = scene.holder_pod().is_some_and(|holder| holder.uid == pod.uid);
    let role = match status.phase {
        _ if holds && status.is_primary => ROLE_PRIMARY,
        Phase::Replica => ROLE_REPLICA,
        _ => "unknown",
    };
    let member = status.member.as_ref().map(|member| member.0.clone());
    let message = Some(status.message.clone()).filter(|message| !message.is_empty());
    // A restarted agent has forgotten how the data directory was made; the status has not.
    let remembered =
        before.filter(|before| member.is_some() && before.member == member).and_then(|before| before.source.clone());
    MemberStatus {
        pod: pod.name.clone(),
        role: role.to_owned(),
        phase: format!("{:?}", status.phase),
        node: pod.node.clone(),
        timeline: status.history.as_ref().map(|history| history.timeline.0),
        voter: is_voter(scene, member.as_deref()),
        source: status.source.as_ref().map(render_source).or(remembered),
        vouches_for_term: status.vouch.as_ref().map(|vouch| vouch.term.0),
        divergent: status.divergent.as_ref().map(render_divergent),
        message: message.or_else(|| pod.problem.as_ref().map(|problem| problem.message.clone())),
        member,
    }
}

/// A pod whose agent does not answer: as before for a moment, then what is known without it.
fn build_silent(scene: &Scene<'_>, pod: &ObservedPod, before: Option<&MemberStatus>) -> MemberStatus {
    if let Some(before) = before.filter(|_| scene.is_briefly_silent(pod)) {
        return MemberStatus { node: pod.node.clone(), ..before.clone() };
    }
    let (phase, message) = match (&pod.problem, pod.ip) {
        (Some(problem), _) => (problem.reason.clone(), problem.message.clone()),
        (None, None) if pod.terminating => ("Terminating".to_owned(), "the pod is being stopped".to_owned()),
        (None, None) => ("Pending".to_owned(), "the pod's container does not run yet".to_owned()),
        (None, Some(_)) => ("Unreachable".to_owned(), "its agent does not answer".to_owned()),
    };
    let before = before.cloned().unwrap_or_default();
    MemberStatus {
        pod: pod.name.clone(),
        role: "unknown".to_owned(),
        phase,
        node: pod.node.clone(),
        voter: is_voter(scene, before.member.as_deref()),
        message: Some(message),
        vouches_for_term: None,
        ..before
    }
}

fn is_voter(scene: &Scene<'_>, member: Option<&str>) -> bool {
    let voters = scene.register.iter().flat_map(|register| &register.quorum.voters);
    member.is_some_and(|member| voters.into_iter().any(|voter| voter.member.0 == member))
}

fn render_divergent(tail: &DivergentTail) -> DivergentStatus {
    DivergentStatus {
        timeline: tail.timeline.0,
        from_lsn: tail.from_lsn.to_string(),
        to_lsn: tail.to_lsn.to_string(),
        bytes: i64::try_from(tail.to_lsn.bytes_since(tail.from_lsn)).unwrap_or(i64::MAX),
        kept_at: tail.kept_at.clone(),
        error: tail.error.clone(),
    }
}

fn render_source(source: &SourceReport) -> MemberSource {
    let number = |value: Option<u64>| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    MemberSource {
        source: source.source.clone(),
        from: source.from.clone(),
        reason: source.reason.clone(),
        wal_bytes: number(source.wal_bytes),
        copy_bytes: number(source.copy_bytes),
        took_ms: number(source.took_ms),
    }
}

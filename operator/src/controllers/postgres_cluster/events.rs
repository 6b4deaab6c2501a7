//! Which transitions of a cluster are worth an Event: each once, when the status that shows it is written.

use kube::runtime::events::EventType;
use pgherd_crds::{
    PostgresClusterStatus,
    v1alpha1::{
        conditions::{ARCHIVING, FAILOVER_BLOCKED, PRIMARY_AVAILABLE, READY, STALLED},
        postgres_cluster::{LastFailover, MemberStatus},
        shared::Condition,
    },
};

/// An Event to publish.
#[derive(Clone, Debug)]
pub struct ClusterEvent {
    /// Normal or Warning.
    pub type_: EventType,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// What the operator was doing.
    pub action: &'static str,
    /// One sentence with the numbers.
    pub note: String,
}

/// The Events of the step from one status to the next.
#[must_use]
pub fn decide_events(old: &PostgresClusterStatus, new: &PostgresClusterStatus) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    let mut push = |type_, reason, action, note: String| events.push(ClusterEvent { type_, reason, action, note });
    if let (None, Some(system)) = (&old.system_id, &new.system_id) {
        let primary = new.primary.as_deref().unwrap_or_default();
        push(
            EventType::Normal,
            "Bootstrapped",
            "Bootstrap",
            format!("{primary} made the cluster's database (system identifier {system})"),
        );
    }
    if let Some(failover) = &new.last_failover
        && old.last_failover.as_ref().is_none_or(|before| before.term != failover.term)
    {
        // A planned change that went as planned is no reason to worry.
        let planned = new.switchover.as_ref().is_some_and(|switchover| switchover.reason == failover.reason);
        let (type_, reason) =
            if planned { (EventType::Normal, "SwitchedOver") } else { (EventType::Warning, "FailedOver") };
        push(type_, reason, "Failover", render_failover(failover));
    }
    if let Some(waiting) = new.switchover.as_ref().filter(|switchover| switchover.phase == "Waiting")
        && old.switchover.as_ref() != Some(waiting)
    {
        let why = waiting.message.as_deref().unwrap_or_default();
        push(EventType::Normal, "SwitchoverWaiting", "Failover", format!("{}: {why}", waiting.reason));
    }
    if let Some((type_, reason, note)) = restore_changed(old, new) {
        push(type_, reason, "Restore", note);
    }
    for member in &new.members {
        if let Some(note) = diverged(old, member) {
            push(EventType::Warning, "DivergentWal", "Rejoin", note);
        }
    }
    if let Some(note) = cancelled(old, new) {
        push(EventType::Warning, "SynchronousWaitCancelled", "Observe", note);
    }
    if let Some(note) = exempted(old, new) {
        push(EventType::Warning, "CommitsExempt", "Observe", note);
    }
    for member in &new.members {
        if let Some(note) = built(old, member) {
            push(EventType::Normal, "ReplicaBuilt", "BuildReplica", note);
        }
    }
    for (type_, reason, action) in
        [(FAILOVER_BLOCKED, "FailoverBlocked", "Failover"), (STALLED, "Stalled", "Reconcile")]
    {
        if let Some(condition) = became(old, new, type_, "True") {
            push(EventType::Warning, reason, action, condition.message.clone());
        }
    }
    for (type_, reason, action) in
        [(PRIMARY_AVAILABLE, "PrimaryUnavailable", "Observe"), (ARCHIVING, "ArchivingFailed", "Observe")]
    {
        let existed = find(old, type_).is_some();
        if let Some(condition) = became(old, new, type_, "False").filter(|_| existed) {
            push(EventType::Warning, reason, action, condition.message.clone());
        }
    }
    if let Some(condition) = became(old, new, READY, "True") {
        push(EventType::Normal, "Ready", "Reconcile", condition.message.clone());
    }
    events
}

/// Commits that were acknowledged before a replica had them.
fn cancelled(old: &PostgresClusterStatus, new: &PostgresClusterStatus) -> Option<String> {
    let waits = |status: &PostgresClusterStatus| status.synchronous.as_ref().and_then(|now| now.cancelled_waits);
    let number = waits(new).filter(|number| *number > waits(old).unwrap_or(0))?;
    Some(format!(
        "{number} commit(s) were acknowledged although their wait for replicas was cancelled: a failover could lose them"
    ))
}

/// Roles and databases that were exempted from the wait.
fn exempted(old: &PostgresClusterStatus, new: &PostgresClusterStatus) -> Option<String> {
    let known = old.synchronous.as_ref().map(|old| old.exempt.as_slice()).unwrap_or_default();
    let now = new.synchronous.as_ref().map(|now| now.exempt.as_slice()).unwrap_or_default();
    let added: Vec<&str> = now.iter().filter(|whom| !known.contains(whom)).map(String::as_str).collect();
    let names = added.join(", ");
    (!added.is_empty()).then(|| format!("{names}: what they commit waits for no replica, and a failover could lose it"))
}

fn find<'a>(status: &'a PostgresClusterStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

/// The condition, if it has this value now and had another one before.
fn became<'a>(
    old: &PostgresClusterStatus,
    new: &'a PostgresClusterStatus,
    type_: &str,
    value: &str,
) -> Option<&'a Condition> {
    let before = find(old, type_).is_some_and(|condition| condition.status == value);
    find(new, type_).filter(|condition| condition.status == value && !before)
}

/// A step of a restore in place that is worth telling.
fn restore_changed(
    old: &PostgresClusterStatus,
    new: &PostgresClusterStatus,
) -> Option<(EventType, &'static str, String)> {
    let now = new.restore.as_ref()?;
    let before = old.restore.as_ref().filter(|before| before.id == now.id).map(|before| before.phase.as_str());
    if before == Some(now.phase.as_str()) {
        return None;
    }
    let (id, said) = (&now.id, now.message.as_deref().unwrap_or_default());
    let backup = now.backup_id.as_deref().unwrap_or_default();
    let pod = now.pod.as_deref().unwrap_or("the primary");
    match now.phase.as_str() {
        "Refused" => Some((EventType::Warning, "RestoreRefused", format!("restore {id}: {said}"))),
        "Ignored" => Some((EventType::Warning, "RestoreIgnored", format!("restore {id}: {said}"))),
        "Stopping" => Some((EventType::Normal, "RestoreStarted", format!("restore {id}: the primary stops"))),
        "Restoring" => Some((EventType::Normal, "Restoring", format!("restore {id}: {pod} restores backup {backup}"))),
        "Completed" => {
            let (timeline, lsn) = (now.timeline.unwrap_or_default(), now.lsn.as_deref().unwrap_or_default());
            let note = format!("restore {id}: {pod} serves what was restored, on timeline {timeline} from {lsn} on");
            Some((EventType::Normal, "Restored", note))
        }
        _ => None,
    }
}

/// A replica whose data directory was made since.
fn built(old: &PostgresClusterStatus, member: &MemberStatus) -> Option<String> {
    let source =
        member.source.as_ref().filter(|source| ["backup", "instance", "rewind"].contains(&source.source.as_str()))?;
    let before = old.members.iter().find(|before| before.pod == member.pod).and_then(|before| before.source.as_ref());
    if before == Some(source) {
        return None;
    }
    let took = source.took_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
    Some(format!("{} was built from {} {}{took}: {}", member.pod, source.source, source.from, source.reason))
}

/// WAL of an earlier primary that was found since.
fn diverged(old: &PostgresClusterStatus, member: &MemberStatus) -> Option<String> {
    let tail = member.divergent.as_ref()?;
    let before =
        old.members.iter().find(|before| before.pod == member.pod).and_then(|before| before.divergent.as_ref());
    if before == Some(tail) {
        return None;
    }
    let kept = match (&tail.kept_at, &tail.error) {
        (Some(prefix), _) => format!("kept at {prefix}"),
        (None, Some(error)) => format!("not kept: {error}"),
        (None, None) => "not kept".to_owned(),
    };
    Some(format!(
        "{} had {} bytes of WAL of its own on timeline {} ({} to {}), {kept}",
        member.pod, tail.bytes, tail.timeline, tail.from_lsn, tail.to_lsn
    ))
}

fn render_failover(failover: &LastFailover) -> String {
    let candidates: Vec<String> = failover
        .candidates
        .iter()
        .map(|candidate| format!("{} at {}: {}", candidate.pod, candidate.lsn.as_deref().unwrap_or("?"), candidate.why))
        .collect();
    format!(
        "{} took over from {} in term {} ({}); detected in {} ms, sealed in {} ms, promoted in {} ms, routed in {} ms; at most {} bytes lost; {}",
        failover.to,
        failover.from,
        failover.term,
        failover.reason,
        failover.detect_ms,
        failover.seal_ms,
        failover.promote_ms,
        failover.route_ms,
        failover.possible_loss_bytes,
        candidates.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use pgherd_crds::v1alpha1::postgres_cluster::MemberSource;

    use super::*;

    fn with_condition(type_: &str, value: &str) -> PostgresClusterStatus {
        let condition = Condition {
            type_: type_.into(),
            status: value.into(),
            reason: "R".into(),
            message: "why".into(),
            last_transition_time: "2026-01-01T00:00:00Z".into(),
            observed_generation: None,
        };
        PostgresClusterStatus { conditions: vec![condition], ..PostgresClusterStatus::default() }
    }

    fn reasons(old: &PostgresClusterStatus, new: &PostgresClusterStatus) -> Vec<&'static str> {
        decide_events(old, new).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn the_same_status_again_is_no_event() {
        let status = with_condition(FAILOVER_BLOCKED, "True");
        assert!(reasons(&status, &status).is_empty());
    }

    #[test]
    fn a_blocked_failover_is_told_once() {
        assert_eq!(
            reasons(&with_condition(FAILOVER_BLOCKED, "False"), &with_condition(FAILOVER_BLOCKED, "True")),
            ["FailoverBlocked"]
        );
    }

    #[test]
    fn a_primary_that_is_not_there_yet_has_not_become_unavailable() {
        assert!(reasons(&PostgresClusterStatus::default(), &with_condition(PRIMARY_AVAILABLE, "False")).is_empty());
        assert_eq!(
            reasons(&with_condition(PRIMARY_AVAILABLE, "True"), &with_condition(PRIMARY_AVAILABLE, "False")),
            ["PrimaryUnavailable"]
        );
    }

    #[test]
    fn a_failover_is_told_with_its_numbers() {
        let failover = LastFailover {
            from: "shop-0".into(),
            to: "shop-1".into(),
            term: 2,
            seal_ms: 42,
            ..LastFailover::default()
        };
        let new = PostgresClusterStatus { last_failover: Some(failover), ..PostgresClusterStatus::default() };
        let events = decide_events(&PostgresClusterStatus::default(), &new);
        assert!(events[0].note.contains("sealed in 42 ms"), "{}", events[0].note);
    }

    #[test]
    fn a_replica_built_from_a_backup_is_told_with_the_reason() {
        let source = MemberSource {
            source: "backup".into(),
            from: "b1".into(),
            reason: "4 MiB of WAL".into(),
            ..MemberSource::default()
        };
        let member = MemberStatus { pod: "shop-3".into(), source: Some(source), ..MemberStatus::default() };
        let new = PostgresClusterStatus { members: vec![member], ..PostgresClusterStatus::default() };
        let events = decide_events(&PostgresClusterStatus::default(), &new);
        assert_eq!(
            (events[0].reason, events[0].note.as_str()),
            ("ReplicaBuilt", "shop-3 was built from backup b1: 4 MiB of WAL")
        );
        assert!(reasons(&new, &new).is_empty());
    }
}

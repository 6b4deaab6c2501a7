//! The conditions. Each says what is so, in words that help; the most pressing reason is Ready's.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgherd_core::{conditions::Condition, failover::is_chosen_in_vain, instance::Phase};
use pgherd_crds::{
    names::keys,
    v1alpha1::{
        conditions::{
            ARCHIVING, COLLATIONS_CURRENT, FAILOVER_BLOCKED, INSTANCES_CURRENT, PRIMARY_AVAILABLE, READY, RECONCILING,
            REPLICAS_READY, STALLED, SUSPENDED,
        },
        postgres_cluster::MemberStatus,
    },
};

use super::{backups::backup_healthy, scene::Scene};
use crate::controllers::postgres_cluster::{
    decide::{NOBODY_ANSWERS, QUORUM_MISSING},
    observe::ObservedPod,
};

/// Reasons of pods that don't pass before somebody changes something.
const PERMANENT: [&str; 5] =
    ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CrashLoopBackOff"];

/// So many databases are named.
const NAMED: usize = 10;

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    type_: String,
    status: String,
    reason: String,
    message: String,
}

impl Draft {
    pub(super) fn new(type_: &str, status: &str, reason: &str, message: impl Into<String>) -> Self {
        Self { type_: type_.to_owned(), status: status.to_owned(), reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn observed(self, generation: i64, now: Timestamp) -> Condition {
        Condition {
            type_: self.type_,
            status: self.status,
            reason: self.reason,
            message: self.message,
            observed_generation: Some(generation),
            last_transition: now,
        }
    }
}

/// Why something is not as it should be.
struct Why {
    reason: String,
    message: String,
}

fn why(reason: &str, message: impl Into<String>) -> Why {
    Why { reason: reason.to_owned(), message: message.into() }
}

/// All of them, in the order in which people read.
pub(super) fn build_conditions(scene: &Scene<'_>, members: &[MemberStatus]) -> Vec<Draft> {
    let primary = primary_available(scene);
    let replicas = replicas_ready(scene, members);
    let stalled = find_stall(scene);
    let blocked = failover_blocked(scene);
    let unready = find_unready(scene, members, stalled.as_ref(), &blocked, &primary, &replicas);
    let ready = match &unready {
        None => Draft::new(READY, "True", "Ready", format!("{} instances serve", scene.cluster.instances)),
        Some(why) => Draft::new(READY, "False", &why.reason, why.message.clone()),
    };
    let reconciling = match (&unready, &stalled) {
        (Some(why), None) => Draft::new(RECONCILING, "True", &why.reason, why.message.clone()),
        (Some(_), Some(_)) => Draft::new(RECONCILING, "False", "Stalled", ""),
        (None, _) => Draft::new(RECONCILING, "False", "Settled", ""),
    };
    let stalled = match stalled {
        Some(why) => Draft::new(STALLED, "True", &why.reason, why.message),
        None => Draft::new(STALLED, "False", "NotStalled", ""),
    };
    let suspended = if scene.cluster.suspended {
        Draft::new(SUSPENDED, "True", "Suspended", "spec.suspend is set: nothing is changed and no failover is decided")
    } else {
        Draft::new(SUSPENDED, "False", "NotSuspended", "")
    };
    let backups = backup_healthy(&scene.observed.backups, scene.cluster.store.is_some());
    let current = instances_current(scene);
    let mut all =
        vec![ready, reconciling, stalled, primary, replicas, current, archiving(scene), backups, suspended, blocked];
    all.extend(collations_current(scene));
    all
}

fn primary_available(scene: &Scene<'_>) -> Draft {
    let unavailable = |reason: &str, message: String| Draft::new(PRIMARY_AVAILABLE, "False", reason, message);
    let Some(register) = scene.register.as_ref() else {
        return unavailable("NoRegister", "there is no register yet".to_owned());
    };
    let Some(holder) = &register.holder else {
        return unavailable("NoPrimaryYet", scene.note().unwrap_or_else(|| "no instance was chosen yet".to_owned()));
    };
    if scene.primary_available() {
        return Draft::new(
            PRIMARY_AVAILABLE,
            "True",
            "Serving",
            format!("{} serves as primary of term {}", holder.pod, register.term),
        );
    }
    if register.is_sealing() {
        return unavailable(
            "FailingOver",
            format!("{} is replaced as primary; term {} is being decided", holder.pod, register.seal_term),
        );
    }
    let message = match scene.holder_pod() {
        None => format!("{}, the primary's pod, does not exist", holder.pod),
        Some(pod) => match (pod.status(), &pod.problem) {
            (Some(status), _) if register.released => {
                format!("{} gave up the role: {}", pod.name, said(&status.message))
            }
            (Some(status), _) => {
                format!("{} is {:?} and does not serve as primary of term {}", pod.name, status.phase, register.term)
            }
            (None, Some(problem)) => format!("{}: {}", pod.name, problem.message),
            (None, None) => format!("{} does not answer", pod.name),
        },
    };
    let restoring = register.awaits_restore() || register.restore_of_term().is_some_and(|_| holder.member.is_none());
    let reason = match register.system_id {
        None => "Bootstrapping",
        Some(_) if restoring => "Restoring",
        Some(_) => "PrimaryUnavailable",
    };
    unavailable(reason, message)
}

fn said(message: &str) -> &str {
    if message.is_empty() { "it does not say why" } else { message }
}

fn replicas_ready(scene: &Scene<'_>, members: &[MemberStatus]) -> Draft {
    let wanted = scene.cluster.instances.saturating_sub(1) as usize;
    let (streaming, others): (Vec<_>, Vec<_>) = scene.replicas().partition(|pod| scene.replica_streams(pod));
    if streaming.len() >= wanted {
        let message = if wanted == 0 {
            "no replicas are asked for".to_owned()
        } else {
            format!("{wanted} replicas stream from the primary")
        };
        return Draft::new(REPLICAS_READY, "True", "Streaming", message);
    }
    let states: Vec<String> = others
        .iter()
        .filter_map(|pod| members.iter().find(|member| member.pod == pod.name))
        .map(|member| match &member.message {
            Some(message) => format!("{} is {}: {message}", member.pod, member.phase),
            None if member.phase == "Replica" => format!("{} does not stream from the primary yet", member.pod),
            None => format!("{} is {}", member.pod, member.phase),
        })
        .collect();
    let message = format!("{} of {wanted} replicas stream from the primary; {}", streaming.len(), states.join("; "));
    Draft::new(REPLICAS_READY, "False", "NotStreaming", message.trim_end_matches("; "))
}

/// Pods are never made anew by themselves: whoever changes something that needs it chooses the time.
fn instances_current(scene: &Scene<'_>) -> Draft {
    let revision = scene.observed.revision.as_ref();
    let is_outdated =
        |pod: &&ObservedPod| revision.is_some() && pod.revision.is_some() && pod.revision.as_ref() != revision;
    let outdated: Vec<&str> = scene.pods.iter().filter(is_outdated).map(|pod| pod.name.as_str()).collect();
    let pending = scene.pods.iter().filter(|pod| !is_outdated(pod)).filter_map(|pod| {
        let names = pod.status().map(|status| &status.pending_restart).filter(|names| !names.is_empty())?;
        Some(format!("{} runs with an earlier value of {}", pod.name, names.join(", ")))
    });
    let of_pods = (!outdated.is_empty()).then(|| {
        format!(
            "{} still run from an earlier template (image, resources, volumes, Secrets or scheduling)",
            outdated.join(", ")
        )
    });
    let texts: Vec<String> = of_pods.into_iter().chain(pending).collect();
    let refused = name_refused_parameters(scene);
    if !refused.is_empty() {
        let texts = refused.into_iter().chain(texts).collect::<Vec<_>>().join("; ");
        return Draft::new(INSTANCES_CURRENT, "False", "ParametersRefused", texts);
    }
    if texts.is_empty() {
        return Draft::new(INSTANCES_CURRENT, "True", "Current", "");
    }
    let fix = "delete these pods one at a time, each when Ready is True again, the primary's last";
    Draft::new(INSTANCES_CURRENT, "False", "RestartNeeded", format!("{}: {fix}", texts.join("; ")))
}

/// Instances of other versions may say other things of the same parameter.
fn name_refused_parameters(scene: &Scene<'_>) -> BTreeSet<String> {
    let told = scene.pods.iter().filter_map(ObservedPod::status).flat_map(|status| &status.refused_parameters);
    told.map(|told| {
        format!(
            "spec.postgresql.parameters.{told}; instances run with what PostgreSQL took before, or without: correct it"
        )
    })
    .collect()
}

/// None where nothing is known to differ: it is worth no line then.
fn collations_current(scene: &Scene<'_>) -> Option<Draft> {
    let primary = scene.holder_status().filter(|status| status.is_primary);
    let Some(stale) = primary.and_then(|primary| primary.stale_collations.as_ref()) else {
        let known = scene.cluster.status.conditions.iter().find(|condition| condition.type_ == COLLATIONS_CURRENT)?;
        return Some(Draft::new(COLLATIONS_CURRENT, &known.status, &known.reason, known.message.clone()));
    };
    let named = stale.get(..NAMED).unwrap_or(stale).join(", ");
    let more = if stale.len() > NAMED { ", …" } else { "" };
    (!stale.is_empty()).then(|| {
        let fix = "REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION";
        let message = format!("the image sorts text by another version than the indexes of {named}{more}: {fix}");
        Draft::new(COLLATIONS_CURRENT, "False", "ReindexNeeded", message)
    })
}

fn archiving(scene: &Scene<'_>) -> Draft {
    if scene.cluster.store.is_none() {
        return Draft::new(ARCHIVING, "Unknown", "NotConfigured", "no object store is configured: WAL is not archived");
    }
    let Some(archive) = scene.holder_status().filter(|status| status.is_primary).map(|status| &status.archive) else {
        let known = scene.cluster.status.conditions.iter().find(|condition| condition.type_ == ARCHIVING);
        return known.map_or_else(
            || Draft::new(ARCHIVING, "Unknown", "NoPrimary", "there is no primary that archives"),
            |known| Draft::new(ARCHIVING, &known.status, &known.reason, known.message.clone()),
        );
    };
    match (&archive.last_error, &archive.last_archived) {
        (Some(error), _) => {
            Draft::new(ARCHIVING, "False", "ArchiveFailing", format!("WAL does not reach the object store: {error}"))
        }
        (None, Some(_)) => {
            let left = |pod: &&ObservedPod| pod.status().is_some_and(|status| status.archive.left_over > 0);
            let names: Vec<&str> = scene.pods.iter().filter(left).map(|pod| pod.name.as_str()).collect();
            let mut message = "WAL reaches the object store".to_owned();
            if !names.is_empty() {
                message.push_str(&format!("; that of {}'s time as primary is still being brought", names.join(", ")));
            }
            if let Some(error) = &archive.window_error {
                message.push_str(&format!("; what can be restored from it is not known: {error}"));
            }
            let reason = if archive.window_error.is_some() { "WindowUnknown" } else { "Archiving" };
            Draft::new(ARCHIVING, "True", reason, message)
        }
        (None, None) => Draft::new(ARCHIVING, "Unknown", "NothingArchivedYet", "no WAL segment was complete yet"),
    }
}

fn failover_blocked(scene: &Scene<'_>) -> Draft {
    let blocked = |reason: &str, why: &str| Draft::new(FAILOVER_BLOCKED, "True", reason, why);
    let found = scene.executed.and_then(|executed| executed.blocked.as_ref());
    let known = scene.cluster.status.conditions.iter().find(|condition| condition.type_ == FAILOVER_BLOCKED);
    let stays = |reason: &str| match reason {
        NOBODY_ANSWERS => scene.is_deserted(),
        QUORUM_MISSING => scene.waits_for_primary(),
        _ => false,
    };
    match (found, chosen_in_vain(scene), known) {
        (Some(found), ..) => blocked(found.reason, &found.why),
        (None, Some(why), _) => blocked("ChosenInVain", &why),
        // An operator that has only just begun does not know yet for how long the primary has been gone.
        (None, None, Some(known)) if stays(&known.reason) => blocked(&known.reason, &known.message),
        _ => Draft::new(FAILOVER_BLOCKED, "False", "NotBlocked", ""),
    }
}

/// The same instance is chosen again and again and does not become primary, since nobody else can be chosen.
fn chosen_in_vain(scene: &Scene<'_>) -> Option<String> {
    let register = scene.register.as_ref().filter(|register| is_chosen_in_vain(register))?;
    let pod = &register.holder.as_ref()?.pod;
    (!scene.primary_available()).then(|| {
        format!(
            "{pod} was chosen again though it had not become primary before, since nobody else may be as long as other \
             registered voters are missing or behind it, and has not become primary since: see its log and its entry in \
             status.members; if it can't reach or read the API server, repair that; else \
             {}=POD@TERM promotes another one and gives up what only {pod} has",
            keys::FORCE_PROMOTE
        )
    })
}

/// What somebody has to change: what the round found, then what could not be applied, then the instances.
fn find_stall(scene: &Scene<'_>) -> Option<Why> {
    if let Some(stall) = &scene.plan.stalled {
        return Some(why(&stall.reason, stall.message.clone()));
    }
    if let Some(problem) = scene.applied.problems.first() {
        return Some(why(&problem.reason, problem.message.clone()));
    }
    scene.pods.iter().find_map(|pod| {
        let failed = pod.status().filter(|status| status.phase == Phase::Failed);
        let of_pod = pod.problem.as_ref().filter(|problem| PERMANENT.contains(&problem.reason.as_str()));
        match (failed, of_pod) {
            (Some(status), _) => Some(why("InstanceFailed", format!("{}: {}", pod.name, said(&status.message)))),
            (None, Some(problem)) => Some(why(&problem.reason, format!("{}: {}", pod.name, problem.message))),
            (None, None) => None,
        }
    })
}

/// The most pressing reason why the cluster is not Ready.
fn find_unready(
    scene: &Scene<'_>,
    members: &[MemberStatus],
    stalled: Option<&Why>,
    blocked: &Draft,
    primary: &Draft,
    replicas: &Draft,
) -> Option<Why> {
    if let Some(stalled) = stalled {
        return Some(why(&stalled.reason, stalled.message.clone()));
    }
    if blocked.status == "True" {
        return Some(why(FAILOVER_BLOCKED, blocked.message.clone()));
    }
    let pending =
        scene.pods.iter().find_map(|pod| Some((pod, pod.problem.as_ref().filter(|_| pod.status().is_none())?)));
    let of_pod = pending.map(|(pod, problem)| why(&problem.reason, format!("{}: {}", pod.name, problem.message)));
    if primary.status != "True" {
        let note = scene.note().map_or_else(|| primary.message.clone(), |note| format!("{}; {note}", primary.message));
        return Some(of_pod.unwrap_or_else(|| why(&primary.reason, note)));
    }
    if replicas.status != "True" {
        return Some(of_pod.unwrap_or_else(|| why(&replicas.reason, replicas.message.clone())));
    }
    let register = scene.register.as_ref()?;
    let settled = register.pending.is_none() && register.quorum.acks == scene.wanted_acks();
    if !settled {
        return Some(why("ChangingVoters", "the primary is taking up a change of the replicas that commits wait for"));
    }
    if register.quorum.voters.len() < register.quorum.acks as usize {
        return Some(why("TooFewVoters", "commits wait: fewer replicas take part than synchronous.replicas asks for"));
    }
    let extra: Vec<&str> =
        members.iter().skip(scene.cluster.instances as usize).map(|member| member.pod.as_str()).collect();
    if !extra.is_empty() {
        let held = register.holder.as_ref().is_some_and(|holder| extra.contains(&holder.pod.as_str()));
        let hint = if held { "; the primary is one of them and stays until its role has moved" } else { "" };
        return Some(why(
            "ScalingDown",
            format!("instances above the number asked for still exist: {}{hint}", extra.join(", ")),
        ));
    }
    None
}

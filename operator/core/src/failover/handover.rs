//! May the role be moved on purpose now, and to whom? Decided before anything is stopped: a switchover that could not be
//! completed is not begun. Who is promoted in the end is decided by the election, on what the members report after the
//! holder has stopped.

use std::{collections::BTreeMap, fmt};

use super::observation::PodView;
use crate::{
    election::pod_order,
    instance::{InstanceStatus, Phase, Standby},
    quantity::render_bytes,
    quorum::proves,
    register::{Holder, MemberId, Register, VoterSet},
};

/// A replica that has more WAL than this to replay, in bytes, would take long to open: it is waited for.
pub const MAX_REPLAY_LAG: u64 = 16 << 20;
/// A request that can't be carried out within this time, in milliseconds, is refused.
pub const PATIENCE_MS: u64 = 60_000;
/// A holder that has not stopped within this time, in milliseconds, goes on.
pub const RELEASE_WITHIN_MS: u64 = 30_000;
/// Differences of lag below this, in bytes, don't decide between replicas: they change from moment to moment.
const SAME_LAG: u64 = 1 << 20;

/// Why the role is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverCause {
    /// Somebody asked for it.
    Requested,
    /// The holder's node is being drained.
    Drain {
        /// The node.
        node: String,
    },
    /// The holder's ordinal is above the number of instances.
    ScaleDown {
        /// The number of instances asked for.
        instances: u32,
    },
}

impl fmt::Display for HandoverCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("switchover requested"),
            Self::Drain { node } => write!(f, "node {node} is being drained"),
            Self::ScaleDown { instances } => write!(f, "the cluster is scaled down to {instances} instance(s)"),
        }
    }
}

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct HandoverInput<'a> {
    /// The register as just read.
    pub register: &'a Register,
    /// All pods that exist, by name.
    pub pods: &'a BTreeMap<String, PodView>,
    /// The pod that is asked for; None for whoever is best.
    pub target: Option<&'a str>,
    /// Pods that must not become primary, each with the reason.
    pub barred: &'a BTreeMap<String, String>,
    /// For how long the request has been waiting, in milliseconds.
    pub waited_ms: u64,
    /// After how long it is refused; None to wait for ever.
    pub patience_ms: Option<u64>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverVerdict {
    /// Write [`super::register_handed_over`] with this target.
    Begin {
        /// The pod.
        target: String,
        /// WAL that it has to replay yet, in bytes.
        lag: u64,
    },
    /// Not yet.
    Wait {
        /// What is waited for.
        why: String,
    },
    /// Not at all.
    Refuse {
        /// Why.
        why: String,
    },
}

/// Why a pod can't take over.
enum Unfit {
    /// That may pass.
    Yet(String),
    /// That does not pass by waiting.
    Never(String),
}

/// Decides about a request while no handover is under way.
#[must_use]
pub fn decide_handover(input: &HandoverInput<'_>) -> HandoverVerdict {
    let register = input.register;
    let Some(holder) = &register.holder else {
        return HandoverVerdict::Refuse { why: "the cluster has no primary yet".to_owned() };
    };
    if register.is_sealing() || register.released {
        return HandoverVerdict::Refuse { why: format!("a failover is under way: {} is being replaced", holder.pod) };
    }
    let outcome = match serving(register, input.pods, holder) {
        None => Err(Unfit::Yet(format!("{}, the primary, does not serve", holder.pod))),
        Some(status) => choose(input, holder, status),
    };
    match outcome {
        Ok((target, lag)) => HandoverVerdict::Begin { target, lag },
        Err(Unfit::Never(why)) => HandoverVerdict::Refuse { why },
        Err(Unfit::Yet(why)) => match input.patience_ms {
            Some(patience) if input.waited_ms >= patience => {
                HandoverVerdict::Refuse { why: format!("{why}, and that for {} s", patience / 1_000) }
            }
            _ => HandoverVerdict::Wait { why },
        },
    }
}

/// The holder's status, if it takes writes in the current term in the very pod that the register names.
pub(super) fn serving<'a>(
    register: &Register,
    pods: &'a BTreeMap<String, PodView>,
    holder: &Holder,
) -> Option<&'a InstanceStatus> {
    let status = pods.get(&holder.pod).filter(|view| view.uid == holder.pod_uid)?.status()?;
    let serves = status.is_primary && status.phase == Phase::Primary && status.term == register.term;
    serves.then_some(status)
}

fn choose(input: &HandoverInput<'_>, holder: &Holder, primary: &InstanceStatus) -> Result<(String, u64), Unfit> {
    let fit = |pod: &str| fitness(input, holder, primary, pod).map(|lag| (pod.to_owned(), lag));
    let chosen = match input.target {
        Some(target) => fit(target)?,
        None => best(input, holder, fit)?,
    };
    match unproven(input.register, holder, &streaming_members(input, holder)) {
        None => Ok(chosen),
        Some(why) => Err(Unfit::Yet(why)),
    }
}

/// The replica with the least to replay; of those that are about level, the lowest ordinal.
fn best(
    input: &HandoverInput<'_>,
    holder: &Holder,
    fit: impl Fn(&str) -> Result<(String, u64), Unfit>,
) -> Result<(String, u64), Unfit> {
    let mut others: Vec<&String> = input.pods.keys().filter(|pod| **pod != holder.pod).collect();
    others.sort_by_key(|pod| pod_order(pod));
    let (mut found, mut waiting, mut hopeless) = (Vec::new(), Vec::new(), Vec::new());
    for pod in others {
        match fit(pod) {
            Ok(candidate) => found.push(candidate),
            Err(Unfit::Yet(why)) => waiting.push(why),
            Err(Unfit::Never(why)) => hopeless.push(why),
        }
    }
    // The sort keeps the order of names within one step of lag.
    found.sort_by_key(|(_, lag)| lag / SAME_LAG);
    match (found.into_iter().next(), waiting.is_empty()) {
        (Some(candidate), _) => Ok(candidate),
        (None, false) => Err(Unfit::Yet(waiting.join("; "))),
        (None, true) if hopeless.is_empty() => Err(Unfit::Never("there is no other instance".to_owned())),
        (None, true) => Err(Unfit::Never(hopeless.join("; "))),
    }
}

/// How far this pod is behind in replay, in bytes, if it could take over now.
fn fitness(input: &HandoverInput<'_>, holder: &Holder, primary: &InstanceStatus, pod: &str) -> Result<u64, Unfit> {
    let never = |why: String| Err(Unfit::Never(why));
    let yet = |why: String| Err(Unfit::Yet(why));
    if pod == holder.pod {
        return never(format!("{pod} is the primary already"));
    }
    let Some(view) = input.pods.get(pod) else { return never(format!("{pod} does not exist")) };
    if let Some(why) = input.barred.get(pod) {
        return never(format!("{pod} must not become primary: {why}"));
    }
    let Some(status) = view.status() else { return yet(format!("{pod} does not answer")) };
    match status.phase {
        Phase::Replica if status.postgres_up && !status.is_primary => {}
        Phase::Replica | Phase::Starting | Phase::Rewinding | Phase::Sealed => {
            return yet(format!("{pod} is not ready ({:?})", status.phase));
        }
        phase => return never(format!("{pod} is no replica but {phase:?}")),
    }
    let streams =
        status.receiver.as_ref().is_some_and(|receiver| receiver.streaming && receiver.upstream == holder.pod);
    let is_sent = sent_to(primary, status.member.as_ref());
    if status.term != input.register.term || !streams || !is_sent {
        return yet(format!("{pod} does not stream from {} in term {}", holder.pod, input.register.term));
    }
    if let Some(set) = sets(input.register).find(|set| !is_voter(set, status.member.as_ref())) {
        return yet(format!("{pod} is not among the {} registered voter(s) yet", set.voters.len()));
    }
    let lag = primary.received_lsn.bytes_since(status.replayed_lsn);
    if lag > MAX_REPLAY_LAG {
        // Without the number, which would be another one in each round.
        return yet(format!("{pod} has more than {} of WAL to replay", render_bytes(MAX_REPLAY_LAG)));
    }
    Ok(lag)
}

/// The sets that promise something: what an election has to prove.
fn sets(register: &Register) -> impl Iterator<Item = &VoterSet> {
    register.sets().filter(|set| set.acks > 0)
}

fn is_voter(set: &VoterSet, member: Option<&MemberId>) -> bool {
    set.voters.iter().any(|voter| Some(&voter.member) == member)
}

/// The primary sends its WAL to this member now.
pub(super) fn sent_to(primary: &InstanceStatus, member: Option<&MemberId>) -> bool {
    let is_sent = |standby: &Standby| Some(&standby.member) == member && standby.term == Some(primary.term);
    primary.standbys.iter().any(|standby| is_sent(standby) && standby.state == "streaming")
}

/// Members other than the holder that answer and stream.
fn streaming_members<'a>(input: &HandoverInput<'a>, holder: &Holder) -> Vec<&'a MemberId> {
    let others = input.pods.iter().filter(|(pod, _)| **pod != holder.pod);
    others
        .filter_map(|(_, view)| view.status())
        .filter(|status| status.receiver.as_ref().is_some_and(|receiver| receiver.streaming))
        .filter_map(|status| status.member.as_ref())
        .collect()
}

/// Why an election without the holder would be blocked now. Then the holder would have to take its role back.
fn unproven(register: &Register, holder: &Holder, streaming: &[&MemberId]) -> Option<String> {
    let count = |set: &VoterSet| {
        let others = set.voters.iter().filter(|voter| Some(&voter.member) != holder.member.as_ref());
        others.filter(|voter| streaming.contains(&&voter.member)).count()
    };
    sets(register).find(|set| !proves(set.voters.len(), set.acks, count(set))).map(|set| {
        format!(
            "only {} of {} registered voters stream, too few to decide on a new primary without {}",
            count(set),
            set.voters.len(),
            holder.pod
        )
    })
}

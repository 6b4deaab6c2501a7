//! The register: what the whole cluster must agree on, kept in one Lease and changed only by compare-and-swap.
//!
//! The operator is the only one to change who is primary; the holder only renews and releases. Both read it with a
//! quorum GET before they decide.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{election::CandidateVerdict, instance::RecoveryTarget, lineage::Fork, lsn::Lsn, timeline::TimelineId};

/// Annotation of the Lease that holds the [`Register`] as JSON.
pub const REGISTER_ANNOTATION: &str = "pgherd.dev/register";

/// Annotation of the Lease with the primary's last flushed LSN, written with each renewal.
pub const LSN_ANNOTATION: &str = "pgherd.dev/lsn";

/// Annotation of the Lease with the LSN that the primary is not expected to pass before it is fenced, should it not be heard
/// again; written with each renewal.
pub const LSN_LIMIT_ANNOTATION: &str = "pgherd.dev/lsn-limit";

/// How far a primary is, as it writes it beside the register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// What it has flushed.
    pub flushed: Lsn,
    /// How far it may come without another renewal, by [`crate::wal_rate`].
    pub limit: Lsn,
}

impl Position {
    /// The end of the WAL of a server that is down.
    #[must_use]
    pub fn end(lsn: Lsn) -> Self {
        Self { flushed: lsn, limit: lsn }
    }
}

/// A promotion counter: one more at each promotion, never reused. 0 stands for "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A data directory's identity: a UUID kept in PGDATA and used in the `application_name` of its WAL receiver. A re-cloned
/// replica has forgotten what it acknowledged, therefore it is a new member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub String);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who holds the primary role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID: a pod made again under the same name is somebody else.
    pub pod_uid: String,
    /// Chosen at each start of the agent; empty until the named agent has taken the role up.
    #[serde(default)]
    pub boot_nonce: String,
    /// The pod's IP, so that whoever follows it needs no DNS: of what fails together with a primary's node, DNS is often a
    /// part. Its name is verified all the same. None where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The member that was chosen; empty while a new cluster is being bootstrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
}

/// A replica whose flush may acknowledge a commit, and which may stand for election.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Voter {
    /// The data directory.
    pub member: MemberId,
    /// The pod that runs it.
    pub pod: String,
}

/// A set of voters and how many of them must flush a commit before it is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoterSet {
    /// The voters, sorted; their number is N.
    pub voters: Vec<Voter>,
    /// W: 0 means that a commit waits for nobody (`Off`). With W above the number of voters, commits wait.
    pub acks: u32,
}

/// Everything that must agree, in one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Register {
    /// The current term.
    pub term: Term,
    /// Voters promised not to follow any term below this one; above `term` while a failover is under way.
    pub seal_term: Term,
    /// Who is primary in `term`. None only before the cluster was bootstrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// The holder said that its PostgreSQL is down and will not come back by itself in this term.
    #[serde(default)]
    pub released: bool,
    /// The timeline that the holder writes, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// The database system identifier, set once by bootstrap. A cluster that has one is never initialised again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// The committed voters and W.
    #[serde(default)]
    pub quorum: VoterSet,
    /// A change of `quorum` that has begun: the primary already applies it, and until a barrier LSN was flushed by
    /// the new voters an election must satisfy both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<VoterSet>,
    /// How the last terms began, oldest first: tells timelines of the same number apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forks: Vec<Fork>,
    /// The holder is asked to stop and release, because the role is to move on purpose. Gone with the next claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// The failover that is under way, or just ended, for the record; any replica of the operator can complete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverNote>,
    /// The last restore in place that was asked for. Stays for ever, so that none is carried out twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreMark>,
}

/// A restore in place that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreMark {
    /// `spec.restore.id`.
    pub id: String,
    /// What is to be done. None where the id stood in the spec before there was a register: nothing is done for it, since it
    /// may be from a manifest of long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<RestoreOrder>,
}

/// A restore in place that can be carried out, as an instance has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreOrder {
    /// The backup.
    pub backup_id: String,
    /// Where recovery stops.
    pub target: RecoveryTarget,
    /// Whose history recovery follows.
    pub timeline: TimelineId,
    /// The term that begins with the restored data instead of a promotion; None while the holder has yet to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
}

/// A planned change of the holder: it checkpoints, stops PostgreSQL (fast) and releases; then the usual way follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// The pod that is preferred among those that are level; None for whoever is best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Why, for people: `switchover requested`, `node kn2 is being drained`.
    pub reason: String,
}

/// What is known of a failover before it is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailoverNote {
    /// The old primary's pod.
    pub from: String,
    /// Why it was given up.
    pub reason: String,
    /// From the first sign to the suspicion, in milliseconds.
    pub detect_ms: u64,
    /// When sealing began: milliseconds since the Unix epoch, for the record only, never for a decision.
    pub began_at_ms: i64,
    /// When the winner was written into the register, likewise; None before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at_ms: Option<i64>,
    /// What kind of failover it is, for metrics.
    #[serde(default)]
    pub kind: FailoverKind,
    /// Who stood, once the winner was written; at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<CandidateVerdict>,
    /// Bytes that may be lost, once the winner was written; None while, or because, nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possible_loss_bytes: Option<u64>,
    /// The winner is the holder of before, whose claim had come to nothing: nobody else could be chosen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// What set a failover off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailoverKind {
    /// The holder said that its PostgreSQL is down.
    Released,
    /// The Lease was not renewed.
    LeaseExpired,
    /// Nobody hears the holder.
    Silent,
    /// The holder's pod is gone.
    PodGone,
    /// A planned change of the holder.
    Switchover,
    /// Somebody promoted an instance by hand while no quorum could be had.
    Forced,
    /// Not known any more.
    #[default]
    Unknown,
}

impl Register {
    /// The set that the primary must apply: the pending one, if there is one.
    #[must_use]
    pub fn quorum_to_apply(&self) -> &VoterSet {
        self.pending.as_ref().unwrap_or(&self.quorum)
    }

    /// Whether commits are acknowledged without the present holder once one of the voters has taken its place: then nobody
    /// waits for it to come back as a standby.
    #[must_use]
    pub fn can_spare_holder(&self) -> bool {
        self.sets().all(|set| u32::try_from(set.voters.len()).unwrap_or(u32::MAX) > set.acks)
    }

    /// The sets in force: the committed one, and the pending one while there is one.
    pub fn sets(&self) -> impl Iterator<Item = &VoterSet> {
        [Some(&self.quorum), self.pending.as_ref()].into_iter().flatten()
    }

    /// The sets in force that an election by quorum has to prove: where W is 0, no commit waited for anybody.
    pub fn sets_to_prove(&self) -> impl Iterator<Item = &VoterSet> {
        self.sets().filter(|set| set.acks > 0)
    }

    /// W of the stricter of the sets in force.
    #[must_use]
    pub fn strictest_acks(&self) -> u32 {
        self.sets().map(|set| set.acks).max().unwrap_or(0)
    }

    /// What the holder of this term has to restore before it serves, or has restored.
    #[must_use]
    pub fn restore_of_term(&self) -> Option<&RestoreOrder> {
        self.restore.as_ref()?.order.as_ref().filter(|order| order.term == Some(self.term))
    }

    /// The holder is to stop, because what it holds is about to be replaced.
    #[must_use]
    pub fn awaits_restore(&self) -> bool {
        self.restore.as_ref().and_then(|mark| mark.order.as_ref()).is_some_and(|order| order.term.is_none())
    }

    /// True while a failover has sealed the voters but nobody has claimed the next term.
    #[must_use]
    pub fn is_sealing(&self) -> bool {
        self.seal_term > self.term
    }
}

/// `spec.holderIdentity` of the Lease: `pod/uid/nonce`.
#[must_use]
pub fn holder_identity(holder: &Holder) -> String {
    format!("{}/{}/{}", holder.pod, holder.pod_uid, holder.boot_nonce)
}

/// A Lease as it was read, without Kubernetes types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The parsed register.
    pub register: Register,
    /// The Lease's resourceVersion: any renewal changes it. Compared for equality only.
    pub version: String,
    /// The primary's last position that it wrote.
    pub position: Position,
}

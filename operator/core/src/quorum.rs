//! Voters and acknowledgements: when a set of sealed voters proves that nothing acknowledged is missing, and how the
//! set of voters may change. Decides only; the register is written by the caller.

use std::collections::BTreeSet;

use crate::{
    instance::AppliedQuorum,
    pg::quote::quote_identifier,
    register::{MemberId, Register, Term, Voter, VoterSet},
};

/// Stands in `synchronous_standby_names` for a voter that does not exist, so that commits wait. No member is called
/// so: members are UUIDs.
pub const NO_VOTER: &str = "pgherd_no_voter";

/// The two sets of a register that belong together; written in one compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorums {
    /// Goes to `register.quorum`: what elections have to prove.
    pub quorum: VoterSet,
    /// Goes to `register.pending`: what the primary applies, until its barrier has passed.
    pub pending: Option<VoterSet>,
}

/// Who is there, as the voters are planned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Membership<'a> {
    /// Replicas that stream from the holder of the current term now.
    pub streaming: &'a [Voter],
    /// Every pod that answered, with the member it carries now (the holder and lagging replicas too).
    pub present: &'a [Voter],
    /// Pods that are gone for good: their ordinal is above the number of instances.
    pub removed_pods: &'a [String],
}

/// R + W > N: some sealed voter has every commit that `acks` of `voters` had flushed before it was acknowledged.
/// Never true with `acks` = 0: then a commit waited for nobody.
#[must_use]
pub fn proves(voters: usize, acks: u32, sealed: usize) -> bool {
    acks > 0 && sealed + acks as usize > voters
}

/// `application_name` of a member's WAL receiver. The term is the one that the member has on disk: a receiver that found a primary of
/// a later term by itself, before its member's agent did, must not acknowledge anything there (docs/adr/0002).
#[must_use]
pub fn receiver_name(member: &MemberId, term: Term) -> String {
    format!("{member}/{term}")
}

/// Whose receiver bears this name, and the term that it was told; None for a name that [`receiver_name`] did not make.
#[must_use]
pub fn parse_receiver_name(name: &str) -> (MemberId, Option<Term>) {
    let parts = name.rsplit_once('/').and_then(|(member, term)| Some((member, term.parse().ok()?)));
    match parts {
        Some((member, term)) => (MemberId(member.to_owned()), Some(Term(term))),
        None => (MemberId(name.to_owned()), None),
    }
}

/// `synchronous_standby_names` for a set in a term. Empty with `acks` = 0. With more acknowledgements than voters, names that
/// nobody bears are added, so that commits wait instead of being acknowledged by too few.
#[must_use]
pub fn synchronous_standby_names(set: &VoterSet, term: Term) -> String {
    if set.acks == 0 {
        return String::new();
    }
    let members: BTreeSet<&MemberId> = set.voters.iter().map(|voter| &voter.member).collect();
    let mut names: Vec<String> = members.iter().map(|member| quote_identifier(&receiver_name(member, term))).collect();
    let mut missing = 0;
    while names.len() < set.acks as usize || names.is_empty() {
        let suffix = if missing == 0 { String::new() } else { format!("_{missing}") };
        names.push(quote_identifier(&format!("{NO_VOTER}{suffix}")));
        missing += 1;
    }
    format!("ANY {} ({})", set.acks, names.join(", "))
}

/// `synchronous_standby_names` of a server that was not chosen: nobody satisfies it, so that no commit is acknowledged should
/// somebody promote it by hand.
#[must_use]
pub fn names_of_nobody() -> String {
    synchronous_standby_names(&VoterSet { voters: Vec::new(), acks: 1 }, Term::default())
}

/// The set that a new cluster starts with: no voter yet. With `acks` above 0 its commits wait for the first replicas.
#[must_use]
pub fn initial_quorum(acks: u32) -> VoterSet {
    VoterSet { voters: Vec::new(), acks }
}

/// What to write next so that the voters become those that are there; None when nothing is to change now.
///
/// Adds replicas that stream; drops members whose pod carries another member by now, whose pod is gone for good or is
/// the holder's. Nobody is dropped for being unreachable: what it acknowledged may be nowhere else.
///
/// A change that is under way is waited for, unless it can't pass its barrier as it stands (a voter of it was
/// re-cloned or removed, too few of its voters are there or stream while another replica does, or another W is wanted): then it is
/// folded into `quorum` and replaced. An election must prove the folded set, therefore that loses nothing.
#[must_use]
pub fn plan_voters(register: &Register, members: &Membership<'_>, desired_acks: u32) -> Option<Quorums> {
    let holder = register.holder.as_ref()?;
    let applied = register.quorum_to_apply();
    let leaves = |voter: &Voter| {
        voter.pod == holder.pod
            || Some(&voter.member) == holder.member.as_ref()
            || members.removed_pods.contains(&voter.pod)
            || members.present.iter().any(|now| now.pod == voter.pod && now.member != voter.member)
    };
    let kept: BTreeSet<Voter> = applied.voters.iter().filter(|voter| !leaves(voter)).cloned().collect();
    let shrinks = kept.len() < applied.voters.len();
    let joining = members.streaming.iter().filter(|voter| !leaves(voter)).cloned();
    let wanted = VoterSet {
        voters: kept.into_iter().chain(joining).collect::<BTreeSet<_>>().into_iter().collect(),
        acks: desired_acks,
    };
    let Some(pending) = &register.pending else {
        return (wanted != sorted(&register.quorum))
            .then(|| Quorums { quorum: register.quorum.clone(), pending: Some(wanted) });
    };
    let streaming = pending.voters.iter().filter(|voter| members.streaming.contains(voter)).count();
    let stuck = shrinks || pending.acks != desired_acks || streaming < pending.acks as usize;
    (stuck && wanted != sorted(pending)).then(|| Quorums { quorum: folded(register), pending: Some(wanted) })
}

/// The pending set committed, once the primary runs with exactly this set and its voters have passed the barrier.
#[must_use]
pub fn commit_pending(register: &Register, applied: &AppliedQuorum) -> Option<Quorums> {
    let pending = register.pending.as_ref()?;
    let wanted: BTreeSet<&MemberId> = pending.voters.iter().map(|voter| &voter.member).collect();
    let running: BTreeSet<&MemberId> = applied.voters.iter().filter(|name| !name.0.starts_with(NO_VOTER)).collect();
    // With W = 0 PostgreSQL runs with an empty list, whoever the voters are.
    let same = applied.acks == pending.acks && (pending.acks == 0 || wanted == running);
    (applied.barrier_passed && same).then(|| Quorums { quorum: sorted(pending), pending: None })
}

/// The sets of the register that makes `winner` the holder.
///
/// What was acknowledged in earlier terms lies on W of the old voters, the winner among them, and on no new one yet.
/// So the old voters stay what a further election has to prove, and the winner starts with a pending set without
/// itself, as strict as the stricter of the two: it is committed when its voters have the winner's WAL.
#[must_use]
pub fn after_promotion(register: &Register, winner: &MemberId) -> Quorums {
    let quorum = folded(register);
    let acks = register.strictest_acks();
    let voters = quorum.voters.iter().filter(|voter| voter.member != *winner).cloned().collect();
    let pending = VoterSet { voters, acks };
    let pending = (pending != quorum).then_some(pending);
    Quorums { quorum, pending }
}

/// Both sets as one that is true of every commit that either of them acknowledged: all their voters, and the smaller
/// number of acknowledgements. A pending set without acknowledgements promised nothing and takes nothing away.
fn folded(register: &Register) -> VoterSet {
    let Some(pending) = &register.pending else {
        return sorted(&register.quorum);
    };
    let voters: BTreeSet<Voter> = register.quorum.voters.iter().chain(&pending.voters).cloned().collect();
    let acks = match (register.quorum.acks, pending.acks) {
        (committed, 0) => committed,
        (committed, pending) => committed.min(pending),
    };
    VoterSet { voters: voters.into_iter().collect(), acks }
}

/// The set with its voters in order, each once.
fn sorted(set: &VoterSet) -> VoterSet {
    let voters: BTreeSet<Voter> = set.voters.iter().cloned().collect();
    VoterSet { voters: voters.into_iter().collect(), acks: set.acks }
}

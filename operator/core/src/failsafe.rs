//! The API server is away: may the holder go on without a renewal, and what do the promises of the others mean to an
//! observer? Counts promises only; asking, promising and the clocks are the agent's.
//!
//! The safety argument: an election needs R of N voters with R + W > N. While V voters keep their promise not to seal
//! against the holder's term, R is at most N - V; so with V >= W nobody can be elected. Without a quorum (W = 0) a single
//! member could be promoted, therefore everybody else must have promised.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    instance::Vouch,
    quorum::proves,
    register::{MemberId, Register, Term, VoterSet},
};

/// The answer to a [`crate::instance::VouchRequest`]: the promise, and whose it is. (All pods of a cluster show the same
/// certificate, and an address can have passed to another pod.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promise {
    /// The pod that promises.
    pub pod: String,
    /// What it promises.
    #[serde(flatten)]
    pub vouch: Vouch,
}

/// What the holder knows when it wants to go on.
#[derive(Clone, Copy, Debug)]
pub struct Failsafe<'a> {
    /// The register as last seen.
    pub register: &'a Register,
    /// Every other pod that may have a data directory of the cluster.
    pub others: &'a BTreeSet<String>,
    /// The promises of this round.
    pub promises: &'a [Promise],
    /// How long a promise must last to count, in milliseconds.
    pub at_least_ms: u64,
}

/// Why the holder may not go on, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortfall {
    /// A commit waits for nobody, so everybody must promise.
    #[error("without synchronous replicas every other instance must vouch; missing: {}", .missing.join(", "))]
    NotAll {
        /// The pods that did not promise.
        missing: Vec<String>,
    },
    /// Too few voters promised.
    #[error("{promised} of {needed} voters vouch; missing: {}", .missing.join(", "))]
    TooFew {
        /// How many voters of the set promised.
        promised: usize,
        /// How many have to.
        needed: usize,
        /// The voters' pods that did not promise.
        missing: Vec<String>,
    },
}

/// The other pods that may have a data directory of the cluster: the ordinals below `instances`, the registered voters
/// and `known` (those with a slot on the holder), without the holder itself.
#[must_use]
pub fn build_others(
    register: &Register,
    cluster: &str,
    instances: u32,
    known: &[String],
    holder_pod: &str,
) -> BTreeSet<String> {
    let ordinals = (0..instances).map(|ordinal| format!("{cluster}-{ordinal}"));
    let voters = register.sets().flat_map(|set| &set.voters).map(|voter| voter.pod.clone());
    ordinals.chain(voters).chain(known.iter().cloned()).filter(|pod| pod != holder_pod).collect()
}

/// Whether the promises keep everybody else from being elected, so that the holder may go on without a renewal.
///
/// # Errors
/// [`Shortfall`] says who is missing.
pub fn may_go_on(input: &Failsafe<'_>) -> Result<(), Shortfall> {
    let given: Vec<&Promise> = input.promises.iter().filter(|promise| counts(input, promise)).collect();
    if waits_for_nobody(input.register) {
        let promised: BTreeSet<&str> = given.iter().map(|promise| promise.pod.as_str()).collect();
        let missing: Vec<String> =
            input.others.iter().filter(|pod| !promised.contains(pod.as_str())).cloned().collect();
        return if missing.is_empty() { Ok(()) } else { Err(Shortfall::NotAll { missing }) };
    }
    let members: BTreeSet<&MemberId> = given.iter().filter_map(|promise| promise.vouch.member.as_ref()).collect();
    input.register.sets().try_for_each(|set| check_set(input.register, set, &members))
}

/// Whether the promises in force, seen by an observer, make suspecting the holder pointless: nobody could be elected
/// before they run out. `vouches` are those of the reachable pods except the holder's.
#[must_use]
pub fn is_vouched_for(register: &Register, vouches: &[Vouch]) -> bool {
    let in_force: Vec<&Vouch> =
        vouches.iter().filter(|vouch| vouch.term == register.term && vouch.remaining_ms > 0).collect();
    if waits_for_nobody(register) {
        return !in_force.is_empty();
    }
    let members: BTreeSet<&MemberId> = in_force.iter().filter_map(|vouch| vouch.member.as_ref()).collect();
    let unprovable = |set: &VoterSet| {
        let held = held_of(register, set, &members);
        !proves(set.voters.len(), set.acks, set.voters.len() - held)
    };
    !members.is_empty() && register.sets().any(unprovable)
}

fn counts(input: &Failsafe<'_>, promise: &Promise) -> bool {
    let vouch = &promise.vouch;
    vouch.term == input.register.term
        && vouch.term > Term(0)
        && vouch.remaining_ms >= input.at_least_ms
        && input.others.contains(&promise.pod)
}

/// In one of the sets in force a commit is acknowledged by the holder alone.
fn waits_for_nobody(register: &Register) -> bool {
    register.sets().any(|set| set.acks == 0)
}

/// How many of the set can't seal: those that promised, and the holder, where it is still a voter of the set that
/// elected it.
fn held_of(register: &Register, set: &VoterSet, members: &BTreeSet<&MemberId>) -> usize {
    let distinct: BTreeSet<&MemberId> = set.voters.iter().map(|voter| &voter.member).collect();
    distinct.into_iter().filter(|member| members.contains(member) || is_holder(register, member)).count()
}

fn is_holder(register: &Register, member: &MemberId) -> bool {
    register.holder.as_ref().and_then(|holder| holder.member.as_ref()) == Some(member)
}

/// W voters, or all where there are fewer than W: then commits hang, and nobody may be left who could stand.
fn check_set(register: &Register, set: &VoterSet, members: &BTreeSet<&MemberId>) -> Result<(), Shortfall> {
    let needed = (set.acks as usize).min(set.voters.len());
    let promised = held_of(register, set, members);
    if promised >= needed {
        return Ok(());
    }
    let absent = set.voters.iter().filter(|voter| !members.contains(&voter.member));
    let missing = absent.filter(|voter| !is_holder(register, &voter.member)).map(|voter| voter.pod.clone()).collect();
    Err(Shortfall::TooFew { promised, needed, missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{Holder, Voter};

    fn register(quorum: &[u32], acks: u32) -> Register {
        let voter = |n: &u32| Voter { member: MemberId(format!("m{n}")), pod: format!("c-{n}") };
        let member = Some(MemberId("m0".into()));
        Register {
            term: Term(4),
            seal_term: Term(4),
            holder: Some(Holder {
                pod: "c-0".into(),
                pod_uid: "u".into(),
                boot_nonce: "n".into(),
                address: None,
                member,
            }),
            quorum: VoterSet { voters: quorum.iter().map(voter).collect(), acks },
            ..Register::default()
        }
    }

    fn promise(n: u32, term: u64, remaining_ms: u64) -> Promise {
        let vouch = Vouch { term: Term(term), member: Some(MemberId(format!("m{n}"))), remaining_ms };
        Promise { pod: format!("c-{n}"), vouch }
    }

    fn check(register: &Register, instances: u32, promises: &[Promise]) -> Result<(), Shortfall> {
        let others = build_others(register, "c", instances, &[], "c-0");
        may_go_on(&Failsafe { register, others: &others, promises, at_least_ms: 10_000 })
    }

    #[test]
    fn with_a_quorum_w_voters_are_enough() {
        let register = register(&[1, 2], 1);
        assert_eq!(check(&register, 3, &[promise(2, 4, 10_000)]), Ok(()));
        let missing = vec!["c-1".to_owned(), "c-2".to_owned()];
        assert_eq!(check(&register, 3, &[]), Err(Shortfall::TooFew { promised: 0, needed: 1, missing }));
    }

    #[test]
    fn without_a_quorum_everybody_has_to_promise_also_without_a_data_directory() {
        let register = register(&[1], 0);
        let mut promises = vec![promise(1, 4, 10_000)];
        assert_eq!(check(&register, 3, &promises), Err(Shortfall::NotAll { missing: vec!["c-2".to_owned()] }));
        promises.push(Promise { pod: "c-2".into(), vouch: Vouch { member: None, ..promise(2, 4, 10_000).vouch } });
        assert_eq!(check(&register, 3, &promises), Ok(()));
        assert_eq!(check(&self::register(&[], 0), 1, &[]), Ok(()), "an only instance needs nobody");
    }

    #[test]
    fn a_promise_for_another_term_or_for_too_short_a_time_does_not_count() {
        let register = register(&[1], 1);
        for bad in [promise(1, 3, 60_000), promise(1, 5, 60_000), promise(1, 4, 9_999), promise(7, 4, 60_000)] {
            assert!(check(&register, 2, std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn both_sets_count_while_the_voters_change() {
        let mut register = register(&[1], 1);
        register.pending = Some(self::register(&[2], 1).quorum);
        assert!(check(&register, 3, &[promise(1, 4, 10_000)]).is_err());
        assert_eq!(check(&register, 3, &[promise(1, 4, 10_000), promise(2, 4, 10_000)]), Ok(()));
        register.pending = Some(VoterSet::default());
        assert_eq!(check(&register, 4, &[promise(1, 4, 10_000)]).unwrap_err().to_string().matches("c-").count(), 2);
    }

    #[test]
    fn an_observer_looks_away_only_while_the_vouchers_are_needed_for_an_election() {
        let vouch = |n| promise(n, 4, 1).vouch;
        assert!(is_vouched_for(&register(&[1, 2], 1), &[vouch(2)]));
        assert!(!is_vouched_for(&register(&[1, 2, 3], 2), &[vouch(2)]), "two of three can prove it without c-2");
        assert!(is_vouched_for(&register(&[], 0), &[vouch(2)]));
        assert!(!is_vouched_for(&register(&[1], 1), &[]));
        assert!(!is_vouched_for(&register(&[1], 1), &[Vouch { remaining_ms: 0, ..vouch(1) }]));
        assert!(!is_vouched_for(&register(&[1], 1), &[Vouch { term: Term(3), ..vouch(1) }]));
    }
}

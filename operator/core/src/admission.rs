//! When a primary that was restarted or promoted may let clients in: once W voters have what it had at that moment, so
//! that nothing that a reader sees there can disappear in a later failover. Decides only; the agent keeps pg_hba.conf.

use std::collections::BTreeSet;

use crate::{
    instance::Standby,
    lsn::Lsn,
    register::{MemberId, Register},
};

/// What is still waited for, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("clients are let in once {needed} voter(s) have everything up to {at}; so far {have}, missing: {}", render(.missing))]
pub struct Closed {
    /// W.
    pub needed: usize,
    /// How many voters have it.
    pub have: usize,
    /// The position.
    pub at: Lsn,
    /// The voters that don't, and whether they are connected.
    pub missing: Vec<(String, bool)>,
}

/// Without their positions: the text goes into the status, which is written each time that it changes.
fn render(missing: &[(String, bool)]) -> String {
    let one =
        |(pod, connected): &(String, bool)| format!("{pod} ({})", if *connected { "behind" } else { "not connected" });
    let texts: Vec<String> = missing.iter().map(one).collect();
    if texts.is_empty() { "there are no such voters".to_owned() } else { texts.join(", ") }
}

/// True where nothing has to be waited for: a commit waits for nobody (W = 0), nobody has ever seen this cluster, or no
/// voter was ever registered, so that nobody else can be elected.
#[must_use]
pub fn admits_at_once(register: &Register) -> bool {
    let no_voter = register.sets().all(|set| set.voters.is_empty());
    register.quorum_to_apply().acks == 0 || register.system_id.is_none() || no_voter
}

/// Whether clients may be let in: `at` is what the primary had flushed at the end of its recovery, `standbys` what it
/// sees of its standbys now.
///
/// # Errors
/// [`Closed`] says what is missing.
pub fn decide_admission(register: &Register, standbys: &[Standby], at: Lsn) -> Result<(), Closed> {
    if admits_at_once(register) {
        return Ok(());
    }
    let set = register.quorum_to_apply();
    let flushed = |member: &MemberId| {
        let of_this_term = standbys.iter().filter(|standby| standby.term == Some(register.term));
        of_this_term.filter(|standby| standby.member == *member).map(|standby| standby.flush_lsn).max()
    };
    let has_it = |member: &MemberId| flushed(member).is_some_and(|lsn| lsn >= at);
    let members: BTreeSet<&MemberId> = set.voters.iter().map(|voter| &voter.member).collect();
    let have = members.into_iter().filter(|member| has_it(member)).count();
    let needed = set.acks as usize;
    if have >= needed {
        return Ok(());
    }
    let behind = set.voters.iter().filter(|voter| !has_it(&voter.member));
    let mut missing: Vec<_> = behind.map(|voter| (voter.pod.clone(), flushed(&voter.member).is_some())).collect();
    missing.sort();
    Err(Closed { needed, have, at, missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{Term, Voter, VoterSet};

    fn set(ordinals: &[u32], acks: u32) -> VoterSet {
        let voter = |n: &u32| Voter { member: MemberId(format!("m{n}")), pod: format!("c-{n}") };
        VoterSet { voters: ordinals.iter().map(voter).collect(), acks }
    }

    fn register(quorum: VoterSet) -> Register {
        Register { system_id: Some("7".into()), term: Term(3), quorum, ..Register::default() }
    }

    fn standby(n: u32, lsn: u64) -> Standby {
        let (flush_lsn, replay_lsn) = (Lsn(lsn), Lsn(0));
        let (member, term) = (MemberId(format!("m{n}")), Some(Term(3)));
        Standby { member, term, state: "streaming".into(), flush_lsn, replay_lsn }
    }

    #[test]
    fn clients_wait_until_w_voters_have_flushed_the_position() {
        let register = register(set(&[1, 2, 3], 2));
        let closed = decide_admission(&register, &[standby(1, 100), standby(2, 99)], Lsn(100)).unwrap_err();
        assert_eq!((closed.have, closed.needed), (1, 2));
        assert_eq!(
            closed.to_string(),
            "clients are let in once 2 voter(s) have everything up to 0/64; so far 1, missing: c-2 (behind), c-3 (not connected)"
        );
        assert_eq!(decide_admission(&register, &[standby(1, 100), standby(3, 101)], Lsn(100)), Ok(()));
        let later = decide_admission(&register, &[standby(1, 120), standby(2, 98)], Lsn(100)).unwrap_err();
        assert_eq!(later.to_string(), closed.to_string(), "it changes only with who is missing");
    }

    #[test]
    fn one_voter_over_two_connections_is_one_and_a_stranger_is_none() {
        let register = register(set(&[1, 2], 2));
        let seen = [standby(1, 100), standby(1, 100), standby(9, 100)];
        assert_eq!(decide_admission(&register, &seen, Lsn(100)).unwrap_err().have, 1);
    }

    #[test]
    fn a_voter_that_has_not_entered_the_term_does_not_count() {
        let register = register(set(&[1, 2], 1));
        let seen = Standby { term: Some(Term(2)), ..standby(1, 100) };
        assert!(decide_admission(&register, &[seen], Lsn(100)).is_err());
    }

    #[test]
    fn the_set_that_is_being_changed_to_counts() {
        let mut register = register(set(&[1], 1));
        register.pending = Some(set(&[2], 1));
        assert!(decide_admission(&register, &[standby(1, 100)], Lsn(100)).is_err());
        assert_eq!(decide_admission(&register, &[standby(2, 100)], Lsn(100)), Ok(()));
    }

    #[test]
    fn a_promoted_primary_without_any_other_voter_stays_closed_and_says_so() {
        let mut register = register(set(&[1], 1));
        register.pending = Some(set(&[], 1));
        let closed = decide_admission(&register, &[], Lsn(100)).unwrap_err();
        assert!(closed.to_string().contains("there are no such voters"), "{closed}");
    }

    #[test]
    fn a_new_cluster_and_one_without_a_promise_open_at_once() {
        assert!(admits_at_once(&register(set(&[1, 2], 0))));
        assert!(admits_at_once(&register(set(&[], 1))), "nobody else can ever be elected");
        assert!(admits_at_once(&Register { system_id: None, ..register(set(&[1], 1)) }));
        assert!(!admits_at_once(&register(set(&[1], 1))));
    }
}

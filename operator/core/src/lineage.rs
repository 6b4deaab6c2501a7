//! Which promotion began a timeline. Numbers don't say: a promotion that nobody heard of leaves its number free for the next
//! one, even with the same switch point. The register remembers of each claim what the winner was on; from that follows
//! of which term the newest timeline of a member is. Pure; the register is written by the caller.
//!
//! The memory is short, so it may say too little, but never something wrong: an election does without a member of which it
//! can't be told which promotion it has followed.

use serde::{Deserialize, Serialize};

use crate::{
    instance::SealReport,
    kinship::is_holder,
    register::{MemberId, Register, Term},
    timeline::TimelineId,
};

/// So many claims are remembered.
const KEPT: usize = 16;

/// How a term began: what its holder was on when it was chosen. Its own timeline has a higher number than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fork {
    /// The term that began.
    pub term: Term,
    /// The highest term that the holder had followed or led before.
    pub parent_term: Term,
    /// The newest timeline that it held WAL of.
    pub parent_timeline: TimelineId,
}

impl Fork {
    /// How `term` begins when the member of this report is chosen.
    #[must_use]
    pub fn of(term: Term, winner: &SealReport) -> Self {
        Self { term, parent_term: winner.term, parent_timeline: winner.history.timeline }
    }
}

/// The claims to be remembered once another term begins. One that was never taken up is not among them: the holder writes its
/// boot nonce before it is promoted or followed, so nobody has followed that term, and nobody can any more. Else a chosen
/// member that can't read the register would drive out all others.
#[must_use]
pub fn remembered(register: &Register) -> Vec<Fork> {
    let never_taken_up = register.holder.as_ref().is_some_and(|holder| holder.boot_nonce.is_empty());
    register.forks.iter().filter(|fork| !(never_taken_up && fork.term == register.term)).copied().collect()
}

/// How the present term began.
#[must_use]
pub fn present_fork(register: &Register) -> Option<Fork> {
    register.forks.iter().find(|fork| fork.term == register.term).copied()
}

/// This member was chosen for the present term and has not become primary: nobody has seen it as one, and the newest
/// timeline that it has WAL of is not one that it began.
#[must_use]
pub fn came_to_nothing(register: &Register, member: &MemberId, timeline: TimelineId) -> bool {
    let never_led = present_fork(register).is_some_and(|fork| timeline <= fork.parent_timeline);
    register.timeline.is_none() && never_led && is_holder(register, member)
}

/// The register that remembers this claim as well.
#[must_use]
pub fn register_forked(register: Register, fork: Fork) -> Register {
    // Straight to where the winner's timeline began: what came to nothing in between need not be remembered for that.
    let parent_term = origin(&register, fork.parent_term, fork.parent_timeline).term;
    let fork = Fork { parent_term, ..fork };
    let mut forks: Vec<Fork> = register.forks.into_iter().filter(|known| known.term != fork.term).collect();
    forks.push(fork);
    forks.sort_by_key(|fork| fork.term);
    let forks = forks.split_off(forks.len().saturating_sub(KEPT));
    Register { forks, ..register }
}

/// Whether two members that hold WAL of one timeline number hold it of the same promotion; each is given by the highest
/// term that it has followed or led. None where the register doesn't know.
#[must_use]
pub fn same_promotion(register: &Register, timeline: TimelineId, term: Term, other: Term) -> Option<bool> {
    let (one, two) = (origin(register, term, timeline), origin(register, other, timeline));
    let later = if one.term > two.term { &one } else { &two };
    if one.term == two.term {
        return Some(true);
    }
    // It began in the later term. What the other one holds is from before that, even if it is not remembered from when.
    later.is_known.then_some(false)
}

/// Where the way back along the claims ends.
struct Origin {
    term: Term,
    /// That term began the timeline. Otherwise the claims are not known further back.
    is_known: bool,
}

/// Goes back from a term to the one that began this timeline. All WAL of a member lies on the history of its term, so what
/// is not newer than the term's parent is the parent's.
fn origin(register: &Register, term: Term, timeline: TimelineId) -> Origin {
    let mut term = term;
    loop {
        // Parents are earlier terms, so this ends, whatever somebody wrote into the register.
        match register.forks.iter().find(|fork| fork.term == term && fork.parent_term < term) {
            None => return Origin { term, is_known: false },
            Some(fork) if timeline > fork.parent_timeline => return Origin { term, is_known: true },
            Some(fork) => term = fork.parent_term,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Holder;

    fn forked(forks: &[(u64, u64, u32)]) -> Register {
        forks.iter().fold(Register::default(), |register, &(term, parent_term, parent_timeline)| {
            let (term, parent_term) = (Term(term), Term(parent_term));
            register_forked(register, Fork { term, parent_term, parent_timeline: TimelineId(parent_timeline) })
        })
    }

    fn same(register: &Register, timeline: u32, term: u64, other: u64) -> Option<bool> {
        same_promotion(register, TimelineId(timeline), Term(term), Term(other))
    }

    #[test]
    fn two_claims_from_one_timeline_begin_two_of_the_same_number() {
        let register = forked(&[(2, 1, 1), (3, 1, 1)]);
        assert_eq!(same(&register, 2, 2, 3), Some(false));
        assert_eq!(same(&register, 1, 2, 3), Some(true));
    }

    #[test]
    fn who_followed_a_later_term_and_has_nothing_of_it_is_on_the_timeline_of_the_earlier_one() {
        let register = forked(&[(2, 1, 1), (3, 2, 2)]);
        assert_eq!(same(&register, 2, 2, 3), Some(true));
        assert_eq!(same(&register, 3, 2, 3), Some(false));
    }

    #[test]
    fn a_claim_by_a_member_of_the_abandoned_branch_takes_that_branch_up_again() {
        let register = forked(&[(2, 1, 1), (3, 1, 1), (4, 2, 2)]);
        assert_eq!(same(&register, 2, 2, 4), Some(true));
        assert_eq!(same(&register, 2, 3, 4), Some(false));
    }

    #[test]
    fn what_is_not_remembered_is_not_claimed_to_be_known() {
        assert_eq!(same(&Register::default(), 2, 2, 3), None);
        assert_eq!(same(&forked(&[(3, 2, 2)]), 2, 1, 3), None);
        let many: Vec<_> = (2..40).map(|term| (term, term - 1, 1)).collect();
        assert_eq!(forked(&many).forks.len(), KEPT);
        assert_eq!(forked(&many).forks.last().map(|fork| fork.term), Some(Term(39)));
        assert_eq!(same(&forked(&[(3, 3, 7), (2, 3, 7)]), 2, 3, 2), None);
    }

    #[test]
    fn what_began_in_a_remembered_term_is_not_what_an_earlier_one_held() {
        assert_eq!(same(&forked(&[(3, 2, 1)]), 2, 2, 3), Some(false));
        assert_eq!(same(&forked(&[(3, 2, 1)]), 1, 2, 3), Some(true));
    }

    #[test]
    fn claims_that_came_to_nothing_in_a_row_lead_straight_to_where_the_timeline_began() {
        let many: Vec<_> = (4..40).map(|term| (term, term - 1, 2)).collect();
        let all: Vec<_> = [(2, 1, 1), (3, 1, 1)].into_iter().chain(many).collect();
        assert_eq!(same(&forked(&all), 2, 3, 39), Some(true), "though term 3 is not remembered any more");
        assert_eq!(same(&forked(&all), 2, 2, 39), None);
    }

    #[test]
    fn a_claim_that_was_never_taken_up_is_forgotten_with_the_next_one() {
        let holder = |nonce: &str| Holder { boot_nonce: nonce.to_owned(), ..Holder::default() };
        let at = |nonce| Register { term: Term(3), holder: Some(holder(nonce)), ..forked(&[(2, 1, 1), (3, 1, 1)]) };
        assert_eq!(remembered(&at("")).len(), 1);
        assert_eq!(remembered(&at("n")).len(), 2);
    }
}

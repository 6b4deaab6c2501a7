//! Which of the members that answered are on the cluster's history, as far as they themselves and the remembered claims show
//! it. Pure; who wins is decided in [`crate::election`].

use std::cmp::Reverse;

use crate::{
    election::reach,
    instance::SealReport,
    lineage::same_promotion,
    register::{MemberId, Register, Term},
    timeline::Relation,
};

/// The members of one election.
#[derive(Debug, Default)]
pub(crate) struct Sorted<'a> {
    /// On the history: the furthest of them has everything that any of them has.
    pub(crate) on_history: Vec<&'a SealReport>,
    /// Either on the history and ahead of others there, or on a branch that was left: it is not remembered which.
    pub(crate) doubtful: Vec<&'a SealReport>,
}

/// What a member holds beside one that has followed a higher term; the greater says more against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kinship {
    /// One of the two has all that the other one has.
    Shared,
    /// It is ahead, or on a branch that was left.
    Unknown,
    /// Each holds something that the other does not, or may.
    Parted,
}

/// Sorts them.
///
/// All WAL of a member lies on the history of the highest term that it has followed. So of two that parted, the one that
/// followed the lower term is on a branch that was left, and the other one has whatever of it was acknowledged. Of two
/// that did not part, the longer one has everything, whichever term each has followed: that is why terms alone do not
/// decide (a replica may have followed the newest term without having received anything of it), nor do timeline numbers
/// (a branch that was left may have a higher one).
pub(crate) fn sort<'a>(register: &Register, standing: &[&'a SealReport]) -> Sorted<'a> {
    let mut by_term = standing.to_vec();
    by_term.sort_by_key(|report| Reverse(report.term));
    let mut sorted = Sorted::default();
    for report in by_term {
        let newer = sorted.on_history.iter().filter(|newer| newer.term > report.term);
        match newer.map(|newer| kinship(register, report, newer)).max() {
            Some(Kinship::Parted) => {}
            // The election that made it the holder has shown that it has everything.
            Some(Kinship::Unknown) if !is_holder(register, &report.member) => sorted.doubtful.push(report),
            _ => sorted.on_history.push(report),
        }
    }
    sorted
}

/// Switch points may differ, or two promotions have taken one number, which positions don't show. Term 0 never followed
/// anybody: it is a fresh copy.
fn kinship(register: &Register, report: &SealReport, newer: &SealReport) -> Kinship {
    let relation = report.history.compare(reach(report), &newer.history, reach(newer));
    if matches!(relation, Relation::Diverged { .. }) {
        return Kinship::Parted;
    }
    if report.term == Term(0) {
        return Kinship::Shared;
    }
    // The newest number that both hold WAL of.
    let timeline = report.history.timeline.min(newer.history.timeline);
    let is_same = same_promotion(register, timeline, report.term, newer.term).or_else(|| {
        // Not remembered. At least, who is on the number of the current term's timeline and has never followed the
        // current term is on another one.
        let never_followed = report.term < register.term && newer.term >= register.term;
        (register.timeline == Some(timeline) && never_followed).then_some(false)
    });
    match (is_same, relation) {
        (Some(true), _) | (None, Relation::Behind { .. }) => Kinship::Shared,
        (None, Relation::Ahead { .. }) => Kinship::Unknown,
        // Where both reach equally far, the newer one has everything either way.
        (Some(false) | None, _) => Kinship::Parted,
    }
}

/// The register names this member.
pub(crate) fn is_holder(register: &Register, member: &MemberId) -> bool {
    register.holder.as_ref().and_then(|holder| holder.member.as_ref()) == Some(member)
}

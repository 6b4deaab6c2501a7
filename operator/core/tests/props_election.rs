//! Properties of an election: it is independent of the order of its input, nobody wins over one that is ahead, nobody
//! wins without a quorum, and the winner has everything that was acknowledged.

use std::collections::BTreeSet;

use pgherd_core::{
    election::{Election, ElectionRules, elect, reach},
    instance::SealReport,
    lsn::Lsn,
    quorum::proves,
    register::{Holder, MemberId, Register, Term, Voter, VoterSet},
    timeline::{TimelineHistory, TimelineId},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Scene {
    /// Flushed position of each voter; their number is N.
    flushed: Vec<u64>,
    acks: u32,
    sealed: BTreeSet<usize>,
    released: bool,
    outsider: Option<u64>,
}

fn scene(max_acks: u32) -> impl Strategy<Value = Scene> {
    (1_usize..6).prop_flat_map(move |voters| {
        (
            prop::collection::vec(0_u64..6, voters),
            0..=max_acks,
            prop::collection::btree_set(0..voters, 0..=voters),
            any::<bool>(),
            prop::option::of(0_u64..9),
        )
            .prop_map(|(flushed, acks, sealed, released, outsider)| Scene {
                flushed,
                acks,
                sealed,
                released,
                outsider,
            })
    })
}

fn member(index: usize) -> MemberId {
    MemberId(format!("m{index}"))
}

impl Scene {
    fn register(&self) -> Register {
        let voter = |index| Voter { member: member(index), pod: format!("c-{index}") };
        let voters = (0..self.flushed.len()).map(voter).collect();
        let holder = Holder {
            pod: "c-9".into(),
            pod_uid: "u".into(),
            boot_nonce: "b".into(),
            address: None,
            member: Some(member(9)),
        };
        Register {
            term: Term(3),
            seal_term: Term(4),
            holder: Some(holder),
            released: self.released,
            quorum: VoterSet { voters, acks: self.acks },
            ..Register::default()
        }
    }

    fn reports(&self) -> Vec<SealReport> {
        let report = |index: usize, lsn: u64| SealReport {
            member: member(index),
            pod: format!("c-{index}"),
            sealed_term: Term(4),
            term: Term(3),
            history: TimelineHistory::root(TimelineId(1)),
            received_lsn: Lsn(lsn),
            replayed_lsn: Lsn(lsn),
        };
        let sealed = self.sealed.iter().map(|index| report(*index, self.flushed[*index]));
        sealed.chain(self.outsider.map(|lsn| report(7, lsn))).collect()
    }

    /// The last position that W voters have flushed: everything up to it may have been acknowledged.
    fn acknowledged(&self) -> u64 {
        let mut flushed = self.flushed.clone();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        (self.acks as usize).checked_sub(1).and_then(|at| flushed.get(at)).copied().unwrap_or(0)
    }
}

fn won(election: &Election) -> Option<&SealReport> {
    match election {
        Election::Winner { winner, .. } => Some(winner),
        Election::Blocked { .. } => None,
    }
}

proptest! {
    #[test]
    fn the_order_of_the_reports_does_not_matter(scene in scene(3), turn in 0_usize..6, twice in any::<bool>()) {
        let register = scene.register();
        let mut reports = scene.reports();
        let straight = elect(&register, &reports, ElectionRules::default());
        let turn = turn.min(reports.len());
        reports.rotate_left(turn);
        if twice {
            reports.extend(reports.clone());
        }
        prop_assert_eq!(straight, elect(&register, &reports, ElectionRules::default()));
    }

    #[test]
    fn nobody_wins_over_an_eligible_one_that_is_ahead(scene in scene(3)) {
        let reports = scene.reports();
        if let Some(winner) = won(&elect(&scene.register(), &reports, ElectionRules::default())) {
            let eligible = reports.iter().filter(|report| scene.acks == 0 || report.member != member(7));
            prop_assert!(eligible.map(reach).all(|lsn| lsn <= reach(winner)));
        }
    }

    #[test]
    fn no_quorum_no_promotion_and_no_outsider_wins(scene in scene(3)) {
        prop_assume!(scene.acks > 0);
        let winner = elect(&scene.register(), &scene.reports(), ElectionRules::default());
        let proven = proves(scene.flushed.len(), scene.acks, scene.sealed.len()) && !scene.sealed.is_empty();
        prop_assert_eq!(won(&winner).is_some(), proven);
        prop_assert!(won(&winner).is_none_or(|report| report.member != member(7)));
    }

    #[test]
    fn the_winner_has_everything_that_was_acknowledged(scene in scene(3)) {
        prop_assume!(scene.acks > 0);
        if let Some(winner) = won(&elect(&scene.register(), &scene.reports(), ElectionRules::default())) {
            prop_assert!(reach(winner).0 >= scene.acknowledged());
        }
    }

    #[test]
    fn everyone_who_answered_or_was_missed_is_explained(scene in scene(3)) {
        let (register, reports) = (scene.register(), scene.reports());
        let candidates = match elect(&register, &reports, ElectionRules::default()) {
            Election::Winner { winner, candidates, .. } => {
                prop_assert_eq!(&candidates[0].pod, &winner.pod);
                candidates
            }
            Election::Blocked { candidates, why, .. } => {
                prop_assert!(!why.is_empty());
                candidates
            }
        };
        let named: BTreeSet<&str> = candidates.iter().map(|candidate| candidate.pod.as_str()).collect();
        prop_assert_eq!(named.len(), candidates.len());
        prop_assert!(reports.iter().all(|report| named.contains(report.pod.as_str())));
        prop_assert!(register.quorum.voters.iter().all(|voter| named.contains(voter.pod.as_str())));
        prop_assert!(candidates.iter().all(|candidate| !candidate.why.is_empty()));
    }
}

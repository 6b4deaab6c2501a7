//! Beginnings that lie too deep to be searched for: lists of steps, each of which the model must allow.

use super::{
    agent::Deed::{Crash, Follow, Lead, Promote, Release, Seal, Start, Stop},
    operator::Operation::{Claim, Settle, Suspect},
    protocol::Action::{self, Member, Operator, Stream, Transact},
};

const SUSPECT: Action = Operator(Suspect { alone: false });

/// Five pods, W = 2. Term 2 (pod 1) writes `a` on timeline 2 and hears of nobody any more. Term 3 (pod 2) takes the same
/// number and has `b` acknowledged by the pods 3 and 4; pod 1 is still a voter.
pub(crate) const TWO_TIMELINES_OF_ONE_NUMBER: &[Action] = &[
    SUSPECT,
    Member(1, Seal),
    Member(2, Seal),
    Member(3, Seal),
    Operator(Claim { pods: 0b0_1110 }),
    Member(1, Lead),
    Member(1, Promote),
    Transact(1),
    SUSPECT,
    Member(2, Seal),
    Member(3, Seal),
    Member(4, Seal),
    Operator(Claim { pods: 0b1_1100 }),
    Member(2, Lead),
    Member(2, Promote),
    Member(3, Follow),
    Member(4, Follow),
    Stream(3),
    Stream(4),
    Transact(2),
    Stream(3),
    Stream(4),
];

/// The operator records the holder's timeline and commits the voters.
pub(crate) const RECORDED: &[Action] = &[Operator(Settle), Operator(Settle)];

/// Pod 3 is chosen for term 4, and never takes it up.
pub(crate) const A_WINNER_THAT_DIES: &[Action] =
    &[SUSPECT, Member(3, Seal), Member(4, Seal), Operator(Claim { pods: 0b1_1000 })];

/// Three pods, W = 2. Pod 0 came back and followed term 2 (pod 1) with its `a`; term 3 (pod 2) has taken the same number.
pub(crate) const A_FOLLOWER_OF_THE_FAILED_PROMOTION: &[Action] = &[
    SUSPECT,
    Member(1, Seal),
    Operator(Claim { pods: 0b0010 }),
    Member(1, Lead),
    Member(1, Promote),
    Member(0, Stop),
    Member(0, Follow),
    Transact(1),
    Stream(0),
    Stream(0),
    SUSPECT,
    Member(2, Seal),
    Operator(Claim { pods: 0b0100 }),
    Member(2, Lead),
    Member(2, Promote),
];

/// Three pods, W = 1. Pod 0 gets its role again in term 2 because nobody else answered; the receivers of 1 and 2 just go
/// on. `a` is acknowledged by pod 1.
pub(crate) const THE_SAME_POD_AGAIN: &[Action] = &[
    Member(0, Crash),
    Member(0, Release),
    Member(0, Start),
    Operator(Suspect { alone: true }),
    Member(0, Lead),
    Member(0, Promote),
];

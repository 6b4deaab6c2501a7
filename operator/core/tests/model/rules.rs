//! The rules that can be switched off one at a time, and the bounds of a run.

use super::{protocol::Action, state::Budget};

/// A rule of the protocol. Without any one of them the checker has to find a counterexample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A member promises, and follows nobody, before it reports how far it is.
    Seal,
    /// It reports only once its WAL receiver is gone.
    ReceiverWait,
    /// R + W > N.
    Quorum,
    /// A pending set must be proven as well.
    PendingProven,
    /// The voters of earlier terms stay what an election has to prove until the new ones have everything.
    OldVoters,
    /// A copy or a rewound data directory is a new member.
    NewMember,
    /// A new set of voters is committed only once W of them have passed the barrier.
    Barrier,
    /// The synchronous settings are in effect before the promotion.
    StrictSettings,
    /// A started or promoted primary lets no reader in before W voters have what it had (S11).
    Gate,
    /// Of two branches with the same timeline number the one of the lower term is left.
    TermComparison,
    /// The term is on a member's disk before it counts in that term, also where its upstream's pod got the role again and its
    /// receiver just goes on: the receiver's name has the term, and a primary waits for names of its own term.
    TermBeforeWal,
    /// Who followed a lower term is not on the timeline that the primary's term began, whatever its number.
    TermBeforeFollowing,
    /// A register is replaced only by who decided on what it says.
    CompareAndSwap,
}

/// The bounds of one run. Whatever is bounded may happen at any moment that the bound allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Pods; pod 0 starts as primary of term 1, the others are its voters and have everything.
    pub(crate) pods: u8,
    /// W.
    pub(crate) acks: u8,
    /// The last term.
    pub(crate) terms: u8,
    /// Transactions.
    pub(crate) writes: u8,
    /// The rest.
    pub(crate) budget: Budget,
    /// No timeline history reaches the archive: promotions take numbers without knowing of each other.
    pub(crate) lone_timelines: bool,
    /// The steps that lead to where the search begins.
    pub(crate) script: &'static [&'static [Action]],
    /// Pods whose replica is a registered voter at the start, one bit each. The others only stream.
    pub(crate) voters: u16,
}

impl Bounds {
    /// Three pods, W = 1, two terms, one transaction, nothing else.
    pub(crate) const SMALL: Self = Self {
        pods: 3,
        acks: 1,
        terms: 2,
        writes: 1,
        budget: Budget { crashes: 0, recopies: 0, wishes: 0, pauses: 0 },
        lone_timelines: false,
        script: &[],
        voters: 0b11110,
    };
}

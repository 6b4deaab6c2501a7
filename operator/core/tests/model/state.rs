//! What the checker remembers, small and comparable: the register, the members with their disks and processes, the answers
//! to seal requests, a write of an operator that is still on its way, and what clients know.

use std::fmt;

use super::wal::Wal;

/// Pods of the largest cluster.
pub(crate) const PODS: usize = 5;
/// Data directories that a pod may have, one after the other.
pub(crate) const COPIES: u8 = 3;

/// Terms are below this.
pub(crate) const TERMS: usize = 7;

/// A data directory: the pod, plus `PODS` for each copy that was made anew.
pub(crate) type Id = u8;

/// The pod of a data directory.
pub(crate) fn pod_of(id: Id) -> usize {
    usize::from(id) % PODS
}

/// `VoterSet`: one bit for each member.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Set {
    pub(crate) voters: u16,
    pub(crate) acks: u8,
}

impl fmt::Debug for Set {
    /// `W of {members}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.acks, (0..16).filter(|id| self.has(*id)).collect::<Vec<Id>>())
    }
}

impl Set {
    pub(crate) fn has(self, id: Id) -> bool {
        self.voters & 1 << id != 0
    }
}

/// The `Register`, without what only people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reg {
    pub(crate) term: u8,
    pub(crate) seal: u8,
    pub(crate) holder: Id,
    pub(crate) released: bool,
    /// The holder has proven its claim: its boot nonce stands there.
    pub(crate) taken_up: bool,
    pub(crate) timeline: Option<u8>,
    pub(crate) quorum: Set,
    pub(crate) pending: Option<Set>,
    /// Of each term that began by a claim: the winner's term and timeline. Zeros stand for none.
    pub(crate) forks: [(u8, u8); TERMS],
}

impl Reg {
    pub(crate) fn is_sealing(&self) -> bool {
        self.seal > self.term
    }

    pub(crate) fn to_apply(self) -> Set {
        self.pending.unwrap_or(self.quorum)
    }
}

/// PostgreSQL and its agent in a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Run {
    /// The pod does not belong to this cluster.
    #[default]
    Absent,
    /// Crashed or stopped; the disk is there.
    Down,
    /// In recovery. Its receiver takes WAL from whatever runs as primary in the upstream pod.
    Standby { upstream: Option<u8> },
    /// Has proven its claim and will come out of recovery with these synchronous settings, whatever happens elsewhere.
    Promoting { settings: Set },
    /// Takes writes.
    Primary(Primary),
}

/// A running primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Primary {
    /// `synchronous_standby_names` in effect.
    pub(crate) applied: Set,
    /// The position that the applied set has to pass before it is committed.
    pub(crate) barrier: u8,
    /// It has.
    pub(crate) passed: bool,
    /// What it had when it started: readers wait until W voters have it. None once they have.
    pub(crate) gate: Option<u8>,
    /// Transactions that a reader here would see.
    pub(crate) visible: u8,
}

/// A pod's disk and processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub(crate) id: Id,
    pub(crate) wal: Wal,
    /// The highest term followed or led.
    pub(crate) term: u8,
    /// The term in which it came out of recovery.
    pub(crate) promoted: u8,
    /// The promise not to follow a term below this one.
    pub(crate) sealed: u8,
    pub(crate) was_primary: bool,
    pub(crate) run: Run,
}

impl Member {
    pub(crate) fn primary(&self) -> Option<&Primary> {
        match &self.run {
            Run::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    pub(crate) fn upstream(&self) -> Option<u8> {
        match self.run {
            Run::Standby { upstream } => upstream,
            _ => None,
        }
    }

    pub(crate) fn answers(&self) -> bool {
        !matches!(self.run, Run::Absent | Run::Down)
    }
}

/// A `SealReport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Answer {
    pub(crate) id: Id,
    pub(crate) term: u8,
    pub(crate) wal: Wal,
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) register: Reg,
    pub(crate) members: [Member; PODS],
    /// Answers to the seal request in force: whoever asks gets any of them, late or never.
    pub(crate) answers: [Option<Answer>; PODS],
    /// A compare-and-swap that an operator has decided on and not sent yet: over the first, the second.
    pub(crate) paused: Option<(Reg, Reg)>,
    /// W that the user wants.
    pub(crate) desired: u8,
    /// Transactions acknowledged under a promise.
    pub(crate) acked: u8,
    /// Transactions that readers of a primary have seen.
    pub(crate) seen: u8,
    /// Transactions whose clients lost their connection and did not find them at the next primary: reported failed.
    pub(crate) failed: u8,
    /// A commit of an old term became acknowledged after a newer term's seal quorum was reached.
    pub(crate) late: bool,
    /// The number of the next transaction.
    pub(crate) next: u8,
    /// What may still go wrong.
    pub(crate) left: Budget,
}

/// How often something may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    pub(crate) recopies: u8,
    /// Changes of W by the user.
    pub(crate) wishes: u8,
    /// Operators that stop between the decision and the write.
    pub(crate) pauses: u8,
}

impl State {
    /// The member that the register names, if it still exists.
    pub(crate) fn holder(&self) -> Option<&Member> {
        let member = &self.members[pod_of(self.register.holder)];
        (member.id == self.register.holder).then_some(member)
    }

    /// How many of the set's members are fed by this pod, hold so much, and have entered `term` if one is given.
    pub(crate) fn flushed(&self, pod: usize, set: Set, length: u8, term: Option<u8>) -> usize {
        let counts = |m: &&Member| term.is_none_or(|term| m.term == term) && set.has(m.id) && m.wal.len() >= length;
        let fed = |m: &&Member| m.upstream().map(usize::from) == Some(pod) && counts(m);
        self.members.iter().filter(fed).count()
    }
}

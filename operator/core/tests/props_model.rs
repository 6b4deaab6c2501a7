//! A small cluster under random faults, driven by the real decisions: streams, acknowledgements, changes of the voters,
//! re-clones, failovers one after the other, old primaries that go on. Whatever was acknowledged is in every winner.
//!
//! WAL is a list of unique entries: what is lost is seen by itself, whatever the positions say. Promotions take timeline numbers
//! of their own, or, in a run of its own, the next one after the winner's, whoever has taken that before.

use std::collections::BTreeSet;

use pgherd_core::{
    election::{Election, ElectionRules, elect},
    failover::{register_bootstrapped, register_claimed, register_sealed},
    instance::{AppliedQuorum, SealReport},
    lineage::{Fork, register_forked},
    lsn::Lsn,
    quorum::{Membership, Quorums, commit_pending, plan_voters},
    register::{MemberId, Register, Term, Voter, VoterSet},
    timeline::{HistoryEntry, TimelineHistory, TimelineId},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    /// A primary writes.
    Write { primary: usize },
    /// A replica receives up to so many entries from a primary; rewinds first if it must.
    Stream { replica: usize, primary: usize, entries: usize },
    /// The operator plans the voters out of these streaming replicas.
    Plan { streaming: BTreeSet<usize>, acks: u32 },
    /// The holder applies what the register says.
    Apply,
    /// The operator commits a pending set whose barrier has passed.
    Commit,
    /// A replica loses its data directory and is copied anew from the holder.
    Reclone { replica: usize },
    /// The operator records the holder's timeline.
    Observe,
    /// The register is sealed; these members promise now, and everyone who has promised and is among them is counted.
    Seal { promising: BTreeSet<usize> },
    /// So often in a row, and the winner is never promoted: it takes its claim up, or can't even read it.
    Vain { promising: BTreeSet<usize>, times: usize, taken_up: bool },
}

fn action(members: usize) -> impl Strategy<Value = Action> {
    let one = 0..members;
    let some = prop::collection::btree_set(0..members, 0..=members);
    prop_oneof![
        4 => one.clone().prop_map(|primary| Action::Write { primary }),
        8 => (one.clone(), one.clone(), 1_usize..4).prop_map(|(replica, primary, entries)| Action::Stream { replica, primary, entries }),
        2 => (some.clone(), 1_u32..3).prop_map(|(streaming, acks)| Action::Plan { streaming, acks }),
        2 => Just(Action::Apply),
        2 => Just(Action::Commit),
        1 => one.prop_map(|replica| Action::Reclone { replica }),
        1 => Just(Action::Observe),
        3 => some.prop_map(|promising| Action::Seal { promising }),
    ]
}

/// With claims that come to nothing.
fn vain_or_not(members: usize) -> impl Strategy<Value = Action> {
    let some = prop::collection::btree_set(0..members, 0..=members);
    prop_oneof![
        20 => action(members),
        1 => (some, 1_usize..30, any::<bool>())
            .prop_map(|(promising, times, taken_up)| Action::Vain { promising, times, taken_up }),
    ]
}

#[derive(Clone, Debug)]
struct Member {
    id: MemberId,
    pod: String,
    log: Vec<u64>,
    history: TimelineHistory,
    /// The highest term it has followed or led: it follows no lower one any more, whatever WAL it has of it.
    term: Term,
    sealed: Term,
    /// Leads in this term, with these voters applied and this barrier.
    leads: Option<(Term, VoterSet, usize)>,
}

struct Cluster {
    members: Vec<Member>,
    register: Register,
    acknowledged: BTreeSet<u64>,
    next_entry: u64,
    next_copy: u64,
    newest_timeline: u32,
    /// Promotions take the next number after the winner's.
    lone_timelines: bool,
    /// How a claim fills the register; replaced by a wrong way in the negative control.
    claim: fn(&Register, &Member) -> Register,
}

fn claim(register: &Register, winner: &Member) -> Register {
    let fork = Fork { term: register.seal_term, parent_term: winner.term, parent_timeline: winner.history.timeline };
    register_forked(register_claimed(register, &winner.pod, "uid", &winner.id), fork)
}

/// Wrong on purpose: forgets the old voters at once.
fn claim_without_the_old_voters(register: &Register, winner: &Member) -> Register {
    let right = claim(register, winner);
    Register { quorum: right.pending.clone().unwrap_or(right.quorum.clone()), pending: None, ..right }
}

impl Cluster {
    fn new(members: usize, acks: u32, claim: fn(&Register, &Member) -> Register) -> Self {
        let member = |index: usize| Member {
            id: MemberId(format!("m{index}")),
            pod: format!("c-{index}"),
            log: Vec::new(),
            history: TimelineHistory::root(TimelineId(1)),
            term: Term(1),
            sealed: Term(0),
            leads: None,
        };
        let mut members: Vec<Member> = (0..members).map(member).collect();
        let mut register = register_bootstrapped(&Register::default(), "c-0", "uid", acks);
        let holder = register.holder.as_mut().expect("a holder");
        (holder.member, holder.boot_nonce) = (Some(members[0].id.clone()), "n".into());
        members[0].leads = Some((Term(1), register.quorum.clone(), 0));
        Self {
            members,
            register,
            acknowledged: BTreeSet::new(),
            next_entry: 0,
            next_copy: 0,
            newest_timeline: 1,
            lone_timelines: false,
            claim,
        }
    }

    fn holder(&self) -> usize {
        let member = self.register.holder.as_ref().and_then(|holder| holder.member.as_ref());
        self.members.iter().position(|m| Some(&m.id) == member).expect("the holder is never re-cloned")
    }

    fn write(&mut self, primary: usize) {
        if self.members[primary].leads.is_some() {
            self.next_entry += 1;
            self.members[primary].log.push(self.next_entry);
            self.members[primary].term = self.members[primary].leads.as_ref().expect("leads").0;
        }
    }

    fn stream(&mut self, replica: usize, primary: usize, entries: usize) {
        let from = self.members[primary].clone();
        let Some((term, _, _)) = from.leads.clone().filter(|_| replica != primary) else {
            return;
        };
        let to = &mut self.members[replica];
        if term < to.sealed.max(to.term) || to.leads.as_ref().is_some_and(|(led, _, _)| *led >= term) {
            return;
        }
        to.leads = None;
        let common = to.log.iter().zip(&from.log).take_while(|(a, b)| a == b).count();
        to.log.truncate(common);
        to.log.extend(from.log.iter().skip(common).take(entries));
        to.history = truncated(&from.history, to.log.len());
        to.term = term;
        self.acknowledge(primary);
    }

    /// Everything that enough of the primary's voters have flushed is acknowledged.
    fn acknowledge(&mut self, primary: usize) {
        let leader = &self.members[primary];
        let Some((_, set, _)) = leader.leads.as_ref().filter(|(_, set, _)| set.acks > 0) else {
            return;
        };
        for end in 1..=leader.log.len() {
            if self.flushed(set, &leader.log[..end]) >= set.acks as usize {
                self.acknowledged.extend(&leader.log[..end]);
            }
        }
    }

    /// How many of the set's members hold this log.
    fn flushed(&self, set: &VoterSet, log: &[u64]) -> usize {
        let holds = |voter: &&Voter| self.members.iter().any(|m| m.id == voter.member && m.log.starts_with(log));
        set.voters.iter().filter(holds).count()
    }

    fn plan(&mut self, streaming: &BTreeSet<usize>, acks: u32) {
        if self.register.is_sealing() {
            return;
        }
        let holder = self.holder();
        let voter = |m: &Member| Voter { member: m.id.clone(), pod: m.pod.clone() };
        let follows = |index: &&usize| self.members[**index].term == self.register.term && **index != holder;
        let streaming: Vec<Voter> =
            streaming.iter().filter(follows).map(|index| voter(&self.members[*index])).collect();
        let present: Vec<Voter> = self.members.iter().map(voter).collect();
        let membership = Membership { streaming: &streaming, present: &present, removed_pods: &[] };
        if let Some(Quorums { quorum, pending }) = plan_voters(&self.register, &membership, acks) {
            (self.register.quorum, self.register.pending) = (quorum, pending);
        }
    }

    fn apply(&mut self) {
        let (holder, term) = (self.holder(), self.register.term);
        let set = self.register.quorum_to_apply().clone();
        let barrier = self.members[holder].log.len();
        match &mut self.members[holder].leads {
            Some(leads) if leads.0 == term && leads.1 != set => *leads = (term, set, barrier),
            _ => {}
        }
        self.acknowledge(holder);
    }

    fn commit(&mut self) {
        let leader = &self.members[self.holder()];
        let Some((term, set, barrier)) = leader.leads.as_ref().filter(|_| !self.register.is_sealing()) else {
            return;
        };
        let passed = self.flushed(set, &leader.log[..*barrier]) >= set.acks as usize;
        let voters = set.voters.iter().map(|voter| voter.member.clone()).collect();
        let applied = AppliedQuorum { voters, acks: set.acks, barrier_passed: passed && *term == self.register.term };
        if let Some(Quorums { quorum, pending }) = commit_pending(&self.register, &applied) {
            (self.register.quorum, self.register.pending) = (quorum, pending);
        }
    }

    fn reclone(&mut self, replica: usize) {
        let holder = self.holder();
        let source = self.members[holder].clone();
        if replica == holder || source.leads.is_none() {
            return;
        }
        self.next_copy += 1;
        let id = MemberId(format!("{}-copy-{}", source.id, self.next_copy));
        self.members[replica] =
            Member { id, pod: self.members[replica].pod.clone(), leads: None, sealed: Term(0), ..source };
    }

    /// Seals, elects, and on success promotes.
    fn seal(&mut self, promising: &BTreeSet<usize>) -> Result<(), TestCaseError> {
        if let Some(winner) = self.elect_among(promising)? {
            self.promote(winner);
        }
        Ok(())
    }

    fn seal_in_vain(&mut self, promising: &BTreeSet<usize>, taken_up: bool) -> Result<(), TestCaseError> {
        if let Some(winner) = self.elect_among(promising)? {
            self.register = (self.claim)(&self.register, &self.members[winner]);
            if taken_up {
                self.take_up(winner);
            }
        }
        Ok(())
    }

    /// The old holder goes on leading unless it has promised itself.
    fn elect_among(&mut self, promising: &BTreeSet<usize>) -> Result<Option<usize>, TestCaseError> {
        self.register = register_sealed(&self.register);
        let term = self.register.seal_term;
        for index in promising {
            self.members[*index].sealed = term;
            self.members[*index].leads = None;
        }
        let report = |index: &usize| {
            let member = &self.members[*index];
            SealReport {
                member: member.id.clone(),
                pod: member.pod.clone(),
                sealed_term: member.sealed,
                term: member.term,
                history: member.history.clone(),
                received_lsn: Lsn(member.log.len() as u64),
                replayed_lsn: Lsn(member.log.len() as u64),
            }
        };
        let reports: Vec<SealReport> = promising.iter().map(report).collect();
        if let Election::Winner { winner, .. } = elect(&self.register, &reports, ElectionRules::default()) {
            let index = self.members.iter().position(|m| m.id == winner.member).expect("the winner exists");
            let held: BTreeSet<u64> = self.members[index].log.iter().copied().collect();
            let lost: Vec<u64> = self.acknowledged.difference(&held).copied().collect();
            prop_assert!(lost.is_empty(), "{} became primary of term {term} without {lost:?}", winner.pod);
            return Ok(Some(index));
        }
        Ok(None)
    }

    fn take_up(&mut self, index: usize) {
        self.members[index].term = self.register.term;
        self.register.holder.as_mut().expect("a holder").boot_nonce = "n".into();
    }

    fn promote(&mut self, index: usize) {
        self.register = (self.claim)(&self.register, &self.members[index]);
        self.take_up(index);
        let set = self.register.quorum_to_apply().clone();
        let before = if self.lone_timelines { self.members[index].history.timeline.0 } else { self.newest_timeline };
        self.newest_timeline = before + 1;
        let winner = &mut self.members[index];
        let entry = HistoryEntry { timeline: winner.history.timeline, switch_lsn: Lsn(winner.log.len() as u64) };
        winner.history.ancestors.push(entry);
        winner.history.timeline = TimelineId(self.newest_timeline);
        winner.leads = Some((self.register.term, set, winner.log.len()));
    }

    fn step(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match action {
            Action::Write { primary } => self.write(*primary),
            Action::Stream { replica, primary, entries } => self.stream(*replica, *primary, *entries),
            Action::Plan { streaming, acks } => self.plan(streaming, *acks),
            Action::Apply => self.apply(),
            Action::Commit => self.commit(),
            Action::Reclone { replica } => self.reclone(*replica),
            Action::Observe => self.observe(),
            Action::Seal { promising } => return self.seal(promising),
            Action::Vain { promising, times, taken_up } => {
                return (0..*times).try_for_each(|_| self.seal_in_vain(promising, *taken_up));
            }
        }
        Ok(())
    }

    fn observe(&mut self) {
        let holder = &self.members[self.holder()];
        if holder.leads.as_ref().is_some_and(|(term, _, _)| *term == self.register.term) {
            self.register.timeline = Some(holder.history.timeline);
        }
    }
}

/// The history of a member that has received so much: a switch shows once WAL after it has arrived.
fn truncated(history: &TimelineHistory, length: usize) -> TimelineHistory {
    let left = history.ancestors.iter().position(|entry| length as u64 <= entry.switch_lsn.0);
    match left {
        None => history.clone(),
        Some(at) => {
            TimelineHistory { timeline: history.ancestors[at].timeline, ancestors: history.ancestors[..at].to_vec() }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_in_every_later_primary(
        (members, actions) in (2_usize..6).prop_flat_map(|n| (Just(n), prop::collection::vec(action(n), 1..80))),
        acks in 1_u32..3,
    ) {
        let mut cluster = Cluster::new(members, acks, claim);
        for action in &actions {
            cluster.step(action)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// More claims come to nothing than are remembered, between promotions that take the same number.
    #[test]
    fn what_was_acknowledged_outlasts_hundreds_of_claims_that_come_to_nothing(
        (members, actions) in (2_usize..6).prop_flat_map(|n| (Just(n), prop::collection::vec(vain_or_not(n), 1..80))),
        acks in 1_u32..3,
    ) {
        let mut cluster = Cluster { lone_timelines: true, ..Cluster::new(members, acks, claim) };
        for action in &actions {
            cluster.step(action)?;
        }
    }
}

/// Term 2 writes a phantom on timeline 2 and vanishes; term 3 takes the same number, and 3 and 4 have its acknowledged commit.
fn with_a_phantom() -> Result<Cluster, TestCaseError> {
    let mut cluster = Cluster { lone_timelines: true, ..Cluster::new(5, 2, claim) };
    let stream = |replica| Action::Stream { replica, primary: 2, entries: 1 };
    let script = [
        Action::Plan { streaming: BTreeSet::from([1, 2, 3, 4]), acks: 2 },
        Action::Apply,
        Action::Commit,
        Action::Seal { promising: BTreeSet::from([1, 2, 3]) },
        Action::Write { primary: 1 },
        Action::Write { primary: 1 },
        Action::Seal { promising: BTreeSet::from([2, 3, 4]) },
        Action::Write { primary: 2 },
        stream(3),
        stream(4),
    ];
    script.iter().try_for_each(|action| cluster.step(action))?;
    prop_assert_eq!(cluster.acknowledged.len(), 1);
    Ok(cluster)
}

proptest! {
    #[test]
    fn a_phantom_never_wins_however_many_claims_came_to_nothing_since(
        claims in prop::collection::vec((0_usize..8, any::<bool>()), 0..300),
        others in prop::collection::btree_set(2_usize..5, 0..=3),
    ) {
        let mut cluster = with_a_phantom()?;
        for (missing, taken_up) in claims {
            let promising = (2_usize..5).filter(|member| *member != missing).collect();
            cluster.step(&Action::Vain { promising, times: 1, taken_up })?;
        }
        let promising = others.into_iter().chain([1]).collect();
        cluster.step(&Action::Seal { promising })?;
    }
}

/// Two failovers, the second before anyone has caught up with the first: the entry of term 1 is on shop 0 (dead), on
/// 1 (the first winner, dead as well) and on 2 (cut off). 3 and 4 must not elect one of themselves.
fn two_failures_in_succession(claim: fn(&Register, &Member) -> Register) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new(5, 2, claim);
    let all = BTreeSet::from([1, 2, 3, 4]);
    let script = [
        Action::Plan { streaming: all, acks: 2 },
        Action::Apply,
        Action::Commit,
        Action::Write { primary: 0 },
        Action::Stream { replica: 1, primary: 0, entries: 1 },
        Action::Stream { replica: 2, primary: 0, entries: 1 },
        Action::Seal { promising: BTreeSet::from([1, 3, 4]) },
        Action::Seal { promising: BTreeSet::from([3, 4]) },
    ];
    script.iter().try_for_each(|action| cluster.step(action))?;
    prop_assert_eq!(cluster.acknowledged, BTreeSet::from([1]));
    prop_assert!(cluster.register.is_sealing(), "the second failover is blocked");
    Ok(())
}

#[test]
fn a_second_failover_before_anyone_has_caught_up_is_blocked() {
    two_failures_in_succession(claim).expect("nothing is lost");
}

#[test]
fn forgetting_the_old_voters_at_a_promotion_would_lose_a_commit() {
    let error = two_failures_in_succession(claim_without_the_old_voters).expect_err("the rule is needed");
    assert!(error.to_string().contains("without [1]"), "{error}");
}

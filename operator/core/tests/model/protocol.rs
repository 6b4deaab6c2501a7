//! The model: the initial cluster, every step that may come next, and the invariants of the design (section 3).

use stateright::{Model, Property};

use super::{
    agent::Deed,
    decisions::{Question, decide},
    operator::{self, Operation},
    replication,
    rules::{Bounds, Rule},
    state::{Member, PODS, Primary, Reg, Run, State, TERMS, pod_of},
    wal::Wal,
};

/// The protocol within bounds, and without a rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) bounds: Bounds,
    pub(crate) without: Option<Rule>,
}

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A client writes on this pod's server.
    Transact(u8),
    /// This pod's replica receives a record.
    Stream(u8),
    /// A step of this pod's agent.
    Member(u8, Deed),
    /// An operator decides and writes.
    Operator(Operation),
    /// An operator decides, and is slow.
    Pause(Operation),
    /// Its write arrives.
    Resume,
    /// The user wants another W.
    Wish(u8),
}

impl Protocol {
    pub(crate) fn is_off(&self, rule: Rule) -> bool {
        self.without == Some(rule)
    }

    fn resume(&self, state: &mut State) -> Option<()> {
        let (before, after) = state.paused.take()?;
        if state.register == before || self.is_off(Rule::CompareAndSwap) {
            operator::write(state, after);
        }
        Some(())
    }

    fn operate(&self, state: &mut State, operation: Operation) -> Option<()> {
        let next = self.decided(state, operation)?;
        operator::write(state, next);
        Some(())
    }

    fn pause(&self, state: &mut State, operation: Operation) -> Option<()> {
        state.left.pauses = state.left.pauses.checked_sub(1)?;
        state.paused = Some((state.register, self.decided(state, operation)?));
        Some(())
    }

    fn wish(state: &mut State, acks: u8) -> Option<()> {
        state.left.wishes = state.left.wishes.checked_sub(1)?;
        (state.desired != acks).then(|| state.desired = acks)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let quorum = operator::others(self.bounds.voters, self.bounds.pods, self.bounds.acks);
        let forks = [(0, 0); TERMS];
        let register = Reg {
            term: 1,
            seal: 1,
            holder: 0,
            released: false,
            taken_up: true,
            timeline: Some(1),
            quorum,
            pending: None,
            forks,
        };
        let mut members = [Member::default(); PODS];
        for (id, member) in (0_u8..self.bounds.pods).zip(&mut members) {
            let run = Run::Standby { upstream: Some(0) };
            *member = Member { id, term: 1, run, ..Member::default() };
        }
        let primary = Primary { applied: quorum, barrier: 0, passed: true, gate: None, visible: 0 };
        members[0] =
            Member { wal: Wal::default(), promoted: 1, was_primary: true, run: Run::Primary(primary), ..members[0] };
        let start = State {
            register,
            members,
            answers: [None; PODS],
            paused: None,
            desired: self.bounds.acks,
            acked: 0,
            seen: 0,
            failed: 0,
            late: false,
            next: 1,
            left: self.bounds.budget,
        };
        let step = |state: State, action: &Action| match self.next_state(&state, *action) {
            Some(next) => next,
            None => panic!("the model does not allow {action:?} of the script in {state:#?}"),
        };
        vec![self.bounds.script.iter().copied().flatten().fold(start, step)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for pod in 0..self.bounds.pods {
            actions.push(Action::Transact(pod));
            actions.push(Action::Stream(pod));
            actions.extend(Deed::ALL.map(|deed| Action::Member(pod, deed)));
        }
        let mut operations = Vec::new();
        self.operations(state, &mut operations);
        actions.extend(operations.iter().copied().map(Action::Operator));
        if state.left.pauses > 0 && state.paused.is_none() {
            actions.extend(operations.into_iter().map(Action::Pause));
        }
        if state.paused.is_some() {
            actions.push(Action::Resume);
        }
        if state.left.wishes > 0 {
            actions.extend((0..self.bounds.pods).map(Action::Wish));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Transact(pod) => replication::transact(self, &mut state, usize::from(pod)),
            Action::Stream(pod) => replication::stream(&mut state, usize::from(pod)),
            Action::Member(pod, deed) => self.act(&mut state, usize::from(pod), deed),
            Action::Operator(operation) => self.operate(&mut state, operation),
            Action::Pause(operation) => self.pause(&mut state, operation),
            Action::Resume => self.resume(&mut state),
            Action::Wish(acks) => Self::wish(&mut state, acks),
        }?;
        replication::settle(self, &mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(I1, |_, state: &State| missing(state, state.acked) == 0),
            Property::always(I2, |_, state: &State| !state.late),
            Property::always(I4_SEEN, |_, state: &State| missing(state, state.seen) == 0),
            Property::always(I4_FAILED, |_, state: &State| {
                missing(state, state.failed) == state.failed || is_gone(state)
            }),
            Property::sometimes(FAILOVER, |_, state: &State| state.register.term > 1 && serves(state)),
            Property::sometimes(BLOCKED, |_, state: &State| is_blocked(state)),
            Property::sometimes(VOTERS, |_, state: &State| {
                state.register.pending.is_none() && state.register.quorum.voters >> PODS != 0
            }),
            Property::sometimes(REJOIN, |_, state: &State| {
                let pods = u8::try_from(PODS).unwrap_or(0);
                state
                    .members
                    .iter()
                    .any(|member| member.id >= pods && member.wal.len() > 0 && member.upstream().is_some())
            }),
        ]
    }
}

pub(crate) const I1: &str = "I1: an acknowledged commit is on every later primary";
pub(crate) const I2: &str = "I2: nothing is acknowledged in an old term once a newer one's seal quorum was reached";
pub(crate) const I4_SEEN: &str = "I4: what a reader has seen never disappears";
pub(crate) const I4_FAILED: &str = "I4: what was reported failed stays absent";
pub(crate) const FAILOVER: &str = "a failover completes";
pub(crate) const BLOCKED: &str = "with W = 1 of N = 2 a failover is blocked";
pub(crate) const VOTERS: &str = "a change of voters is committed";
pub(crate) const REJOIN: &str = "a member rejoins";

/// The holder's data directory does not exist any more.
fn is_gone(state: &State) -> bool {
    state.holder().is_none()
}

/// Those of the transactions that the member named by the register does not have: it serves, or will.
fn missing(state: &State, transactions: u8) -> u8 {
    state.holder().map_or(0, |holder| transactions & !holder.wal.transactions())
}

/// The register's holder lets readers in.
fn serves(state: &State) -> bool {
    let primary = state.holder().filter(|holder| holder.promoted == state.register.term).and_then(Member::primary);
    primary.is_some_and(|primary| primary.gate.is_none())
}

/// One of two voters has answered, with W = 1, and that is not enough.
fn is_blocked(state: &State) -> bool {
    let register = state.register;
    let quorum = register.quorum;
    let ids: Vec<u8> = state.answers.iter().flatten().map(|answer| answer.id).collect();
    let counted = register.is_sealing() && quorum.acks == 1 && quorum.voters.count_ones() == 2;
    let single = ids.len() == 1 && ids.iter().all(|id| quorum.has(*id) && pod_of(*id) != pod_of(register.holder));
    let question = Question::Sealed { elected_over: register, register, reports: state.answers };
    counted && single && decide(question).is_none()
}

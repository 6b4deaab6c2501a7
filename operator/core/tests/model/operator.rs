//! The operators: any number of them, each without memory. One that is slow holds a single write back for as long as it
//! likes; all others decide and write at once. A crash is a write that never comes.

use super::{
    decisions::{Question, decide},
    protocol::Protocol,
    rules::Rule,
    state::{Id, PODS, Reg, Run, Set, State, pod_of},
};

/// What an operator may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// The Lease seems to have run out. `alone`: nobody but the holder's pod answers this operator.
    Suspect { alone: bool },
    /// The seal reports of these pods have come in.
    Claim { pods: u8 },
    /// Nothing is wrong: record what the holder reports, commit or plan the voters.
    Settle,
}

impl Protocol {
    /// The operations that can be worth trying.
    pub(crate) fn operations(&self, state: &State, operations: &mut Vec<Operation>) {
        if !state.register.is_sealing() {
            operations.push(Operation::Settle);
            if state.register.term < self.bounds.terms {
                operations.push(Operation::Suspect { alone: false });
                operations.push(Operation::Suspect { alone: true });
            }
            return;
        }
        let answered = (0..PODS).filter(|pod| state.answers[*pod].is_some()).fold(0, |mask, pod| mask | 1 << pod);
        operations
            .extend((1..=answered).filter(|pods| pods & !answered == 0).map(|pods: u8| Operation::Claim { pods }));
    }

    /// The register that the operation writes.
    pub(crate) fn decided(&self, state: &State, operation: Operation) -> Option<Reg> {
        match operation {
            Operation::Suspect { alone } => {
                let mut answering: [Option<Id>; PODS] = [None; PODS];
                for (pod, member) in state.members.iter().enumerate() {
                    let is_holder = pod == pod_of(state.register.holder);
                    answering[pod] = (member.answers() && (is_holder || !alone)).then_some(member.id);
                }
                decide(Question::Suspected { register: state.register, answering })
            }
            Operation::Claim { pods } => self.claimed(state, pods),
            Operation::Settle => settled(state),
        }
    }

    fn claimed(&self, state: &State, pods: u8) -> Option<Reg> {
        let mut reports = state.answers;
        for (pod, report) in reports.iter_mut().enumerate() {
            *report = report.filter(|_| pods & 1 << pod != 0);
        }
        let mut register = state.register;
        let answered = reports.iter().flatten().fold(0, |mask, report| mask | 1 << report.id);
        if self.is_off(Rule::TermComparison) {
            reports.iter_mut().flatten().for_each(|report| report.term = 0);
        }
        if self.is_off(Rule::PendingProven) {
            register.pending = None;
        }
        if self.is_off(Rule::Quorum) {
            register.quorum.voters &= answered;
            register.pending.iter_mut().for_each(|pending| pending.voters &= answered);
        }
        let mut next = decide(Question::Sealed { elected_over: register, register: state.register, reports })?;
        if self.is_off(Rule::OldVoters) {
            next.quorum = next.to_apply();
            next.pending = None;
        }
        Some(next)
    }
}

fn settled(state: &State) -> Option<Reg> {
    let register = state.register;
    let holder = state.holder().filter(|holder| holder.term == register.term)?;
    let primary = holder.primary()?;
    let pod = pod_of(holder.id);
    let question = Question::Serving { register, timeline: holder.wal.timeline() };
    if let Some(next) = decide(question) {
        return Some(next);
    }
    if register.pending.is_some() {
        let question = Question::Applied { register, applied: primary.applied, passed: primary.passed };
        if let Some(next) = decide(question) {
            return Some(next);
        }
    }
    let streams = |member: &&super::state::Member| member.upstream().map(usize::from) == Some(pod);
    let mask = |members: &mut dyn Iterator<Item = Id>| members.fold(0_u16, |mask, id| mask | 1 << id);
    let streaming = mask(&mut state.members.iter().filter(streams).map(|member| member.id));
    let present = mask(&mut state.members.iter().filter(|member| member.answers()).map(|member| member.id));
    decide(Question::Members { register, streaming, present, desired: state.desired })
}

/// The set of everybody but one, as the clusters start.
pub(crate) fn others(voters: u16, pods: u8, acks: u8) -> Set {
    Set { voters: voters & ((1 << pods) - 1), acks }
}

/// What changes with the register beside the register itself.
pub(crate) fn write(state: &mut State, next: Reg) {
    if next.seal != state.register.seal || !next.is_sealing() {
        state.answers = [None; PODS];
    }
    state.register = next;
    if next.quorum.acks == 0 {
        // The user has taken the promise back.
        (state.acked, state.seen, state.failed) = (0, 0, 0);
    }
    debug_assert!(state.members.iter().all(|member| member.run != Run::Absent || member.wal.len() == 0));
}

//! What PostgreSQL does by itself: transactions, streaming, acknowledgements, and what clients make of it.

use super::{
    decisions::{Question, decide},
    protocol::Protocol,
    rules::Rule,
    state::{Run, State},
    wal::PROMOTION,
};

/// A client's transaction is written and flushed on a primary, wanted or not, and waits for its acknowledgement.
pub(crate) fn transact(protocol: &Protocol, state: &mut State, pod: usize) -> Option<()> {
    let member = &mut state.members[pod];
    member.primary().filter(|_| state.next <= protocol.bounds.writes && state.next < PROMOTION)?;
    if member.wal.is_full() {
        return None;
    }
    member.wal.push(state.next, member.wal.timeline());
    state.next += 1;
    Some(())
}

/// A receiver takes the next record from whatever runs as primary in its upstream pod. It does not know of terms.
pub(crate) fn stream(state: &mut State, pod: usize) -> Option<()> {
    let upstream = usize::from(state.members[pod].upstream()?);
    let source = state.members[upstream];
    source.primary()?;
    let member = &mut state.members[pod];
    if !member.wal.continues_in(&source.wal) {
        return None;
    }
    member.wal.pull(&source.wal);
    Some(())
}

/// Brings everything up to date that follows at once: the worst order for safety. Whatever may be acknowledged is,
/// whatever may be read is.
pub(crate) fn settle(protocol: &Protocol, state: &mut State) {
    for pod in 0..state.members.len() {
        let (member, register) = (state.members[pod], state.register);
        let Run::Primary(mut primary) = member.run else { continue };
        let (set, acks) = (primary.applied, usize::from(primary.applied.acks));
        let term = (!protocol.is_off(Rule::TermBeforeWal)).then_some(member.promoted);
        let flushed = (0..=member.wal.len()).rev().find(|length| state.flushed(pod, set, *length, term) >= acks);
        let acknowledged = member.wal.prefix(flushed.unwrap_or(0)).transactions() & !primary.visible;
        primary.passed |= state.flushed(pod, set, primary.barrier, term) >= acks;
        primary.gate = primary.gate.filter(|gate| state.flushed(pod, set, *gate, term) < acks);
        primary.visible |= acknowledged;
        let steady = protocol.bounds.budget.wishes == 0;
        if acknowledged != 0 && (steady || (acks > 0 && register.quorum.acks > 0)) {
            state.acked |= acknowledged;
            state.late |= is_over(protocol, state, member.promoted);
        }
        if primary.gate.is_none() && steady {
            state.seen |= primary.visible;
            if register.holder == member.id && register.term == member.promoted {
                let begun = (1_u8 << (state.next - 1)).wrapping_sub(1) << 1;
                state.failed |= begun & !member.wal.transactions();
            }
        }
        state.members[pod].run = Run::Primary(primary);
    }
}

/// A newer term's seal quorum was reached: the answers that exist prove an election.
fn is_over(protocol: &Protocol, state: &State, term: u8) -> bool {
    let register = state.register;
    let promised = |_: &super::state::Answer| !protocol.is_off(Rule::Seal);
    let mut reports = state.answers;
    reports.iter_mut().for_each(|report| *report = report.filter(promised));
    let proven = || decide(Question::Sealed { elected_over: register, register, reports }).is_some();
    register.term > term || (register.is_sealing() && proven())
}

//! The agents: what a member does with its disk and its server, by the register it has just read and its own promises. The
//! rules are those of `operator/agent` (`machine.rs`, `actions/`), which this crate can't reach.

use super::{
    operator,
    protocol::Protocol,
    rules::Rule,
    state::{Answer, COPIES, Id, Member, PODS, Primary, Run, Set, State, pod_of},
    wal::{PROMOTION, Wal},
};

/// One step of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Deed {
    /// The pod dies; the disk stays.
    Crash,
    /// The pod starts again: as primary if it still is the register's, else following nobody.
    Start,
    /// Tells the register that the holder's server is down.
    Release,
    /// A primary that the register no longer names notices it.
    Stop,
    /// Promises, and reports.
    Seal,
    /// The chosen one proves its claim against the register and persists the term.
    Lead,
    /// It comes out of recovery, late or not.
    Promote,
    /// A primary applies the register's voters.
    Apply,
    /// Follows the holder, after whatever rewind or copy that takes.
    Follow,
    /// The disk is lost and filled from an old backup.
    Recopy,
}

impl Deed {
    pub(crate) const ALL: [Self; 10] = [
        Self::Crash,
        Self::Start,
        Self::Release,
        Self::Stop,
        Self::Seal,
        Self::Lead,
        Self::Promote,
        Self::Apply,
        Self::Follow,
        Self::Recopy,
    ];
}

impl Protocol {
    /// Does it, if it can be done now.
    pub(crate) fn act(&self, state: &mut State, pod: usize, deed: Deed) -> Option<()> {
        match deed {
            Deed::Crash => crash(state, pod),
            Deed::Start => self.start(state, pod),
            Deed::Release => release(state, pod),
            Deed::Stop => stop(state, pod),
            Deed::Seal => self.seal(state, pod),
            Deed::Lead => lead(state, pod),
            Deed::Promote => self.promote(state, pod),
            Deed::Apply => self.apply(state, pod),
            Deed::Follow => self.follow(state, pod),
            Deed::Recopy => self.recopy(state, pod),
        }
    }

    fn start(&self, state: &mut State, pod: usize) -> Option<()> {
        let (register, member) = (state.register, &mut state.members[pod]);
        if member.run != Run::Down {
            return None;
        }
        let resumes = holds(state, pod) && state.members[pod].promoted == register.term;
        state.members[pod].run = match resumes {
            true => self.primary(&state.members[pod].wal, register.to_apply()),
            false => Run::Standby { upstream: None },
        };
        Some(())
    }

    fn primary(&self, wal: &Wal, applied: Set) -> Run {
        Run::Primary(Primary {
            applied,
            barrier: wal.len(),
            passed: self.is_off(Rule::Barrier),
            gate: (!self.is_off(Rule::Gate)).then_some(wal.len()),
            visible: wal.transactions(),
        })
    }

    fn seal(&self, state: &mut State, pod: usize) -> Option<()> {
        let register = state.register;
        let member = &mut state.members[pod];
        let refuses = member.sealed > register.seal || member.term >= register.seal;
        if !register.is_sealing() || refuses || matches!(member.run, Run::Absent | Run::Promoting { .. }) {
            return None;
        }
        if !self.is_off(Rule::Seal) {
            member.sealed = register.seal;
            let upstream = member.upstream().filter(|_| self.is_off(Rule::ReceiverWait));
            member.run = Run::Standby { upstream };
        }
        state.answers[pod] = Some(Answer { id: member.id, term: member.term, wal: member.wal });
        Some(())
    }

    fn promote(&self, state: &mut State, pod: usize) -> Option<()> {
        let Run::Promoting { settings } = state.members[pod].run else { return None };
        let newest = state.members.iter().map(|member| member.wal.timeline()).max()?;
        let member = &mut state.members[pod];
        let newest = if self.bounds.lone_timelines { member.wal.timeline() } else { newest };
        if member.wal.is_full() {
            return None;
        }
        member.wal.push(PROMOTION + member.term, newest + 1);
        member.promoted = member.term;
        let settings = if self.is_off(Rule::StrictSettings) { Set::default() } else { settings };
        member.run = self.primary(&member.wal, settings);
        Some(())
    }

    fn apply(&self, state: &mut State, pod: usize) -> Option<()> {
        let wanted = state.register.to_apply();
        let leads = holds(state, pod) && state.members[pod].promoted == state.register.term;
        let member = &mut state.members[pod];
        let Run::Primary(primary) = &mut member.run else { return None };
        if !leads || primary.applied == wanted {
            return None;
        }
        (primary.applied, primary.barrier) = (wanted, member.wal.len());
        primary.passed = self.is_off(Rule::Barrier);
        Some(())
    }

    /// Follows the holder where it takes writes. The upstream is known by its pod alone.
    fn follow(&self, state: &mut State, pod: usize) -> Option<()> {
        let register = state.register;
        let upstream = pod_of(register.holder);
        let (holder, member) = (state.members[upstream], state.members[pod]);
        holder.primary().filter(|_| upstream != pod && !register.is_sealing())?;
        let left = (1..holder.promoted).contains(&member.term) && member.wal.timeline() == holder.wal.timeline();
        let diverged = member.wal.is_diverged(&holder.wal) || (left && !self.is_off(Rule::TermBeforeFollowing));
        let entered = member.term >= register.term;
        let idle = member.upstream().map(usize::from) == Some(upstream) && !diverged && entered;
        let may = matches!(member.run, Run::Down | Run::Standby { .. });
        if !may || idle || member.term > register.term || member.sealed > register.term {
            return None;
        }
        if diverged || (member.was_primary && member.term < register.term) {
            return self.rejoin(state, pod, &holder);
        }
        let member = &mut state.members[pod];
        member.term = register.term;
        member.run = Run::Standby { upstream: u8::try_from(upstream).ok() };
        Some(())
    }

    /// Compares the bytes as well. Where all WAL is the holder's it follows as it is; else pg_rewind or a copy makes it
    /// what the holder is, and a new member.
    fn rejoin(&self, state: &mut State, pod: usize, holder: &Member) -> Option<()> {
        let (term, upstream) = (state.register.term, u8::try_from(pod_of(holder.id)).ok());
        let member = &mut state.members[pod];
        let led_another = member.was_primary && member.wal.timeline() == holder.wal.timeline();
        if holder.wal.starts_with(&member.wal) && !led_another {
            *member = Member { term, was_primary: false, run: Run::Standby { upstream }, ..*member };
            return Some(());
        }
        let sealed = if led_another { 0 } else { member.sealed };
        *member = Member { id: self.renewed(member.id)?, wal: holder.wal, sealed, run: Run::Down, ..Member::default() };
        Some(())
    }

    fn recopy(&self, state: &mut State, pod: usize) -> Option<()> {
        let upstream = pod_of(state.register.holder);
        state.left.recopies = state.left.recopies.checked_sub(1)?;
        state.members[upstream].primary().filter(|_| upstream != pod && !state.register.is_sealing())?;
        let member = &mut state.members[pod];
        if member.run == Run::Absent {
            return None;
        }
        *member = Member { id: self.renewed(member.id)?, run: Run::Down, ..Member::default() };
        Some(())
    }

    fn renewed(&self, id: Id) -> Option<Id> {
        if self.is_off(Rule::NewMember) {
            return Some(id);
        }
        let pods = u8::try_from(PODS).ok()?;
        (id / pods + 1 < COPIES).then_some(id + pods)
    }
}

/// The register names this member, and nothing forbids it to lead.
fn holds(state: &State, pod: usize) -> bool {
    let (register, member) = (&state.register, &state.members[pod]);
    let free = !register.is_sealing() && !register.released && member.sealed <= register.term;
    free && register.holder == member.id
}

fn release(state: &mut State, pod: usize) -> Option<()> {
    let member = &state.members[pod];
    if !holds(state, pod) || member.run != Run::Down || member.term != state.register.term {
        return None;
    }
    let next = super::state::Reg { released: true, ..state.register };
    operator::write(state, next);
    Some(())
}

fn stop(state: &mut State, pod: usize) -> Option<()> {
    let leads = holds(state, pod) && state.members[pod].promoted == state.register.term;
    let member = &mut state.members[pod];
    member.primary().filter(|_| !leads)?;
    member.run = Run::Standby { upstream: None };
    Some(())
}

fn lead(state: &mut State, pod: usize) -> Option<()> {
    let register = state.register;
    let able = holds(state, pod) && state.members[pod].promoted < register.term;
    let member = &mut state.members[pod];
    if !able || !matches!(member.run, Run::Standby { .. }) || member.term > register.term {
        return None;
    }
    (member.term, member.was_primary) = (register.term, true);
    member.run = Run::Promoting { settings: register.to_apply() };
    operator::write(state, super::state::Reg { taken_up: true, ..register });
    Some(())
}

fn crash(state: &mut State, pod: usize) -> Option<()> {
    state.left.crashes = state.left.crashes.checked_sub(1)?;
    state.members[pod].answers().then(|| state.members[pod].run = Run::Down)
}

//! The registers that the steps of a failover write. Pure: each goes by compare-and-swap over the very register that the
//! step was decided on.

use crate::{
    instance::InstanceStatus,
    lineage::{Fork, present_fork, register_forked, remembered},
    quorum::{after_promotion, initial_quorum},
    register::{Handover, Holder, MemberId, Register, RestoreMark, RestoreOrder, Term, VoterSet},
};

/// The register of a new cluster: term 1, held by the pod that makes the first data directory. `acks` is W.
#[must_use]
pub fn register_bootstrapped(register: &Register, pod: &str, pod_uid: &str, acks: u32) -> Register {
    let term = register.seal_term.max(register.term).next();
    Register {
        term,
        seal_term: term,
        holder: Some(holder(pod, pod_uid, None)),
        system_id: register.system_id.clone(),
        quorum: initial_quorum(acks),
        restore: register.restore.clone(),
        ..Register::default()
    }
}

/// The register completed by what the holder reports in its term: its member, the system identifier and the timeline.
/// None when there is nothing to add, or when the status is not the holder's, or contradicts the register.
#[must_use]
pub fn register_observed(register: &Register, status: &InstanceStatus) -> Option<Register> {
    let holder = register.holder.as_ref()?;
    let is_holder = holder.pod == status.pod && holder.pod_uid == status.pod_uid && status.term == register.term;
    if !is_holder || !status.is_primary || register.is_sealing() {
        return None;
    }
    let contradicts = |known: Option<&str>, seen: Option<&str>| matches!((known, seen), (Some(a), Some(b)) if a != b);
    let known_member = holder.member.as_ref().map(|member| member.0.as_str());
    let seen_member = status.member.as_ref().map(|member| member.0.as_str());
    if contradicts(register.system_id.as_deref(), status.system_id.as_deref()) || contradicts(known_member, seen_member)
    {
        return None;
    }
    let mut next = register.clone();
    next.system_id = next.system_id.or_else(|| status.system_id.clone());
    next.timeline = status.history.as_ref().map(|history| history.timeline).or(next.timeline);
    if let Some(next_holder) = &mut next.holder {
        next_holder.member = next_holder.member.take().or_else(|| status.member.clone());
    }
    (next != *register).then_some(next)
}

/// The register with `sealTerm` = term + 1; the same when it is sealing already.
#[must_use]
pub fn register_sealed(register: &Register) -> Register {
    let seal_term = if register.is_sealing() { register.seal_term } else { register.term.next() };
    Register { seal_term, ..register.clone() }
}

/// The register in which the winner holds `sealTerm`. Its timeline is not known before it was promoted; what it was on is
/// added by [`register_forked`].
#[must_use]
pub fn register_claimed(register: &Register, pod: &str, pod_uid: &str, member: &MemberId) -> Register {
    let former = register.holder.as_ref().and_then(|holder| holder.member.as_ref());
    let (quorum, pending) = if former == Some(member) {
        (register.quorum.clone(), register.pending.clone())
    } else {
        let next = after_promotion(register, member);
        (next.quorum, next.pending)
    };
    let holder = holder(pod, pod_uid, Some(member.clone()));
    held(register, register.seal_term, holder, quorum, pending)
}

/// The register in which the holder's member holds the next term.
#[must_use]
pub fn register_regranted(register: &Register, pod: &str, pod_uid: &str) -> Register {
    let member = register.holder.as_ref().and_then(|holder| holder.member.clone());
    let term = register.seal_term.max(register.term).next();
    let regranted =
        held(register, term, holder(pod, pod_uid, member), register.quorum.clone(), register.pending.clone());
    // The note is about the term before.
    let next = Register { failover: None, ..regranted };
    let fork = match register.timeline {
        Some(parent_timeline) => Some(Fork { term, parent_term: register.term, parent_timeline }),
        // A claim that was not taken up is forgotten; the member is still on what it was on then.
        None => present_fork(register).filter(|fork| !next.forks.contains(fork)).map(|fork| Fork { term, ..fork }),
    };
    match fork {
        Some(fork) => register_forked(next, fork),
        None => next,
    }
}

/// The register in which somebody holds `sealTerm` by hand, without the proof that nothing acknowledged is missing. The
/// old voters' promise ends with it: whoever acknowledged what is missing is not counted in any later election, and
/// commits wait for voters that join anew.
#[must_use]
pub fn register_forced(register: &Register, pod: &str, pod_uid: &str, member: &MemberId) -> Register {
    let acks = register.strictest_acks();
    let holder = holder(pod, pod_uid, Some(member.clone()));
    held(register, register.seal_term, holder, initial_quorum(acks), None)
}

/// The register in which the holder is asked to stop, because what it holds is to be replaced as `order` says. None when it
/// can't be asked now.
#[must_use]
pub fn register_restore_ordered(register: &Register, id: &str, order: &RestoreOrder) -> Option<Register> {
    let holder = register.holder.as_ref()?.pod.clone();
    let next = register_handed_over(register, Some(&holder), &format!("restore {id}"))?;
    Some(Register { restore: Some(mark(id, order, None)), ..next })
}

/// The register in which a pod holds the next term in order to restore it. No data directory of before counts any more, so
/// nobody is a voter.
#[must_use]
pub fn register_restoring(register: &Register, id: &str, order: &RestoreOrder, pod: &str, pod_uid: &str) -> Register {
    let term = register.seal_term.max(register.term).next();
    let quorum = initial_quorum(register.strictest_acks());
    let next = held(register, term, holder(pod, pod_uid, None), quorum, None);
    let next = Register { failover: None, restore: Some(mark(id, order, Some(term))), ..next };
    // The branch that is left may be of a higher number than the one that is followed; the new timeline is above both.
    match register.timeline.max(Some(order.timeline)) {
        Some(parent_timeline) => register_forked(next, Fork { term, parent_term: register.term, parent_timeline }),
        None => next,
    }
}

fn mark(id: &str, order: &RestoreOrder, term: Option<Term>) -> RestoreMark {
    RestoreMark { id: id.to_owned(), order: Some(RestoreOrder { term, ..order.clone() }) }
}

/// The register in which the holder is asked to stop and release. None when it can't be asked now.
#[must_use]
pub fn register_handed_over(register: &Register, target: Option<&str>, reason: &str) -> Option<Register> {
    let busy = register.is_sealing() || register.released || register.handover.is_some() || register.holder.is_none();
    let handover = Handover { target: target.map(str::to_owned), reason: reason.to_owned() };
    (!busy).then(|| Register { handover: Some(handover), ..register.clone() })
}

/// The register in which the holder goes on after all. None when it has released already, or was not asked.
#[must_use]
pub fn register_handover_withdrawn(register: &Register) -> Option<Register> {
    let open = register.handover.is_some() && !register.released && !register.is_sealing();
    open.then(|| Register { handover: None, ..register.clone() })
}

fn holder(pod: &str, pod_uid: &str, member: Option<MemberId>) -> Holder {
    Holder { pod: pod.to_owned(), pod_uid: pod_uid.to_owned(), boot_nonce: String::new(), address: None, member }
}

fn held(register: &Register, term: Term, holder: Holder, quorum: VoterSet, pending: Option<VoterSet>) -> Register {
    Register {
        term,
        seal_term: term,
        holder: Some(holder),
        released: false,
        timeline: None,
        system_id: register.system_id.clone(),
        quorum,
        pending,
        forks: remembered(register),
        handover: None,
        failover: register.failover.clone(),
        restore: register.restore.clone(),
    }
}

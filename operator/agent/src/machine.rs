//! The next local step, as a pure function of the register, the data directory and the server process. It is asked again
//! after every step and every change, so it keeps no memory; it neither reads nor writes anything itself.
//!
//! The order of the rules is the safety argument: first what forbids being primary, then what makes it so, then following.

use pgherd_core::register::{Holder, Register, RestoreOrder, Term};

use crate::local_state::LocalState;

/// The data directory as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataView {
    /// There is none.
    Absent,
    /// It is being filled, or was when the last agent stopped: it must not be started.
    Partial,
    /// Complete, ours, and of this database system.
    Ready {
        /// What it knows of itself.
        local: LocalState,
        /// Its database system identifier.
        system_id: String,
    },
    /// There is something that this agent did not make.
    Foreign(String),
}

/// The server process as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresView {
    /// It was not started, or was stopped on purpose.
    Stopped,
    /// It ended without being told to.
    Died,
    /// Started as a primary or, when resuming, about to become one at the end of its crash recovery.
    Primary,
    /// Started as a standby.
    Standby {
        /// It answers queries.
        ready: bool,
        /// The pod that its configuration follows; none for a standby that waits.
        upstream: Option<String>,
    },
}

/// Everything that the next step depends on.
#[derive(Clone, Copy, Debug)]
pub struct LocalInput<'a> {
    /// This pod.
    pub pod: &'a str,
    /// Its UID.
    pub pod_uid: &'a str,
    /// The register as last read.
    pub register: &'a Register,
    /// The data directory.
    pub data: &'a DataView,
    /// The server.
    pub postgres: &'a PostgresView,
    /// The number of instances asked for.
    pub instances: u32,
    /// It was found that this standby can't follow the holder: the timelines part.
    pub diverged: bool,
}

/// The next local step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAction {
    /// Nothing to do until something changes; for people, why.
    Wait(String),
    /// Nothing can be done; for people, why.
    Fail(String),
    /// Stop the server at once: it must not take another write.
    StopNow(String),
    /// Make the cluster's first data directory.
    Bootstrap,
    /// Move the data directory aside and restore a backup to the target that the register names.
    Restore(RestoreOrder),
    /// Write `released` into the register: this holder can't serve in this term.
    Release(String),
    /// Checkpoint while serving, stop cleanly so that every replica has everything, then release.
    HandOver(String),
    /// Start as the primary of the term that this data directory was already promoted in.
    StartPrimary,
    /// Start as a standby that follows `upstream`, or waits.
    StartStandby {
        /// Whom to follow.
        upstream: Option<String>,
    },
    /// Follow somebody else, or (None) nobody, without a restart.
    SetUpstream {
        /// Whom to follow.
        upstream: Option<String>,
    },
    /// Fill the data directory from a backup or from an instance, to follow `upstream`.
    BuildReplica {
        /// The holder.
        upstream: String,
    },
    /// Make a data directory with a branch of its own follow `upstream` again.
    Rejoin {
        /// The holder.
        upstream: String,
    },
    /// Promote this standby in the register's term.
    Promote,
    /// Serve as primary: keep the settings and the renewals going.
    KeepPrimary,
    /// Stay a standby that follows the holder.
    KeepReplica {
        /// The holder.
        upstream: String,
    },
    /// Persist the promise of the register's seal term and cut the replication.
    Seal,
}

/// Decides the next step.
#[must_use]
pub fn decide_local(input: &LocalInput<'_>) -> LocalAction {
    if let DataView::Foreign(what) = input.data {
        return LocalAction::Fail(what.clone());
    }
    if let DataView::Ready { local, system_id } = input.data {
        if let Some(expected) = input.register.system_id.as_ref().filter(|expected| *expected != system_id) {
            let text =
                format!("the data directory belongs to the database system {system_id}, the cluster is {expected}");
            return stop_first(input, LocalAction::Fail(text));
        }
        if local.term > input.register.term {
            let text = format!(
                "the register is at term {}, but this data directory was part of term {}",
                input.register.term, local.term
            );
            return stop_first(input, LocalAction::Fail(text));
        }
    }
    let sealed_above = promised(input.data).is_some_and(|promise| promise > input.register.term.0);
    if input.register.is_sealing() || sealed_above {
        return decide_sealed(input);
    }
    match &input.register.holder {
        None => LocalAction::Wait("the cluster has no primary yet".to_owned()),
        Some(holder) if holder.pod == input.pod && holder.pod_uid == input.pod_uid => decide_holder(input, holder),
        Some(holder) if holder.pod == input.pod => {
            decide_waiting(input, "another pod of this name holds the primary role")
        }
        Some(holder) => decide_follower(input, holder),
    }
}

fn promised(data: &DataView) -> Option<u64> {
    match data {
        DataView::Ready { local, .. } => Some(local.sealed_term.0),
        _ => None,
    }
}

/// A running primary stops before anything else is said.
fn stop_first(input: &LocalInput<'_>, otherwise: LocalAction) -> LocalAction {
    match (input.postgres, &otherwise) {
        (PostgresView::Primary, LocalAction::Fail(why) | LocalAction::Wait(why)) => LocalAction::StopNow(why.clone()),
        _ => otherwise,
    }
}

/// A failover has begun, or this data directory promised not to follow the register's term: follow nobody.
fn decide_sealed(input: &LocalInput<'_>) -> LocalAction {
    let DataView::Ready { local, .. } = input.data else {
        return LocalAction::Wait("a failover is under way".to_owned());
    };
    match input.postgres {
        PostgresView::Primary => LocalAction::StopNow("a failover has begun".to_owned()),
        _ if local.sealed_term < input.register.seal_term => LocalAction::Seal,
        PostgresView::Standby { upstream: Some(_), .. } => LocalAction::SetUpstream { upstream: None },
        PostgresView::Standby { upstream: None, .. } => {
            LocalAction::Wait("sealed: waiting for the decision".to_owned())
        }
        PostgresView::Stopped | PostgresView::Died => LocalAction::StartStandby { upstream: None },
    }
}

/// A data directory that may be asked for (to be sealed, or granted the role again) but follows nobody now.
fn decide_waiting(input: &LocalInput<'_>, why: &str) -> LocalAction {
    match (input.data, input.postgres) {
        (_, PostgresView::Primary) => LocalAction::StopNow(why.to_owned()),
        (_, PostgresView::Standby { upstream: Some(_), .. }) => LocalAction::SetUpstream { upstream: None },
        (DataView::Ready { .. }, PostgresView::Stopped | PostgresView::Died) => {
            LocalAction::StartStandby { upstream: None }
        }
        _ => LocalAction::Wait(why.to_owned()),
    }
}

/// The register says that this pod is primary.
fn decide_holder(input: &LocalInput<'_>, holder: &Holder) -> LocalAction {
    let register = input.register;
    if let Some(order) = register.restore_of_term().filter(|_| !has_led(input.data, register.term)) {
        return match input.postgres {
            PostgresView::Primary => LocalAction::StopNow("what it holds is replaced by a restore".to_owned()),
            _ if register.released => {
                LocalAction::Wait("this pod gave the role back before it was restored".to_owned())
            }
            _ => LocalAction::Restore(order.clone()),
        };
    }
    let DataView::Ready { local, .. } = input.data else {
        return match (&register.system_id, register.released) {
            // Never initialise twice: the data of this cluster is somewhere else, or lost.
            (Some(_), false) => {
                LocalAction::Release("this pod holds the primary role, but its data directory is gone".to_owned())
            }
            (Some(_), true) => {
                LocalAction::Fail("this pod holds the primary role, but its data directory is gone".to_owned())
            }
            (None, _) => LocalAction::Bootstrap,
        };
    };
    if holder.member.as_ref().is_some_and(|member| *member != local.member) {
        let text = "the data directory is not the one that was chosen as primary";
        return if register.released {
            LocalAction::Fail(text.to_owned())
        } else {
            stop_first(input, LocalAction::Release(text.to_owned()))
        };
    }
    if register.released {
        return decide_waiting(input, "this primary gave its role back");
    }
    if local.term < register.term || local.promoted_term < register.term {
        return match input.postgres {
            // It led an earlier term and still runs: it must come back through recovery, onto a timeline of its own.
            PostgresView::Primary => LocalAction::StopNow("the primary role was granted anew".to_owned()),
            PostgresView::Standby { ready: true, .. } => LocalAction::Promote,
            PostgresView::Standby { ready: false, .. } => LocalAction::Wait("starting, to be promoted".to_owned()),
            PostgresView::Stopped | PostgresView::Died => LocalAction::StartStandby { upstream: None },
        };
    }
    // Alone there is nobody to hand over to, but it may have to stop for a restore.
    let may_stop = input.instances > 1 || register.awaits_restore();
    if let Some(handover) = register.handover.as_ref().filter(|_| may_stop) {
        return match input.postgres {
            PostgresView::Primary => LocalAction::HandOver(handover.reason.clone()),
            // It was stopped for this, or died meanwhile: it does not come back in this term.
            PostgresView::Stopped | PostgresView::Died => LocalAction::Release(handover.reason.clone()),
            PostgresView::Standby { .. } => LocalAction::StopNow(handover.reason.clone()),
        };
    }
    match input.postgres {
        PostgresView::Primary => LocalAction::KeepPrimary,
        PostgresView::Stopped => LocalAction::StartPrimary,
        PostgresView::Died if input.instances > 1 => LocalAction::Release("PostgreSQL died".to_owned()),
        PostgresView::Died => LocalAction::StartPrimary,
        PostgresView::Standby { .. } => {
            LocalAction::StopNow("this data directory is the primary's, but runs as a standby".to_owned())
        }
    }
}

/// The data directory has come out of recovery in this term.
fn has_led(data: &DataView, term: Term) -> bool {
    matches!(data, DataView::Ready { local, .. } if local.promoted_term >= term)
}

/// Another pod is primary.
fn decide_follower(input: &LocalInput<'_>, holder: &Holder) -> LocalAction {
    let upstream = holder.pod.clone();
    if *input.postgres == PostgresView::Primary {
        return LocalAction::StopNow(format!("{upstream} is primary of term {}", input.register.term));
    }
    let DataView::Ready { local, .. } = input.data else {
        return match input.register.system_id {
            Some(_) => LocalAction::BuildReplica { upstream },
            None => LocalAction::Wait(format!("{upstream} makes the first data directory")),
        };
    };
    if input.diverged || (local.was_primary && local.term < input.register.term) {
        return LocalAction::Rejoin { upstream };
    }
    // The same pod may hold a new term: its WAL must not count before that term is on disk here.
    let entered = local.term >= input.register.term;
    match input.postgres {
        PostgresView::Standby { upstream: Some(followed), .. } if *followed == upstream && entered => {
            LocalAction::KeepReplica { upstream }
        }
        PostgresView::Standby { .. } => LocalAction::SetUpstream { upstream: Some(upstream) },
        _ => LocalAction::StartStandby { upstream: Some(upstream) },
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

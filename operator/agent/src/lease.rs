//! Holding the register: reading it, renewing it while PostgreSQL provably works, giving it back. A renewal that succeeds
//! moves the fencer's deadline; nothing else does. Who is primary is never decided here.

use std::{sync::Arc, time::Duration};

use pgherd_core::{
    lsn::Lsn,
    register::{LeaseView, Register, Term},
};
use tokio::time::{sleep, timeout};

use crate::{agent::Agent, clock::Boottime, fencer::Heartbeat, register_store::RegisterError};

/// The register is read at least this often, whatever the watch says.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// PostgreSQL and the disk must have proved themselves within this time for a renewal.
const PROOF_MAX_AGE: Duration = Duration::from_secs(5);
/// Tries of a write that somebody else's write got in the way of.
const ATTEMPTS: usize = 4;

/// The register as it was seen, and when the request was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was read.
    pub lease: LeaseView,
    /// Just before it was asked for.
    pub asked_at: Boottime,
}

/// The term that this agent leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The term.
    pub term: Term,
    /// Until then PostgreSQL need not answer: it starts or stops. The disk must work all the same.
    pub excused_until: Boottime,
}

/// Why a renewal or a release did not happen.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The register names somebody else, another term, or a failover has begun.
    #[error("the register no longer names this pod as primary of term {0}")]
    Lost(Term),
    /// The register could not be read or written.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The fencer could not be told: without it nothing may run as primary.
    #[error("the fencer can't be reached")]
    Fencer(#[source] std::io::Error),
}

/// Reads the register and publishes what is there.
///
/// # Errors
/// [`RegisterError`]; what was seen before stays published.
pub async fn refresh(agent: &Agent) -> Result<Seen, RegisterError> {
    let asked_at = Boottime::now();
    let lease = agent.store.read().await?;
    let seen = Seen { lease, asked_at };
    publish(agent, &seen);
    Ok(seen)
}

/// An answer to an older question never replaces one to a newer.
fn publish(agent: &Agent, seen: &Seen) {
    agent.register.send_if_modified(|current| {
        let newer = current.as_ref().is_none_or(|known| known.asked_at <= seen.asked_at);
        let changed = newer && current.as_ref().is_none_or(|known| known.lease.register != seen.lease.register);
        if newer {
            *current = Some(seen.clone());
        }
        changed
    });
}

/// Keeps the published register current; never ends.
pub async fn watch_register(agent: Arc<Agent>) {
    loop {
        match refresh(&agent).await {
            Ok(_) => agent.set_register_error(None),
            Err(error) => {
                tracing::warn!(error = %error, "the register can't be read; the last one stands");
                agent.set_register_error(Some(error.to_string()));
            }
        }
        let _ = timeout(POLL_EVERY, agent.store.changed()).await;
    }
}

/// True while the register says that this pod leads `term` and may go on.
#[must_use]
pub fn still_holds(agent: &Agent, register: &Register, term: Term) -> bool {
    let mine = register
        .holder
        .as_ref()
        .is_some_and(|holder| holder.pod == agent.identity.pod && holder.pod_uid == agent.identity.pod_uid);
    mine && register.term == term && !register.is_sealing() && !register.released
}

/// One renewal: a compare-and-swap that also writes this agent's boot nonce, then the new deadline to the fencer, counted
/// from before the request was sent.
///
/// # Errors
/// [`LeaseError`].
pub async fn renew(agent: &Agent, term: Term) -> Result<(), LeaseError> {
    let known = agent.register.borrow().clone();
    let mut seen = match known {
        Some(seen) => seen,
        None => refresh(agent).await?,
    };
    for _ in 0..ATTEMPTS {
        if !still_holds(agent, &seen.lease.register, term) {
            return Err(LeaseError::Lost(term));
        }
        let mut register = seen.lease.register.clone();
        if let Some(holder) = register.holder.as_mut() {
            holder.boot_nonce.clone_from(&agent.identity.boot_nonce);
        }
        let asked_at = Boottime::now();
        match agent.store.replace(seen.lease.version.clone(), register, agent.flushed_lsn()).await {
            Ok(lease) => {
                publish(agent, &Seen { lease, asked_at });
                return arm(agent, asked_at);
            }
            Err(RegisterError::Conflict) => seen = refresh(agent).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(RegisterError::Conflict.into())
}

fn arm(agent: &Agent, from: Boottime) -> Result<(), LeaseError> {
    let fence_ms = agent.config().timings.fence_ms;
    agent.fencer.send(Heartbeat::Arm(from.plus_millis(fence_ms))).map_err(LeaseError::Fencer)
}

/// Renews while there is a tenure; never ends.
pub async fn keep_renewing(agent: Arc<Agent>) {
    let mut tenures = agent.tenure.subscribe();
    loop {
        let tenure = *tenures.borrow_and_update();
        let Some(tenure) = tenure else {
            if tenures.changed().await.is_err() {
                return;
            }
            continue;
        };
        let pause = renew_if_well(&agent, tenure).await;
        tokio::select! {
            () = sleep(pause) => {}
            _ = tenures.changed() => {}
        }
    }
}

/// Renews if PostgreSQL and the disk proved themselves; returns the pause before the next try.
async fn renew_if_well(agent: &Agent, tenure: Tenure) -> Duration {
    let every = Duration::from_millis(agent.config().timings.renew_ms);
    if let Err(why) = check_health(agent, tenure) {
        tracing::warn!(why, "the Lease is not renewed");
        return Duration::from_millis(250);
    }
    match renew(agent, tenure.term).await {
        Ok(()) => every,
        Err(LeaseError::Lost(_)) => {
            agent.wake.notify_one();
            every
        }
        Err(LeaseError::Register(error @ (RegisterError::Unreachable(_) | RegisterError::Conflict))) => {
            if matches!(error, RegisterError::Unreachable(_)) && is_alone(agent) {
                // Nobody else has this cluster's data, so nobody can be made primary: an outage of the API server is
                // no reason to stop the only instance.
                let _ = arm(agent, Boottime::now());
            }
            tracing::warn!(error = %error, "the Lease could not be renewed");
            Duration::from_millis(500)
        }
        Err(error) => {
            tracing::error!(error = %error, "the Lease could not be renewed");
            Duration::from_millis(500)
        }
    }
}

fn check_health(agent: &Agent, tenure: Tenure) -> Result<(), &'static str> {
    let now = Boottime::now();
    if now.since(agent.disk_proved_at()) > PROOF_MAX_AGE {
        return Err("the disk did not take a write");
    }
    let answered = agent.sample().is_some_and(|sample| now.since(sample.at) <= PROOF_MAX_AGE);
    if answered || now < tenure.excused_until { Ok(()) } else { Err("PostgreSQL did not answer a query") }
}

/// One instance wanted, no voter registered, and no slot: a slot is made before the first byte of a replica is copied.
fn is_alone(agent: &Agent) -> bool {
    let seen = agent.register.borrow().clone();
    let voters = seen.is_none_or(|seen| {
        !seen.lease.register.quorum_to_apply().voters.is_empty() || !seen.lease.register.quorum.voters.is_empty()
    });
    agent.config().instances == 1 && !voters && agent.sample().is_some_and(|sample| sample.slots.is_empty())
}

/// Writes `released`, if the register still names this pod in this term. PostgreSQL must be down.
///
/// # Errors
/// [`LeaseError`]; the Lease then runs out by itself.
pub async fn release(agent: &Agent, term: Term) -> Result<(), LeaseError> {
    release_at(agent, term, None).await
}

/// [`release`] with the position at which the WAL ended, where that is known.
///
/// # Errors
/// [`LeaseError`].
pub async fn release_at(agent: &Agent, term: Term, end: Option<Lsn>) -> Result<(), LeaseError> {
    // What the last renewal left is current as a rule: the first try needs no read.
    let mut known = agent.register.borrow().clone().filter(|seen| still_holds(agent, &seen.lease.register, term));
    for _ in 0..=ATTEMPTS {
        let seen = match known.take() {
            Some(seen) => seen,
            None => refresh(agent).await?,
        };
        if !still_holds(agent, &seen.lease.register, term) {
            return Ok(());
        }
        let register = Register { released: true, ..seen.lease.register };
        let asked_at = Boottime::now();
        match agent.store.replace(seen.lease.version, register, end).await {
            Ok(lease) => {
                publish(agent, &Seen { lease, asked_at });
                return Ok(());
            }
            Err(RegisterError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RegisterError::Conflict.into())
}

//! Holding the register: reading it, renewing it while PostgreSQL provably works, giving it back. A renewal that succeeds
//! moves the fencer's deadline, and so do the promises of enough peers while the API server is away; nothing else does.
//! Who is primary is never decided here.

use std::{sync::Arc, time::Duration};

use pgherd_core::{
    lsn::Lsn,
    register::{LeaseView, Position, Register, Term},
};
use tokio::time::{sleep, timeout};

use crate::{
    agent::Agent,
    clock::Boottime,
    failsafe::{ask_peers, note_addresses},
    fencer::Heartbeat,
    register_store::RegisterError,
};

/// The register is read at least this often, whatever the watch says.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// PostgreSQL and the disk must have proved themselves within this time for a renewal.
const PROOF_MAX_AGE: Duration = Duration::from_secs(5);
/// A renewal that failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);
/// An API server that has not answered for this long may be away: the peers are asked at the same time.
const API_PATIENCE: Duration = Duration::from_secs(1);
/// The peers' addresses are looked up this often, for when DNS does not work.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);
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
    /// The volume takes no writes: a server could not run on it, and each try to start one would keep others from being chosen.
    #[error("the volume did not take a write within the last {} s: the Lease is not renewed", PROOF_MAX_AGE.as_secs())]
    Disk,
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

/// One renewal before a server is started or promoted, then the new deadline to the fencer, counted from before the request was sent.
///
/// # Errors
/// [`LeaseError`].
pub async fn renew(agent: &Agent, term: Term) -> Result<(), LeaseError> {
    if !takes_writes(agent) {
        return Err(LeaseError::Disk);
    }
    let from = write_renewal(agent, term).await?;
    agent.fencer.send(Heartbeat::Arm(deadline(agent, from))).map_err(LeaseError::Fencer)
}

/// A compare-and-swap that also writes this agent's boot nonce and address; returns the time before it was sent.
async fn write_renewal(agent: &Agent, term: Term) -> Result<Boottime, LeaseError> {
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
            holder.address = agent.identity.address.or(holder.address);
        }
        let asked_at = Boottime::now();
        match agent.store.replace(seen.lease.version.clone(), register, agent.position()).await {
            Ok(lease) => {
                publish(agent, &Seen { lease, asked_at });
                return Ok(asked_at);
            }
            Err(RegisterError::Conflict) => seen = refresh(agent).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(RegisterError::Conflict.into())
}

fn deadline(agent: &Agent, from: Boottime) -> Boottime {
    from.plus_millis(agent.config().timings.fence_ms)
}

/// Tells the fencer of a new deadline if the term is still led: an answer that comes after the end of a tenure must not have the
/// fencer kill what runs in its place.
fn arm_while_led(agent: &Agent, term: Term, from: Boottime) -> Result<(), LeaseError> {
    agent.arm_while_led(term, deadline(agent, from)).map_err(LeaseError::Fencer)
}

/// Renews while there is a tenure; never ends.
pub async fn keep_renewing(agent: Arc<Agent>) {
    let mut tenures = agent.tenure.subscribe();
    let (mut vouched_at, mut looked_up_at) = (None, Boottime(0));
    loop {
        let tenure = *tenures.borrow_and_update();
        let Some(tenure) = tenure else {
            vouched_at = None;
            agent.set_going_on(None);
            if tenures.changed().await.is_err() {
                return;
            }
            continue;
        };
        let pause = renew_if_well(&agent, tenure, &mut vouched_at).await;
        if vouched_at.is_none() && Boottime::now().since(looked_up_at) > LOOK_UP_EVERY {
            looked_up_at = Boottime::now();
            drop(tokio::spawn(note_addresses(Arc::clone(&agent))));
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = tenures.changed() => {}
        }
    }
}

/// Renews if PostgreSQL and the disk proved themselves; returns the pause before the next try. `vouched_at` is when the
/// peers were last asked with success since the last renewal.
async fn renew_if_well(agent: &Agent, tenure: Tenure, vouched_at: &mut Option<Boottime>) -> Duration {
    let every = Duration::from_millis(agent.config().timings.renew_ms);
    if let Err(why) = check_health(agent, tenure) {
        tracing::warn!(why, "the Lease is not renewed");
        return Duration::from_millis(250);
    }
    let started = Boottime::now();
    match renew_or_ask(agent, tenure, vouched_at).await {
        Ok(()) => {
            if vouched_at.take().is_some() {
                tracing::info!("the Lease is renewed again");
            }
            agent.set_going_on(None);
            // Where the API server is slow, the next request is sent at once.
            every.saturating_sub(Boottime::now().since(started))
        }
        Err(LeaseError::Lost(_)) => {
            agent.set_going_on(None);
            agent.wake.notify_one();
            every
        }
        Err(error) => {
            tracing::warn!(error = %error, "the Lease could not be renewed");
            RETRY
        }
    }
}

/// One renewal. When it fails because the API server can't be reached, or takes its time, the peers are asked to vouch;
/// with a slow API server both go on at once. Only an outage counts: an answer that refuses is none.
async fn renew_or_ask(agent: &Agent, tenure: Tenure, vouched_at: &mut Option<Boottime>) -> Result<(), LeaseError> {
    let bound = renewal_timeout(agent.config().timings.fence_ms);
    let renewal = async {
        let late = || LeaseError::Register(RegisterError::Unreachable("no answer in time".to_owned()));
        timeout(bound, renew_while_led(agent, tenure.term)).await.unwrap_or_else(|_| Err(late()))
    };
    let mut renewal = std::pin::pin!(renewal);
    match timeout(API_PATIENCE.min(bound), &mut renewal).await {
        Ok(outcome) => {
            if matches!(outcome, Err(LeaseError::Register(RegisterError::Unreachable(_)))) {
                go_on_by_vouches(agent, tenure, vouched_at).await;
            }
            outcome
        }
        Err(_) => tokio::join!(renewal, go_on_by_vouches(agent, tenure, vouched_at)).0,
    }
}

async fn renew_while_led(agent: &Agent, term: Term) -> Result<(), LeaseError> {
    let from = write_renewal(agent, term).await?;
    arm_while_led(agent, term, from)
}

/// Two renewals in a row that take this long still fit into the fencing time.
fn renewal_timeout(fence_ms: u64) -> Duration {
    Duration::from_millis((fence_ms / 2).saturating_sub(500).max(500))
}

/// Lets the fencer wait for longer if enough peers promise not to seal against this term. What is known of the register
/// must still name this pod, and PostgreSQL and the disk must have proved themselves, as for a renewal.
async fn go_on_by_vouches(agent: &Agent, tenure: Tenure, vouched_at: &mut Option<Boottime>) {
    let every = Duration::from_millis(agent.config().timings.renew_ms);
    if vouched_at.is_some_and(|at| Boottime::now().since(at) < every) {
        return;
    }
    let known = |agent: &Agent| agent.register.borrow().as_ref().map(|seen| seen.lease.register.clone());
    let Some(register) = known(agent).filter(|register| still_holds(agent, register, tenure.term)) else { return };
    let (asked_at, pods) = match ask_peers(agent, &register, tenure.term).await {
        Ok(promised) => promised,
        Err(error) => {
            tracing::warn!(error = %error, "the peers do not vouch for this primary");
            agent.set_going_on(Some(format!("the Lease can't be renewed, and the peers do not vouch: {error}")));
            return;
        }
    };
    let still = known(agent).is_some_and(|register| still_holds(agent, &register, tenure.term));
    if !still || agent.led_term() != Some(tenure.term) || check_health(agent, tenure).is_err() {
        return;
    }
    if let Err(error) = arm_while_led(agent, tenure.term, asked_at) {
        tracing::error!(error = %error, "the fencer can't be told that the peers vouch");
        return;
    }
    if vouched_at.replace(asked_at).is_none() {
        tracing::warn!(by = ?pods, "the API server can't be reached; the peers vouch for this primary");
    }
    // Not who: whoever answers first does, and the status says of each whom it vouches for.
    let by = if pods.is_empty() { "there is no other instance" } else { "enough other instances vouch for it" };
    agent.set_going_on(Some(format!("the API server can't be reached; going on, since {by}")));
}

fn takes_writes(agent: &Agent) -> bool {
    Boottime::now().since(agent.disk_proved_at()) <= PROOF_MAX_AGE
}

fn check_health(agent: &Agent, tenure: Tenure) -> Result<(), &'static str> {
    let now = Boottime::now();
    if !takes_writes(agent) {
        return Err("the disk did not take a write");
    }
    let answered = agent.sample().is_some_and(|sample| now.since(sample.at) <= PROOF_MAX_AGE);
    if answered || now < tenure.excused_until { Ok(()) } else { Err("PostgreSQL did not answer a query") }
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
        match agent.store.replace(seen.lease.version, register, end.map(Position::end)).await {
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

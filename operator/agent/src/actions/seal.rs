//! Sealing: the promise on disk, the replication cut, everything that was received replayed, and only then the report on
//! which elections are decided. Every wait is bounded and fails loudly: an unreachable or slow member is not sealed.

use std::time::Duration;

use pgherd_core::{
    instance::{Phase, SealReport},
    register::{Register, Term},
};
use tokio::time::Instant;

use super::{ActionError, describe_chain, follow, replay_end::await_replay_end, stop};
use crate::{
    agent::Agent,
    lease,
    local_state::LocalState,
    postgres::{config::Role, process::ProcessState},
    status,
    vouch::Vouching,
};

/// From the request to the report.
const BOUND: Duration = Duration::from_secs(10);
/// How long a step of the machine may hold a request up.
const BUSY: Duration = Duration::from_secs(3);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no complete data directory that could promise anything.
    #[error("there is no data directory to seal: {0}")]
    NoData(String),
    /// It has promised a later term already.
    #[error("this member has promised term {promised} already")]
    Promised {
        /// The later term.
        promised: Term,
    },
    /// It leads this very term.
    #[error("this member leads term {0}")]
    Leads(Term),
    /// It vouches for the primary of an earlier term, and keeps that.
    #[error(transparent)]
    Vouching(#[from] Vouching),
    /// Something else is being done.
    #[error("the agent is busy: {0}")]
    Busy(String),
    /// A step failed.
    #[error("failed to seal: {0}")]
    Action(String),
    /// The replication was not cut, or the replay did not end, in time.
    #[error("not sealed within {} s: {waiting_for}", BOUND.as_secs())]
    Timeout {
        /// What was still missing.
        waiting_for: &'static str,
    },
}

/// Persists the promise not to follow any term below `term`. A member that promised more keeps that.
///
/// # Errors
/// [`ActionError::LocalState`] when it is not on disk.
pub async fn promise(agent: &Agent, term: Term) -> Result<Option<LocalState>, ActionError> {
    let Some(mut local) = LocalState::read(&agent.layout.pgdata)? else { return Ok(None) };
    if local.sealed_term < term {
        if let Err(vouching) = agent.vouches.begin_seal(term) {
            lift_if_released(agent, vouching);
            agent.vouches.begin_seal(term).map_err(|vouching| ActionError::NotYet(vouching.to_string()))?;
        }
        local.sealed_term = term;
        local.write(&agent.layout.pgdata)?;
        agent.board.update(|status| status.sealed_term = term);
        tracing::info!(term = %term, "sealed: no lower term is followed");
    }
    Ok(Some(local))
}

/// Answers `POST /v1/seal`.
///
/// # Errors
/// [`SealError`].
pub async fn seal(agent: &Agent, term: Term) -> Result<SealReport, SealError> {
    let deadline = Instant::now() + BOUND;
    let busy = |_| SealError::Busy(format!("{:?}", agent.board.status().phase));
    let _acting = tokio::time::timeout(BUSY, agent.acting.lock()).await.map_err(busy)?;
    let action = |error: ActionError| SealError::Action(describe_chain(&error));
    if agent.layout.building_marker().exists() {
        return Err(SealError::NoData("it is being made".to_owned()));
    }
    let known = LocalState::read(&agent.layout.pgdata).map_err(|error| SealError::Action(describe_chain(&error)))?;
    let known = known.ok_or_else(|| SealError::NoData("it was not made yet".to_owned()))?;
    if known.sealed_term > term {
        return Err(SealError::Promised { promised: known.sealed_term });
    }
    if known.term >= term {
        return Err(SealError::Leads(known.term));
    }
    respect_promise(agent, term).await?;
    if matches!(agent.role(), Some(Role::Primary { .. })) {
        stop::stop_now(agent, "a failover has begun").await;
    }
    let local = promise(agent, term).await.map_err(action)?.unwrap_or(known);
    if agent.server.state().await == ProcessState::Running {
        follow::detach(agent).await.map_err(action)?;
    } else {
        follow::start_detached(agent).await.map_err(action)?;
    }
    let sample = await_replay_end(agent, deadline).await.map_err(|waiting_for| SealError::Timeout { waiting_for })?;
    agent.board.say(Phase::Sealed, "sealed: waiting for the decision");
    let history = status::observe_history(agent, &sample)
        .ok_or_else(|| SealError::Action("its timeline is not known".to_owned()))?;
    Ok(SealReport {
        member: local.member,
        pod: agent.identity.pod.clone(),
        sealed_term: term,
        term: local.term,
        history,
        received_lsn: sample.received,
        replayed_lsn: sample.replayed,
    })
}

/// Refuses while a promise to the primary of an earlier term is in force.
///
/// # Errors
/// [`Vouching`].
pub async fn respect_promise(agent: &Agent, term: Term) -> Result<(), Vouching> {
    let Err(vouching) = agent.vouches.begin_seal(term) else { return Ok(()) };
    // Without an answer the promise stands.
    let _ = lease::refresh(agent).await;
    lift_if_released(agent, vouching);
    agent.vouches.begin_seal(term)
}

/// A promise is void once the primary itself has written into the register that its PostgreSQL is down.
pub fn lift_if_released(agent: &Agent, vouching: Vouching) {
    let seen = agent.register.borrow();
    let released = |register: &Register| register.released && register.term == vouching.term;
    if seen.as_ref().is_some_and(|seen| released(&seen.lease.register)) {
        agent.vouches.lift(vouching.term);
    }
}

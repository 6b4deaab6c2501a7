//! Building this data directory anew because the operator says so. Never a primary's, and never while a failover may ask for
//! what is in it.

use std::time::Duration;

use tokio::time::timeout;

use super::{ActionError, rejoin::move_aside};
use crate::{agent::Agent, kept_wal, local_state::LocalState, postgres::config::Role};

/// A step that is under way is waited for so long.
const BUSY: Duration = Duration::from_secs(3);

/// Why it is not built anew.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It is, or is about to be, the primary; or it has promised to stand in an election.
    #[error("not now: {0}")]
    Refused(&'static str),
    /// Something else is being done.
    #[error("the agent is busy")]
    Busy,
    /// The data directory could not be moved aside.
    #[error("failed to move the data directory aside")]
    Action(#[source] ActionError),
}

/// Moves the data directory aside; the next step makes a new one. One that is being made already is left alone.
///
/// # Errors
/// [`RebuildError`].
pub async fn rebuild(agent: &Agent) -> Result<(), RebuildError> {
    let _acting = timeout(BUSY, agent.acting.lock()).await.map_err(|_| RebuildError::Busy)?;
    if agent.layout.building_marker().exists() {
        return Ok(());
    }
    let known = agent.register.borrow().as_ref().map(|seen| seen.lease.register.clone());
    let register = known.ok_or(RebuildError::Refused("the register is not known yet"))?;
    let holds = register.holder.as_ref().is_none_or(|holder| holder.pod == agent.identity.pod);
    if holds || agent.led_term().is_some() || matches!(agent.role(), Some(Role::Primary { .. })) {
        return Err(RebuildError::Refused("it holds the primary role"));
    }
    let local = LocalState::read(&agent.layout.pgdata).map_err(|error| RebuildError::Action(error.into()))?;
    if register.is_sealing() || local.as_ref().is_some_and(|local| local.sealed_term > register.term) {
        return Err(RebuildError::Refused("a failover is under way"));
    }
    if let Some(local) = &local {
        kept_wal::keep_of(agent, local).map_err(RebuildError::Action)?;
    }
    move_aside(agent, "somebody asked for it".to_owned()).await.map_err(RebuildError::Action)?;
    agent.wake.notify_one();
    Ok(())
}

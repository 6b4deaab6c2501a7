//! Stopping, giving the role back, and standing by. When [`stop_now`] returns, no process of PostgreSQL is left.

use std::time::Duration;

use pgherd_core::{instance::Phase, register::Term};

use super::ActionError;
use crate::{
    agent::Agent,
    clock::Boottime,
    fencer::Heartbeat,
    lease::{self, Tenure},
    postgres::{config::Role, process::StopMode},
};

/// A clean stop may take this long; the pod's grace period must be longer.
const CLEAN_STOP: Duration = Duration::from_secs(25);

/// Stops the server as if the machine had lost power, and gives up the tenure.
pub async fn stop_now(agent: &Agent, why: &str) {
    tracing::warn!(why, "stopping PostgreSQL at once");
    agent.server.stop(StopMode::Immediate, Duration::ZERO).await;
    end_tenure(agent);
    agent.board.say(Phase::Stopped, why);
}

/// No process is left that could take a write: nothing more to renew or to fence.
pub fn end_tenure(agent: &Agent) {
    agent.set_role(None);
    agent.tenure.send_replace(None);
    agent.update_quorum(|progress| *progress = crate::agent::QuorumProgress::default());
    if let Err(error) = agent.fencer.send(Heartbeat::Disarm) {
        tracing::error!(error = %error, "the fencer can't be told that PostgreSQL is stopped");
    }
}

/// Stops whatever is left, then tells the register that this holder is down.
///
/// # Errors
/// [`ActionError::Lease`]; the Lease runs out then.
pub async fn release(agent: &Agent, term: Term, why: &str) -> Result<(), ActionError> {
    stop_now(agent, why).await;
    lease::release(agent, term).await?;
    agent.server.acknowledge_death().await;
    agent.board.say(Phase::Stopped, format!("{why}: the primary role is given back"));
    Ok(())
}

/// Says what is waited for.
pub fn show_waiting(agent: &Agent, why: &str) {
    let phase = match agent.role() {
        Some(Role::Standby { upstream: None, .. }) => Phase::Sealed,
        Some(_) => Phase::Starting,
        None => Phase::Waiting,
    };
    agent.board.say(phase, why);
}

/// The pod ends. A primary stops so that every replica has everything, then gives its role back: the next one can take
/// over within a second, with nothing lost.
pub async fn shut_down(agent: &Agent) {
    let tenure = *agent.tenure.borrow();
    if let Some(tenure) = tenure {
        // It goes on renewing while it stops: a checkpoint must not end in a fencing.
        let patience = u64::try_from(CLEAN_STOP.as_millis()).unwrap_or(u64::MAX) + 5_000;
        agent.tenure.send_replace(Some(Tenure { excused_until: Boottime::now().plus_millis(patience), ..tenure }));
    }
    agent.board.say(Phase::Stopped, "shutting down");
    agent.server.stop(StopMode::Fast, CLEAN_STOP).await;
    end_tenure(agent);
    if let Some(tenure) = tenure
        && let Err(error) = lease::release(agent, tenure.term).await
    {
        tracing::warn!(error = %error, "the Lease could not be released; it will run out");
    }
}

//! Stopping, giving the role back, and standing by. When [`stop_now`] returns, no process of PostgreSQL is left.

use std::time::Duration;

use pgherd_core::{instance::Phase, lsn::Lsn, register::Term};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{ActionError, volume};
use crate::{
    agent::Agent,
    clock::Boottime,
    lease::{self, Tenure},
    leftovers,
    postgres::{binaries::Binaries, config::Role, control::observe_control, process::StopMode, sql::Session},
};

/// A clean stop may take this long, then it is an immediate one; the pod's grace period must be longer.
const CLEAN_STOP: Duration = Duration::from_secs(10);
/// A checkpoint while clients are still served shortens the one that they wait for. The bound when the role is handed over.
const HANDOVER_CHECKPOINT: Duration = Duration::from_secs(20);
/// How long who is connected is still served once the operator has begun to change what Services lead to (ADR 15). A node's
/// kube-proxy changes its rules once a second by default (`minSyncPeriod`): a change before the stop has the one that leads to
/// the successor come sooner after it. Nobody can tell when all nodes have made it; too early or too late costs clients a part of that
/// second, nothing else.
const ROUTES_CHANGE: Duration = Duration::from_millis(300);
/// How long a former primary stays down so that no client reaches a standby by what nodes knew a moment ago: the second of
/// [`ROUTES_CHANGE`], less what has passed of it.
const STAYS_DOWN: Duration = Duration::from_secs(1);
/// The bound when the pod ends: then its Service does not lead to it any more.
const LAST_CHECKPOINT: Duration = Duration::from_secs(2);
/// How long a pod that ends may take to bring the last of its WAL into the archive: nobody waits for it any more.
const LAST_ARCHIVING: Duration = Duration::from_secs(5);

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
    agent.update_quorum(|progress| *progress = crate::agent::QuorumProgress::default());
    if let Err(error) = agent.disarm() {
        tracing::error!(error = %error, "the fencer can't be told that PostgreSQL is stopped");
    }
}

/// Stops whatever is left, then tells the register that this holder is down.
///
/// # Errors
/// [`ActionError::Lease`]; the Lease runs out then.
pub async fn release(agent: &Agent, term: Term, why: &str) -> Result<(), ActionError> {
    let full = agent.server.log().disk_full();
    let why = &if full { format!("{why}: {}", volume::describe_full(&agent.layout)) } else { why.to_owned() };
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

/// The role is to move on purpose: stop so that every replica has everything, then give the role back. The next one can
/// take over at once, with nothing lost, and this one follows it without a rewind.
///
/// # Errors
/// [`ActionError::Lease`]; the machine then releases, since PostgreSQL is down.
pub async fn hand_over(agent: &Agent, term: Term, why: &str) -> Result<(), ActionError> {
    checkpoint(agent, HANDOVER_CHECKPOINT).await;
    agent.board.say(Phase::HandingOver, why);
    sleep(ROUTES_CHANGE).await;
    let end = stop_cleanly(agent, why).await;
    lease::release_at(agent, term, end).await?;
    agent.board.say(Phase::Stopped, format!("{why}: the primary role is given back"));
    if is_spared(agent) {
        tokio::select! {
            () = sleep(STAYS_DOWN) => {}
            () = agent.shutdown.cancelled() => {}
        }
    }
    Ok(())
}

/// Not where the new primary waits for what this one acknowledges.
fn is_spared(agent: &Agent) -> bool {
    agent.register.borrow().as_ref().is_some_and(|seen| seen.lease.register.can_spare_holder())
}

/// The pod ends: as [`hand_over`] for a primary, which then archives what PostgreSQL did not: there may be nobody else who
/// has it. A replica just stops.
///
/// Until the nodes lead to the successor they lead to this pod, and a pod that is there refuses a client at once. One that is gone
/// does not answer, and the client tries again after a second.
pub async fn shut_down(agent: &Agent) {
    let tenure = *agent.tenure.borrow();
    let last = agent.board.status().history.zip(agent.sample().map(|sample| sample.segment_bytes));
    let is_open = agent.gate.is_open(agent.server.generation());
    if tenure.is_some() {
        checkpoint(agent, LAST_CHECKPOINT).await;
    }
    let end = stop_cleanly(agent, "shutting down").await;
    if let Some(tenure) = tenure
        && let Err(error) = lease::release_at(agent, tenure.term, end).await
    {
        tracing::warn!(error = %error, "the Lease could not be released; it will run out");
    }
    let gone_at = Instant::now() + STAYS_DOWN;
    if let (Some(end), Some((history, segment_bytes))) = (end, last) {
        // Of a timeline that nobody follows yet nothing is archived.
        let shared = history.ancestors.last().map_or(Lsn(0), |entry| entry.switch_lsn);
        let (upto, deadline) = (if is_open { end } else { end.min(shared) }, Instant::now() + LAST_ARCHIVING);
        Box::pin(leftovers::bring_ready(agent, &history, upto, segment_bytes, deadline)).await;
    }
    if tenure.is_some() && is_spared(agent) {
        sleep_until(gone_at).await;
    }
}

/// Clients are served meanwhile. A checkpoint that takes longer goes on, and the stop waits for it.
async fn checkpoint(agent: &Agent, bound: Duration) {
    let layout = &agent.layout;
    let session = Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", bound);
    let done = timeout(bound, async { session.await?.execute("CHECKPOINT").await }).await;
    if !matches!(done, Ok(Ok(()))) {
        tracing::warn!("the checkpoint before the stop did not end in time");
    }
}

/// Stops the server so that whoever is connected has everything, and gives up the tenure; the end of the WAL where it is
/// known. The renewals go on until PostgreSQL is down: a checkpoint must not end in a fencing.
async fn stop_cleanly(agent: &Agent, why: &str) -> Option<Lsn> {
    let tenure = *agent.tenure.borrow();
    if let Some(tenure) = tenure {
        let patience = u64::try_from(CLEAN_STOP.as_millis()).unwrap_or(u64::MAX) + 5_000;
        agent.tenure.send_replace(Some(Tenure { excused_until: Boottime::now().plus_millis(patience), ..tenure }));
    }
    agent.board.say(Phase::Stopped, why);
    agent.server.stop(StopMode::Fast, CLEAN_STOP).await;
    end_tenure(agent);
    tenure?;
    let binaries = Binaries::observe().ok()?;
    let control = timeout(Duration::from_millis(500), observe_control(&binaries, &agent.layout.pgdata)).await.ok()?;
    control.ok().map(|control| control.lsn)
}

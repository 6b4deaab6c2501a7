//! Being a standby: start, follow the holder, change whom to follow without a restart, or follow nobody. The holder is
//! followed only once it takes writes and this data directory's WAL lies on its history: a standby ahead of the primary's
//! switch point would wait for ever.

use std::time::Duration;

use pgherd_core::{
    instance::Phase,
    lsn::Lsn,
    pg::floor,
    quorum::receiver_name,
    register::{Register, Term},
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::wal::segment_name;
use tokio::time::Instant;

use super::{ActionError, data_dir, failing, rejoin, render_options, replay_end::await_replay_end, volume};
use crate::{
    agent::Agent,
    kept_wal,
    layout::slot_name,
    local_state::{LocalState, LocalStateError},
    postgres::{
        binaries::Binaries,
        config::{Role, apply_config, apply_start_config, forget_altered_settings},
        control::observe_control,
        probe::{self, Sample},
        process::{ProcessState, StopMode},
        upstream::{Upstream, UpstreamSession, UpstreamState},
        wal_dir,
    },
    status,
};

/// A standby whose settings are too low is stopped cleanly within this time, or killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// A standby that does not stream for this long is compared with the holder again.
const CHECK_AFTER: Duration = Duration::from_secs(10);
/// The holder's promotion is waited for in one step for so long; a seal request waits longer for a step to end.
const PROMOTION: Duration = Duration::from_secs(1);
/// What was received must be replayed within this time before somebody else is followed.
const SETTLE: Duration = Duration::from_secs(3);
/// A standby whose WAL the holder no longer has, and that got none elsewhere for this long, is built anew.
const REBUILD_AFTER: Duration = Duration::from_secs(60);

/// Where the holder is.
#[must_use]
pub fn locate(agent: &Agent, pod: &str) -> Upstream {
    let (host, port) = agent.layout.peer(&agent.config().cluster, &agent.identity.namespace, pod);
    let seen = agent.register.borrow();
    let holder = seen.as_ref().and_then(|seen| seen.lease.register.holder.as_ref());
    let address = holder.filter(|holder| holder.pod == pod).and_then(|holder| holder.address);
    Upstream { pod: pod.to_owned(), host, address, port }
}

/// Connects to the holder and makes sure that it is this cluster's primary.
///
/// # Errors
/// [`ActionError`]; [`ActionError::NotYet`] while it is still in recovery.
pub async fn meet_primary(
    agent: &Agent,
    register: &Register,
    upstream: &Upstream,
) -> Result<(UpstreamSession, UpstreamState), ActionError> {
    let session = UpstreamSession::connect(upstream, &agent.layout.tls()).await?;
    session.await_writes(PROMOTION).await?;
    let state = session.observe().await?;
    if register.system_id.as_ref().is_some_and(|expected| *expected != state.system_id) {
        return Err(ActionError::NotYet(format!("{} runs another database system: {}", upstream.pod, state.system_id)));
    }
    if state.in_recovery {
        return Err(ActionError::NotYet(format!("{} does not take writes yet", upstream.pod)));
    }
    agent.note_upstream_history(state.history.clone());
    Ok((session, state))
}

/// What this data directory holds: from the running server if it answers, else from pg_control. What was received and
/// can't be replayed is the beginning of a record, which the next primary overwrites.
async fn observe_own(agent: &Agent) -> Result<(TimelineHistory, Lsn), ActionError> {
    if let Some(sample) = agent.sample().filter(|sample| sample.in_recovery)
        && let Some(history) = status::observe_history(agent, &sample)
    {
        return Ok((history, sample.replayed));
    }
    let control = observe_control(&Binaries::observe()?, &agent.layout.pgdata).await?;
    Ok((wal_dir::observe_history(&agent.layout.pgdata, control.timeline), control.lsn))
}

/// The last check before following: false, and remembered, when the branches part.
async fn may_follow(agent: &Agent, register: &Register, theirs: &UpstreamState) -> Result<bool, ActionError> {
    let (mine, lsn) = observe_own(agent).await?;
    let diverged = wal_dir::is_diverged(&mine, lsn, &theirs.history)
        || may_be_namesake(read_local(agent)?.term, register.term, mine.timeline, theirs.history.timeline);
    if diverged {
        tracing::warn!(timeline = %mine.timeline, lsn = %lsn, theirs = %theirs.history.timeline, "this standby is not on the primary's history");
        agent.set_diverged(true);
        agent.wake.notify_one();
    }
    Ok(!diverged)
}

/// Each term opens a timeline of its own. Whoever has followed earlier terms only and is on a timeline of that number
/// already may have it from a promotion that came to nothing: the rejoin compares the bytes.
#[must_use]
pub fn may_be_namesake(local: Term, current: Term, mine: TimelineId, theirs: TimelineId) -> bool {
    (Term(1)..current).contains(&local) && mine == theirs
}

/// What this data directory knows of itself; it must be there.
///
/// # Errors
/// [`ActionError::LocalState`].
pub fn read_local(agent: &Agent) -> Result<LocalState, ActionError> {
    let missing = || LocalStateError::Io {
        action: "read",
        path: agent.layout.pgdata.join(crate::local_state::FILE_NAME),
        source: std::io::ErrorKind::NotFound.into(),
    };
    Ok(LocalState::read(&agent.layout.pgdata)?.ok_or_else(missing)?)
}

fn standby_role(upstream: Option<Upstream>, local: &LocalState) -> Role {
    Role::Standby { upstream, receiver_name: receiver_name(&local.member, local.term), promotion: None }
}

/// Starts the server as a standby. While the holder can't be reached it starts all the same, following nobody: it must be
/// there to be asked when a failover begins.
///
/// # Errors
/// [`ActionError`].
pub async fn start(agent: &Agent, register: &Register, upstream: Option<&str>) -> Result<(), ActionError> {
    let failing = failing::observe_failure(agent).await;
    agent.server.acknowledge_death().await;
    let Some(pod) = upstream else { return start_detached(agent).await };
    let upstream = locate(agent, pod);
    match meet_primary(agent, register, &upstream).await {
        Ok((session, theirs)) => {
            if !may_follow(agent, register, &theirs).await? {
                return Ok(());
            }
            if let Some(why) = failing {
                return failing::replace(agent, why).await;
            }
            session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
            // A fresh copy lacks WAL that only the archive has, as a rule.
            if read_local(agent)?.term != Term(0) {
                agent.note_upstream_met();
            }
            enter_term(agent, register)?;
            start_as(agent, Some(upstream)).await
        }
        Err(error) => {
            tracing::warn!(error = %super::describe_chain(&error), "the primary can't be followed yet; starting without it");
            start_detached(agent).await
        }
    }
}

/// Starts the server as a standby that follows nobody.
///
/// # Errors
/// [`ActionError`].
pub async fn start_detached(agent: &Agent) -> Result<(), ActionError> {
    start_as(agent, None).await
}

async fn start_as(agent: &Agent, upstream: Option<Upstream>) -> Result<(), ActionError> {
    volume::validate_room(&agent.layout)?;
    let local = read_local(agent)?;
    kept_wal::keep_of(agent, &local)?;
    let (role, config, binaries) = (standby_role(upstream, &local), agent.config(), Binaries::observe()?);
    apply_start_config(&agent.layout, &config, &role, &agent.identity.pod)?;
    // A parameter that was lowered holds for standbys only once the primary runs with it.
    let raised = observe_control(&binaries, &agent.layout.pgdata).await?.floor.above_configured(&config.parameters);
    agent.server.start(&binaries, &render_options(&raised)).await?;
    agent.set_role(Some(role));
    agent.board.say(Phase::Starting, "PostgreSQL starts as a standby");
    Ok(())
}

/// A primary that was started with a parameter raised makes its standbys pause their replay: those that have the parameter
/// too low. Such a standby is stopped, so that the next step starts it with what it needs; true then.
///
/// # Errors
/// [`ActionError`].
pub async fn stop_if_outgrown(agent: &Agent) -> Result<bool, ActionError> {
    if !agent.sample().is_some_and(|sample| sample.in_recovery && sample.replay_paused) {
        return Ok(false);
    }
    let needed = observe_control(&Binaries::observe()?, &agent.layout.pgdata).await?.floor;
    let running = probe::observe_settings(&probe::connect(&agent.layout).await?, &floor::NAMES).await?;
    let outgrown = needed.above(|name| running.get(name).copied());
    if outgrown.is_empty() {
        // Somebody has paused it.
        return Ok(false);
    }
    tracing::warn!(?outgrown, "replay is paused: the primary runs with more; restarting this standby with as much");
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.wake.notify_one();
    Ok(true)
}

/// Empties primary_conninfo and restore_command of the running server.
///
/// # Errors
/// [`ActionError`].
pub async fn detach(agent: &Agent) -> Result<(), ActionError> {
    change_role(agent, standby_role(None, &read_local(agent)?)).await
}

/// A change of roles also undoes what somebody set by ALTER SYSTEM.
async fn change_role(agent: &Agent, role: Role) -> Result<(), ActionError> {
    let altered = forget_altered_settings(&agent.layout)?;
    apply_role(agent, role).await?;
    if altered {
        agent.server.reload().await;
    }
    Ok(())
}

async fn apply_role(agent: &Agent, role: Role) -> Result<(), ActionError> {
    if apply_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)? {
        agent.server.reload().await;
    }
    agent.set_role(Some(role));
    Ok(())
}

/// Follows somebody else, or nobody, without a restart.
///
/// # Errors
/// [`ActionError`]; the server then keeps following whom it followed, except where that is no longer the holder.
pub async fn set_upstream(agent: &Agent, register: &Register, upstream: Option<&str>) -> Result<(), ActionError> {
    let Some(pod) = upstream else { return detach(agent).await };
    // Whoever was followed before is not primary any more: what it still sends must not be taken.
    if matches!(agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
        detach(agent).await?;
    }
    if agent.board.status().phase != Phase::Starting {
        agent.board.say(Phase::Replica, format!("waiting to follow {pod}"));
    }
    let upstream = locate(agent, pod);
    let (session, theirs) = meet_primary(agent, register, &upstream).await?;
    let settled =
        |sample: &Sample| sample.receiver.is_none() && sample.replay_waits && sample.replayed >= sample.received;
    if !agent.sample().is_some_and(|sample| settled(&sample)) {
        let replayed = await_replay_end(agent, Instant::now() + SETTLE).await;
        replayed.map_err(|missing| ActionError::NotYet(format!("before it follows {pod}: {missing}")))?;
    }
    if !may_follow(agent, register, &theirs).await? {
        return Ok(());
    }
    session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    let local = enter_term(agent, register)?;
    agent.note_upstream_met();
    change_role(agent, standby_role(Some(upstream), &local)).await
}

/// Follows `upstream` as it is: all of this data directory's WAL was found to be on its history, so it stays the member
/// that it was, and what it was as a primary is over.
///
/// # Errors
/// [`ActionError`].
pub async fn resume(
    agent: &Agent,
    register: &Register,
    session: &UpstreamSession,
    upstream: Upstream,
) -> Result<(), ActionError> {
    session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    let led = read_local(agent)?;
    kept_wal::keep_of(agent, &led)?;
    let local = LocalState { term: register.term, was_primary: false, ..led };
    local.write(&agent.layout.pgdata)?;
    agent.set_diverged(false);
    tracing::info!(upstream = %upstream.pod, "its WAL is on the primary's history: it follows as it is");
    if agent.server.state().await == ProcessState::Running {
        agent.note_upstream_met();
        return change_role(agent, standby_role(Some(upstream), &local)).await;
    }
    agent.server.acknowledge_death().await;
    start_as(agent, Some(upstream)).await
}

/// Persists the term that is about to be followed. It must be on disk before WAL of that term is received: where branches
/// part, an election believes the higher term.
fn enter_term(agent: &Agent, register: &Register) -> Result<LocalState, ActionError> {
    let mut local = read_local(agent)?;
    if local.term < register.term {
        local.term = register.term;
        local.write(&agent.layout.pgdata)?;
    }
    Ok(local)
}

/// Looks after a standby that follows the holder.
///
/// # Errors
/// [`ActionError`].
pub async fn keep(agent: &Agent, register: &Register, pod: &str) -> Result<(), ActionError> {
    let local = read_local(agent)?;
    apply_role(agent, standby_role(Some(locate(agent, pod)), &local)).await?;
    let Some(sample) = agent.sample() else {
        agent.streaming.note_not_streaming();
        agent.board.say(Phase::Starting, "PostgreSQL starts as a standby");
        return check_when_silent(agent, register, pod, None).await;
    };
    let Some(receiver) = sample.receiver.as_ref().filter(|receiver| receiver.streaming) else {
        agent.streaming.note_not_streaming();
        agent.board.say(Phase::Replica, format!("waiting for WAL from {pod}"));
        return check_when_silent(agent, register, pod, Some(&sample)).await;
    };
    if !agent.streaming.note_receiver(receiver.pid) {
        if agent.streaming.not_streaming_for().is_zero() {
            agent.board.say(Phase::Replica, "");
        }
        return check_when_silent(agent, register, pod, Some(&sample)).await;
    }
    agent.streaming.note_streaming();
    agent.note_upstream_met();
    agent.hold_backup(None);
    drop_own_slots(agent, &sample).await;
    data_dir::remove_aside(&agent.layout)?;
    failing::note_streaming(&agent.layout)?;
    agent.board.say(Phase::Replica, "");
    Ok(())
}

/// Slots that this instance kept as primary would keep WAL for ever.
async fn drop_own_slots(agent: &Agent, sample: &Sample) {
    for (name, _) in sample.slots.iter().filter(|(_, active)| !active) {
        if let Ok(session) = probe::connect(&agent.layout).await {
            tracing::info!(slot = %name, "dropping a slot of an earlier time as primary");
            let _ = session.query("SELECT pg_drop_replication_slot($1)", &[name]).await;
        }
    }
}

/// A standby that gets no WAL for a while is compared with the holder: it may be on a branch of its own, or want WAL that
/// is gone.
async fn check_when_silent(
    agent: &Agent,
    register: &Register,
    pod: &str,
    sample: Option<&Sample>,
) -> Result<(), ActionError> {
    let silent = agent.streaming.not_streaming_for();
    if silent < CHECK_AFTER || !agent.streaming.take_check_turn(CHECK_AFTER) {
        return Ok(());
    }
    let (session, theirs) = meet_primary(agent, register, &locate(agent, pod)).await?;
    if !may_follow(agent, register, &theirs).await? {
        return Ok(());
    }
    let kept_from = session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    let (position, segment_bytes) = match sample {
        Some(sample) => (sample.replayed, sample.segment_bytes),
        None => {
            let control = observe_control(&Binaries::observe()?, &agent.layout.pgdata).await?;
            (control.lsn, control.segment_bytes)
        }
    };
    // With an archive the gap may close by itself; without progress for long enough it will not. One that has WAL and is held up in
    // it, by a query for example, goes on later.
    let stands = agent.streaming.note_position(position);
    let timeline = agent.board.status().history.map_or(theirs.history.timeline, |mine| mine.timeline);
    let segment = segment_name(timeline, position, segment_bytes);
    // The one that is being written need not be there yet.
    let is_past = position.0 / segment_bytes.max(1) < theirs.lsn.0 / segment_bytes.max(1);
    if silent.min(stands) >= REBUILD_AFTER
        && (kept_from > position || (is_past && !session.has_segment(&segment).await?))
        && sample.is_none_or(|sample| sample.replay_waits)
        && agent.server.state().await == ProcessState::Running
    {
        let why = format!(
            "it got no WAL for {} s: {pod} has no {segment} any more, and this standby was at {position}",
            stands.as_secs()
        );
        tracing::warn!(why, "this standby can't catch up; building it anew");
        rejoin::replace_copy(agent, why).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_followed_an_earlier_term_can_be_on_a_namesake_of_the_primarys_timeline() {
        let ask = |local, mine| may_be_namesake(Term(local), Term(3), TimelineId(mine), TimelineId(2));
        assert!(ask(2, 2));
        assert!(!ask(3, 2), "it has entered the term");
        assert!(!ask(2, 1), "it is on an older timeline");
        assert!(!ask(0, 2), "a fresh copy has followed nobody");
    }
}

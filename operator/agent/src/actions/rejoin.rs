//! A data directory that may have a branch of its own comes back. Where all of its WAL is on the primary's history it just
//! follows. Else what it holds beyond the fork is kept and reported, then discarded by pg_rewind, and if that can't work,
//! the data directory is moved aside and built anew. The tail is never served and never acknowledged to anybody again.

use std::{ffi::OsStr, time::Duration};

use pgherd_core::{
    instance::{Phase, SourceReport},
    lsn::Lsn,
    register::Register,
    timeline::TimelineHistory,
};
use tokio::time::Instant;

use super::{
    ActionError,
    branch::{OwnEnd, Standing, compare_bytes, decide_standing},
    data_dir::{self, Purpose},
    describe_chain, divergent, follow,
    replay_end::await_replay_end,
    volume,
};
use crate::{
    agent::Agent,
    file_work, kept_wal,
    layout::slot_name,
    local_state::LocalState,
    postgres::{
        binaries::Binaries,
        config::{Role, apply_config, apply_signal_file},
        control::observe_control,
        process::{ProcessState, StopMode},
        upstream::{Upstream, UpstreamSession, UpstreamState, render_upstream_conninfo},
        wal_dir,
    },
    status,
};

/// A standby that is about to be rewound is stopped cleanly within this time, or killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// One look at a standby whose replay should end.
const REPLAY_PATIENCE: Duration = Duration::from_secs(3);

/// What is done with the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// It follows as it is.
    Follow,
    /// pg_rewind discards what lies beyond the fork.
    Rewind {
        /// The last position that both share.
        fork: Lsn,
    },
    /// A new copy; pg_rewind would not see the difference.
    Copy {
        /// The last position that is known to be shared.
        fork: Lsn,
        /// For people.
        why: String,
    },
}

/// Makes this data directory follow `pod` again.
///
/// # Errors
/// [`ActionError`] while the holder can't be met; a failed pg_rewind is not an error but the way to a new copy.
pub async fn rejoin(agent: &Agent, register: &Register, pod: &str) -> Result<(), ActionError> {
    agent.board.say(Phase::Rewinding, format!("comparing with {pod}"));
    let upstream = follow::locate(agent, pod);
    let (session, theirs) = match follow::meet_primary(agent, register, &upstream).await {
        Ok(met) => met,
        Err(error) => {
            // Until the holder answers, this member stays there to be asked, as a standby that follows nobody.
            if agent.server.state().await != ProcessState::Running {
                agent.server.acknowledge_death().await;
                follow::start_detached(agent).await?;
            }
            return Err(error);
        }
    };
    let own = observe_end(agent).await?;
    let local = follow::read_local(agent)?;
    let led = local.was_primary && local.term < register.term;
    let plan = decide_plan(agent, &session, &theirs, &own, led, pod).await?;
    tracing::info!(plan = ?plan, timeline = %own.history.timeline, end = %own.lsn, "rejoin");
    let (fork, why) = match plan {
        Plan::Follow => return follow::resume(agent, register, &session, upstream).await,
        Plan::Rewind { fork } => (fork, None),
        Plan::Copy { fork, why } => (fork, Some(why)),
    };
    // What a restore in place left on purpose is in the archive already.
    let left = register.restore_of_term().is_some() && !local.was_primary;
    keep_wal(agent, &local, &own, fork, !left).await?;
    if let Some(why) = why {
        tracing::warn!(why, "the data directory is moved aside and built anew");
        return move_aside(agent, why).await;
    }
    session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    // pg_rewind reads the source's control file: the new timeline must be in it.
    session.checkpoint().await?;
    rewind_or_copy(agent, &upstream, &theirs, &local).await
}

/// The end of this data directory's WAL. Where only a recovery can tell, a standby that follows nobody does it.
async fn observe_end(agent: &Agent) -> Result<OwnEnd, ActionError> {
    if agent.server.state().await == ProcessState::Running {
        if matches!(agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
            follow::detach(agent).await?;
        }
        let missing = |what| ActionError::NotYet(format!("looking for the end of its WAL: {what}"));
        let sample = await_replay_end(agent, Instant::now() + REPLAY_PATIENCE).await.map_err(missing)?;
        let history = status::observe_history(agent, &sample).ok_or_else(|| missing("its timeline is not known"))?;
        let (lsn, segment_bytes) = (sample.replayed, sample.segment_bytes);
        return Ok(OwnEnd { history, lsn, known_to: lsn, segment_bytes });
    }
    let control = observe_control(&Binaries::observe()?, &agent.layout.pgdata).await?;
    let history = wal_dir::observe_history(&agent.layout.pgdata, control.timeline);
    if control.shut_down_as_primary {
        return Ok(OwnEnd::after_clean_stop(history, control.checkpoint, control.segment_bytes));
    }
    if agent.server.keeps_dying().await {
        // It can't even recover. At least so far its WAL reached; pg_rewind will fail as well, and a copy follows.
        return Ok(OwnEnd { history, lsn: control.lsn, known_to: control.lsn, segment_bytes: control.segment_bytes });
    }
    if agent.server.restart_pause().await.is_some() {
        return Err(ActionError::ends_at_once(&agent.server));
    }
    agent.server.acknowledge_death().await;
    follow::start_detached(agent).await?;
    Err(ActionError::NotYet("looking for the end of its WAL".to_owned()))
}

async fn decide_plan(
    agent: &Agent,
    session: &UpstreamSession,
    theirs: &UpstreamState,
    own: &OwnEnd,
    led: bool,
    pod: &str,
) -> Result<Plan, ActionError> {
    let standing = decide_standing(own, &theirs.history, theirs.lsn, led);
    let shared_to = match standing {
        Standing::OnHistory => own.known_to,
        Standing::Diverged { fork, .. } => fork,
    };
    if standing == Standing::OnHistory && own.known_to > theirs.lsn {
        return Err(ActionError::NotYet(format!("{pod} has not written as much as this instance yet")));
    }
    let same = compare_bytes(&agent.layout.pgdata, own, session, &theirs.history, shared_to).await?;
    let keeps_dying = agent.server.keeps_dying().await;
    Ok(match (standing, same) {
        (Standing::OnHistory, Some(true)) if !keeps_dying => Plan::Follow,
        (Standing::OnHistory, None) if !led && !keeps_dying => Plan::Follow,
        (Standing::OnHistory, Some(true) | None) => Plan::Rewind { fork: own.lsn },
        (Standing::Diverged { fork, same_number: true }, _) => {
            let why = format!("it was on timeline {} by another promotion than {pod}", own.history.timeline);
            Plan::Copy { fork, why }
        }
        (_, Some(false)) => {
            let fork = own.history.ancestors.last().map_or(Lsn::ZERO, |entry| entry.switch_lsn).min(shared_to);
            Plan::Copy { fork, why: format!("its WAL before {shared_to} is not what {pod} has there") }
        }
        (Standing::Diverged { fork, .. }, _) => Plan::Rewind { fork },
    })
}

/// What was not archived from before the fork is kept for the archive, and with `tail` what lies beyond it beside that.
async fn keep_wal(agent: &Agent, local: &LocalState, own: &OwnEnd, fork: Lsn, tail: bool) -> Result<(), ActionError> {
    agent.board.say(Phase::Rewinding, format!("keeping its WAL from {fork} to {}", own.lsn));
    kept_wal::keep_of(agent, local)?;
    kept_wal::forget_beyond(&agent.layout, fork, own.segment_bytes)?;
    if tail {
        Box::pin(divergent::keep_tail(agent, local, own, fork)).await;
    }
    Ok(())
}

async fn rewind_or_copy(
    agent: &Agent,
    upstream: &Upstream,
    theirs: &UpstreamState,
    old: &LocalState,
) -> Result<(), ActionError> {
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.set_role(None);
    let started = Instant::now();
    match rewind(agent, upstream, &theirs.history).await {
        Ok(()) => {
            let local = LocalState { sealed_term: old.sealed_term, ..LocalState::new_member() };
            data_dir::complete(agent, &local, &theirs.system_id)?;
            agent.set_diverged(false);
            report(agent, &upstream.pod, started);
            Ok(())
        }
        Err(error) => {
            let why = describe_chain(&error);
            tracing::warn!(why, "pg_rewind did not work; the data directory is moved aside and built anew");
            agent.board.say(Phase::Rewinding, format!("pg_rewind did not work: {why}"));
            move_aside(agent, format!("pg_rewind did not work: {why}")).await
        }
    }
}

fn report(agent: &Agent, pod: &str, started: Instant) {
    let source = SourceReport {
        source: "rewind".to_owned(),
        from: pod.to_owned(),
        reason: format!("this data directory held WAL that is not on the history of {pod}"),
        took_ms: u64::try_from(started.elapsed().as_millis()).ok(),
        ..SourceReport::default()
    };
    agent.board.update(|status| status.source = Some(source));
}

async fn rewind(agent: &Agent, upstream: &Upstream, history: &TimelineHistory) -> Result<(), ActionError> {
    let binaries = Binaries::observe()?;
    let layout = &agent.layout;
    data_dir::mark(layout, Purpose::Rewind)?;
    // One that was killed recovers first, from what pg_wal holds.
    if observe_control(&binaries, &layout.pgdata).await?.shut_down {
        kept_wal::take_out(layout)?;
    }
    agent.board.say(Phase::Rewinding, format!("pg_rewind from {}", upstream.pod));
    let config = agent.config();
    let role = Role::Standby { upstream: Some(upstream.clone()), receiver_name: String::new(), promotion: None };
    apply_config(layout, &config, &role, &agent.identity.pod)?;
    // pg_rewind starts the server in single-user mode when it was not shut down cleanly; that refuses a signal file.
    apply_signal_file(&layout.pgdata, None)?;
    let server = format!(
        "--source-server={}",
        render_upstream_conninfo(upstream, &layout.tls(), "pgherd_rewind", Some("postgres"))
    );
    let target = format!("--target-pgdata={}", layout.pgdata.display());
    let mut args: Vec<&OsStr> = vec![OsStr::new(&target), OsStr::new(&server)];
    if config.store.is_some() {
        args.push(OsStr::new("--restore-target-wal"));
    }
    binaries.run("pg_rewind", &args, &[]).await?;
    let (pg_wal, history) = (layout.pgdata.join("pg_wal"), history.clone());
    let cut = file_work::run(move || wal_dir::cut_left_timelines(&pg_wal, &history)).await;
    let cut = cut.map_err(std::io::Error::other).and_then(|cut| cut);
    cut.map_err(|source| ActionError::Files { action: "cut the WAL in", path: layout.pgdata.join("pg_wal"), source })
}

/// [`move_aside`] for a standby that holds nothing beyond the primary's history. Where the volume has no room for both, what it has is
/// deleted: kept, it would keep the new one from ever being complete.
///
/// # Errors
/// [`ActionError`].
pub async fn replace_copy(agent: &Agent, why: String) -> Result<(), ActionError> {
    if !volume::has_room_for_another(&agent.layout) {
        tracing::warn!("the volume has no room for another data directory: this one is not kept");
        data_dir::mark_because(&agent.layout, Purpose::Copy, Some(why.clone()))?;
    }
    move_aside(agent, why).await
}

/// Moves the data directory aside and marks what comes next as a copy, for the reason `why`.
///
/// # Errors
/// [`ActionError`].
pub async fn move_aside(agent: &Agent, why: String) -> Result<(), ActionError> {
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.set_role(None);
    data_dir::clear(&agent.layout)?;
    data_dir::mark_because(&agent.layout, Purpose::Copy, Some(why))?;
    agent.set_diverged(false);
    agent.streaming.note_streaming();
    agent.hold_backup(None);
    Ok(())
}

//! A data directory with a branch of its own comes back: pg_rewind, and if that can't work, it is moved aside and built
//! anew. What it holds beyond the switch point is never served and never acknowledged to anybody again.

use std::ffi::OsStr;

use pgherd_core::{
    instance::{Phase, SourceReport},
    register::Register,
};
use tokio::time::Instant;

use super::{
    ActionError,
    data_dir::{self, Purpose},
    describe_chain, follow,
};
use crate::{
    agent::Agent,
    layout::slot_name,
    local_state::LocalState,
    postgres::{
        binaries::Binaries,
        config::{Role, apply_config, apply_signal_file},
        control::observe_control,
        process::StopMode,
        upstream::{Upstream, UpstreamState, render_upstream_conninfo},
        wal_dir,
    },
};

/// A standby that is about to be rewound is stopped cleanly within this time, or killed.
const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

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
            if agent.server.state().await != crate::postgres::process::ProcessState::Running {
                agent.server.acknowledge_death().await;
                follow::start_detached(agent).await?;
            }
            return Err(error);
        }
    };
    session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    // pg_rewind reads the source's control file: the new timeline must be in it.
    session.checkpoint().await?;
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.set_role(None);
    let started = Instant::now();
    let old = LocalState::read(&agent.layout.pgdata)?;
    match rewind(agent, &upstream, &theirs).await {
        Ok(()) => {
            let sealed_term = old.map(|old| old.sealed_term).unwrap_or_default();
            let local = LocalState { sealed_term, ..LocalState::new_member() };
            data_dir::complete(agent, &local, &theirs.system_id)?;
            agent.set_diverged(false);
            report(agent, pod, started);
            Ok(())
        }
        Err(error) => {
            let why = describe_chain(&error);
            tracing::warn!(why, "pg_rewind did not work; the data directory is moved aside and built anew");
            agent.board.say(Phase::Rewinding, format!("pg_rewind did not work: {why}"));
            move_aside(agent).await
        }
    }
}

fn report(agent: &Agent, pod: &str, started: Instant) {
    let source = SourceReport {
        source: "rewind".to_owned(),
        from: pod.to_owned(),
        reason: format!("this data directory held WAL that is not on the history of {pod}"),
        wal_bytes: None,
        copy_bytes: None,
        took_ms: u64::try_from(started.elapsed().as_millis()).ok(),
    };
    agent.board.update(|status| status.source = Some(source));
}

async fn rewind(agent: &Agent, upstream: &Upstream, theirs: &UpstreamState) -> Result<(), ActionError> {
    let binaries = Binaries::observe()?;
    let layout = &agent.layout;
    let control = observe_control(&binaries, &layout.pgdata).await?;
    let mine = wal_dir::observe_history(&layout.pgdata, control.timeline);
    if mine.timeline == theirs.history.timeline && (mine.ancestors != theirs.history.ancestors || agent_led(agent)?) {
        // Two crashed promotions can take one timeline's number; pg_rewind would see nothing to do and keep rows that
        // nobody else has.
        return Err(ActionError::NotYet(format!(
            "both are on timeline {}, but not by the same promotion",
            mine.timeline
        )));
    }
    data_dir::mark(layout, Purpose::Rewind)?;
    agent.board.say(Phase::Rewinding, format!("pg_rewind from {}", upstream.pod));
    let config = agent.config();
    let role = Role::Standby {
        upstream: Some(upstream.clone()),
        member: String::new(),
        synchronous_standby_names: String::new(),
    };
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
    Ok(())
}

fn agent_led(agent: &Agent) -> Result<bool, ActionError> {
    Ok(LocalState::read(&agent.layout.pgdata)?.is_some_and(|local| local.was_primary))
}

/// Moves the data directory aside and marks what comes next as a copy.
///
/// # Errors
/// [`ActionError`].
pub async fn move_aside(agent: &Agent) -> Result<(), ActionError> {
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.set_role(None);
    data_dir::clear(&agent.layout)?;
    data_dir::mark(&agent.layout, Purpose::Copy)?;
    agent.set_diverged(false);
    agent.note_streaming();
    Ok(())
}

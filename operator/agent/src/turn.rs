//! One turn after the other: look at the register, the data directory and the server, let [`crate::machine`] decide, carry
//! the step out. What it decides on is read again before any step that can't be taken back.

use std::time::Duration;

use jiff::Timestamp;
use pgherd_core::{instance::Phase, register::Register};
use tokio::time::{Instant, sleep};

use crate::{
    actions::{self, ActionError, data_dir::observe_data, describe_chain, follow, stop, volume},
    agent::Agent,
    lease::{LeaseError, refresh},
    machine::{DataView, LocalAction, LocalInput, PostgresView, decide_local},
    postgres::{
        binaries::{Binaries, ProgramError},
        config::Role,
        process::ProcessState,
    },
    retries::Retries,
};

/// The machine looks at least this often.
const TURN: Duration = Duration::from_millis(500);
/// The longest pause after a step that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// The first pause when something else is waited for, such as the promotion of the instance to follow.
const SOON: Duration = Duration::from_millis(100);
/// So often only this long: commits wait for the standbys of a new primary.
const SOON_TRIES: u32 = 20;
/// The longest pause when something else is waited for.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Looks, decides and acts until the shutdown.
pub async fn turn(agent: &Agent) {
    let mut register = agent.register.subscribe();
    let mut config = agent.config_changes();
    let mut retries = Retries::default();
    while !agent.shutdown.is_cancelled() {
        agent.beat();
        let pause = tokio::select! {
            pause = step(agent, &mut retries) => pause,
            () = beat_while_busy(agent) => TURN,
            () = agent.shutdown.cancelled() => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            // A server that ends wakes the machine: one that was started in vain must not cut the pause after that short.
            () = agent.wake.notified(), if pause <= MAX_WAIT => {}
            _ = register.changed() => {}
            _ = config.changed() => {}
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// A restore may take hours: as long as the step is being polled, the machine is alive.
async fn beat_while_busy(agent: &Agent) {
    loop {
        sleep(Duration::from_secs(5)).await;
        agent.beat();
    }
}

async fn step(agent: &Agent, retries: &mut Retries) -> Duration {
    let _acting = agent.acting.lock().await;
    let Err(error) = decide_and_act(agent, retries).await else {
        retries.failures = 0;
        return TURN;
    };
    retries.failures = retries.failures.saturating_add(1);
    let failures = retries.failures;
    let phase = agent.board.status().phase;
    let text = describe_chain(&error);
    if failures.is_power_of_two() {
        tracing::warn!(error = %text, phase = ?phase, failures, "a step failed; it is decided again");
    }
    // These need a person; everything else may well pass by itself.
    let hopeless = matches!(
        error,
        ActionError::Plan { .. }
            | ActionError::Bootstrap { .. }
            | ActionError::Restore { .. }
            | ActionError::EndsAtOnce { .. }
            | ActionError::VolumeFull { .. }
            | ActionError::Program(ProgramError::NotFound)
    ) || phase == Phase::Initializing;
    agent.board.say(if hopeless { Phase::Failed } else { phase }, text);
    // Another instance that is about to be promoted is asked again soon; a copy that failed is not begun again at once.
    match (error.passes_soon(), failures) {
        (true, ..SOON_TRIES) => SOON,
        (true, _) => MAX_WAIT,
        (false, failures) => TURN.saturating_mul(2_u32.saturating_pow(failures.min(6))).min(MAX_BACKOFF),
    }
}

async fn decide_and_act(agent: &Agent, retries: &mut Retries) -> Result<(), ActionError> {
    let Some(seen) = agent.register.borrow().clone() else {
        let why =
            agent.register_error().map_or_else(String::new, |error| format!("the register can't be read: {error}"));
        agent.board.say(Phase::Waiting, why);
        return Ok(());
    };
    let binaries = Binaries::observe()?;
    let data = observe_data(agent, &binaries).await?;
    let action = decide(agent, &seen.lease.register, &data).await;
    let config = agent.config();
    if retries.holds_off(&action, &config, Instant::now()) {
        return Ok(());
    }
    let (register, action) = if needs_fresh_register(&action) {
        let fresh = refresh(agent).await.map_err(LeaseError::from)?;
        let action = decide(agent, &fresh.lease.register, &data).await;
        (fresh.lease.register, action)
    } else {
        (seen.lease.register, action)
    };
    if agent.led_term().is_some() && !is_for_primaries(&action) {
        stop::stop_now(agent, "this pod is not primary any more").await;
    }
    let is_idle = matches!(
        action,
        LocalAction::KeepPrimary | LocalAction::KeepReplica { .. } | LocalAction::Wait(_) | LocalAction::Fail(_)
    );
    if !is_for_primaries(&action) && follow::stop_if_outgrown(agent).await? {
        return Ok(());
    }
    // What is tried again within moments is not said each time.
    if retries.failures.saturating_add(1).is_power_of_two() && !is_idle {
        tracing::info!(action = ?action, term = %register.term, "next step");
    }
    if matches!(action, LocalAction::StartPrimary | LocalAction::StartStandby { .. })
        && agent.server.restart_pause().await.is_some()
    {
        return Err(ActionError::ends_at_once(&agent.server));
    }
    if action == LocalAction::StartPrimary {
        volume::validate_room(&agent.layout)?;
    }
    let done = Box::pin(actions::execute(agent, &register, action.clone())).await;
    let pause = retries.note(action, config, done.as_ref().err(), Instant::now());
    done.map_err(|error| match pause {
        Some(pause) => ActionError::Restore { error: Box::new(error), again_at: Timestamp::now() + pause },
        None => error,
    })
}

async fn decide(agent: &Agent, register: &Register, data: &DataView) -> LocalAction {
    let postgres = observe_postgres(agent).await;
    decide_local(&LocalInput {
        pod: &agent.identity.pod,
        pod_uid: &agent.identity.pod_uid,
        register,
        data,
        postgres: &postgres,
        instances: agent.config().instances,
        diverged: agent.diverged(),
    })
}

/// Steps that can't be taken back, or that make a primary, start from a register that was just read.
#[must_use]
pub fn needs_fresh_register(action: &LocalAction) -> bool {
    !matches!(
        action,
        LocalAction::KeepPrimary
            | LocalAction::KeepReplica { .. }
            | LocalAction::Wait(_)
            | LocalAction::Fail(_)
            | LocalAction::StopNow(_)
            | LocalAction::Seal
            | LocalAction::SetUpstream { upstream: None }
    )
}

/// Steps during which this agent may lead its term.
#[must_use]
pub fn is_for_primaries(action: &LocalAction) -> bool {
    matches!(
        action,
        LocalAction::Bootstrap
            | LocalAction::Restore(_)
            | LocalAction::StartPrimary
            | LocalAction::KeepPrimary
            | LocalAction::Promote
            | LocalAction::StopNow(_)
            | LocalAction::Release(_)
            | LocalAction::HandOver(_)
    )
}

/// A server that came out of recovery is a primary, whatever it was started as.
async fn observe_postgres(agent: &Agent) -> PostgresView {
    match (agent.server.state().await, agent.role()) {
        (ProcessState::Died(_), _) => PostgresView::Died,
        (ProcessState::Running, Some(Role::Primary { .. })) => PostgresView::Primary,
        (ProcessState::Running, Some(Role::Standby { upstream, .. })) => {
            let sample = agent.sample();
            let promoting = agent.led_term().is_some();
            if sample.as_ref().is_some_and(|sample| !sample.in_recovery) && !promoting {
                return PostgresView::Primary;
            }
            PostgresView::Standby { ready: sample.is_some(), upstream: upstream.map(|upstream| upstream.pod) }
        }
        _ => PostgresView::Stopped,
    }
}

//! `pgherd agent-main`: starts the parts, then turns the machine: look, decide, act, again on every change, until SIGTERM.

use std::{
    fs::File,
    os::fd::AsFd,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::SigSet;
use pgherd_core::{instance::Phase, register::Register};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    actions::{self, ActionError, data_dir::observe_data, describe_chain, stop},
    agent::{Agent, keep_certificates, keep_proving_the_disk, keep_sampling},
    archive,
    board::Board,
    fencer::Fencer,
    kubernetes_store::KubernetesRegister,
    layout::Layout,
    lease::{keep_renewing, refresh, watch_register},
    machine::{DataView, LocalAction, LocalInput, PostgresView, decide_local},
    postgres::{
        binaries::{Binaries, ProgramError},
        config::Role,
        process::ProcessState,
    },
    probes, server,
    settings::{observe_identity, read_config, watch_config},
    tls::apply_certificates,
};

/// The machine looks at least this often.
const TURN: Duration = Duration::from_millis(500);
/// The longest pause after a step that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// The longest pause when something else is waited for.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Runs the agent until SIGTERM; the supervisor has started it.
#[must_use]
pub fn run_main() -> ExitCode {
    // The supervisor blocks every signal for itself, and a child inherits that.
    let _ = SigSet::all().thread_unblock();
    let format = tracing_subscriber::fmt().json().with_writer(std::io::stdout);
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube=warn,hyper=warn".into());
    let _ = format.with_env_filter(filter).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve()),
        Err(error) => {
            tracing::error!(error = %error, "failed to start the runtime");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> ExitCode {
    let layout = Layout::pod();
    let identity = match observe_identity() {
        Ok(identity) => identity,
        Err(error) => {
            tracing::error!(error = %error, "failed to start");
            return ExitCode::FAILURE;
        }
    };
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return ExitCode::FAILURE };
    let board = Board::new(&identity);
    tokio::select! {
        agent = prepare(layout, identity, board) => match agent {
            Some((agent, certificates)) => {
                let on_term = Arc::clone(&agent);
                drop(tokio::spawn(async move {
                    terminate.recv().await;
                    tracing::info!("SIGTERM");
                    on_term.shutdown.cancel();
                }));
                run_agent(agent, certificates).await;
                ExitCode::SUCCESS
            }
            None => ExitCode::FAILURE,
        },
        _ = terminate.recv() => ExitCode::SUCCESS,
    }
}

/// Waits for what the agent can't do without: certificates, a configuration, a client for the API server.
async fn prepare(layout: Layout, identity: crate::settings::Identity, board: Board) -> Option<(Arc<Agent>, watch::Receiver<u64>)> {
    while let Err(error) = apply_certificates(&layout.tls_source, &layout.tls()) {
        tracing::warn!(error = %describe_chain(&error), "waiting for the certificates");
        sleep(Duration::from_secs(1)).await;
    }
    let config = loop {
        match read_config(&layout.config) {
            Ok(config) => break config,
            Err(error) => {
                board.say(Phase::Failed, describe_chain(&error));
                sleep(Duration::from_secs(1)).await;
            }
        }
    };
    board.say(Phase::Waiting, "");
    let client = kube::Client::try_default().await.inspect_err(|error| tracing::error!(error = %error, "no client for the API server")).ok()?;
    let store = Arc::new(KubernetesRegister::new(client, &identity.namespace, &config.cluster));
    let watched = Arc::clone(&store);
    drop(tokio::spawn(async move { watched.watch().await }));
    let (sender, receiver) = watch::channel(Arc::new(config));
    drop(tokio::spawn(watch_config(layout.config.clone(), sender)));
    let fencer = Fencer::at(&layout.fencer_socket());
    let agent = Arc::new(Agent::new(identity, layout, receiver, Box::new(store), fencer, board));
    let (changed, certificates) = watch::channel(0);
    drop(tokio::spawn(keep_certificates(Arc::clone(&agent), changed)));
    Some((agent, certificates))
}

/// Starts the agent's tasks and turns the machine until the agent is told to end.
pub async fn run_agent(agent: Arc<Agent>, certificates: watch::Receiver<u64>) {
    for task in [
        tokio::spawn(watch_register(Arc::clone(&agent))),
        tokio::spawn(keep_renewing(Arc::clone(&agent))),
        tokio::spawn(keep_sampling(Arc::clone(&agent))),
        tokio::spawn(keep_proving_the_disk(Arc::clone(&agent))),
        tokio::spawn(server::serve(Arc::clone(&agent), certificates)),
        tokio::spawn(probes::serve(Arc::clone(&agent))),
        tokio::spawn(archive::serve(Arc::clone(&agent))),
        tokio::spawn(archive::keep_history(Arc::clone(&agent))),
    ] {
        drop(task);
    }
    let _volume = tokio::select! {
        lock = lock_volume(&agent) => lock,
        () = agent.shutdown.cancelled() => None,
    };
    turn(&agent).await;
    stop::shut_down(&agent).await;
}

/// The volume's lock, on the file that the supervisor handed over as stdin; waits while another container has it. Without
/// such a file (tests) there is no lock.
async fn lock_volume(agent: &Agent) -> Option<File> {
    let file = File::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(std::fs::TryLockError::WouldBlock) => agent.board.say(Phase::Waiting, "another container still uses the volume"),
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::warn!(error = %error, "the volume's file system has no locks");
                return None;
            }
        }
        agent.beat();
        sleep(TURN).await;
    }
}

/// Looks, decides and acts until the shutdown.
async fn turn(agent: &Agent) {
    let mut register = agent.register.subscribe();
    let mut config = agent.config_changes();
    let mut failures = 0_u32;
    while !agent.shutdown.is_cancelled() {
        agent.beat();
        let pause = tokio::select! {
            pause = step(agent, &mut failures) => pause,
            () = beat_while_busy(agent) => TURN,
            () = agent.shutdown.cancelled() => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = agent.wake.notified() => {}
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

async fn step(agent: &Agent, failures: &mut u32) -> Duration {
    let _acting = agent.acting.lock().await;
    let Err(error) = decide_and_act(agent).await else {
        *failures = 0;
        return TURN;
    };
    *failures = failures.saturating_add(1);
    let phase = agent.board.status().phase;
    let text = describe_chain(&error);
    tracing::warn!(error = %text, phase = ?phase, "a step failed; it is decided again");
    // These need a person; everything else may well pass by itself.
    let hopeless = matches!(error, ActionError::Bootstrap { .. } | ActionError::Program(ProgramError::NotFound)) || phase == Phase::Initializing;
    agent.board.say(if hopeless { Phase::Failed } else { phase }, text);
    // Another instance that is about to be promoted is asked again soon; a copy that failed is not begun again at once.
    let soon = matches!(error, ActionError::NotYet(_) | ActionError::Upstream(_) | ActionError::Lease(_) | ActionError::Sql(_));
    TURN.saturating_mul(2_u32.saturating_pow((*failures).min(6))).min(if soon { MAX_WAIT } else { MAX_BACKOFF })
}

async fn decide_and_act(agent: &Agent) -> Result<(), ActionError> {
    let Some(seen) = agent.register.borrow().clone() else {
        let why = agent.register_error().map_or_else(String::new, |error| format!("the register can't be read: {error}"));
        agent.board.say(Phase::Waiting, why);
        return Ok(());
    };
    let binaries = Binaries::observe()?;
    let data = observe_data(agent, &binaries).await?;
    let action = decide(agent, &seen.lease.register, &data).await;
    let (register, action) = if needs_fresh_register(&action) {
        let fresh = refresh(agent).await.map_err(crate::lease::LeaseError::from)?;
        let action = decide(agent, &fresh.lease.register, &data).await;
        (fresh.lease.register, action)
    } else {
        (seen.lease.register, action)
    };
    if agent.led_term().is_some() && !is_for_primaries(&action) {
        stop::stop_now(agent, "this pod is not primary any more").await;
    }
    if !matches!(action, LocalAction::KeepPrimary | LocalAction::KeepReplica { .. } | LocalAction::Wait(_) | LocalAction::Fail(_)) {
        tracing::info!(action = ?action, term = %register.term, "next step");
    }
    actions::execute(agent, &register, action).await
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
fn needs_fresh_register(action: &LocalAction) -> bool {
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
fn is_for_primaries(action: &LocalAction) -> bool {
    matches!(
        action,
        LocalAction::Bootstrap
            | LocalAction::StartPrimary
            | LocalAction::KeepPrimary
            | LocalAction::Promote
            | LocalAction::StopNow(_)
            | LocalAction::Release(_)
    )
}

/// A server that came out of recovery is a primary, whatever it was started as.
async fn observe_postgres(agent: &Agent) -> PostgresView {
    match (agent.server.state().await, agent.role()) {
        (ProcessState::Died(status), role) => {
            tracing::warn!(status = %status, role = ?role.as_ref().map(name_role), "PostgreSQL ended by itself");
            PostgresView::Died
        }
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

fn name_role(role: &Role) -> &'static str {
    match role {
        Role::Primary { .. } => "primary",
        Role::Standby { .. } => "standby",
        Role::Recovery { .. } => "recovery",
    }
}

/// Waits until `agent` shows a phase, for tests.
///
/// # Errors
/// The last status, when it does not within `patience`.
pub async fn wait_for_phase(agent: &Agent, phase: Phase, patience: Duration) -> Result<(), String> {
    let reached = async {
        while agent.board.status().phase != phase {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(patience, reached).await.map_err(|_| format!("{:?}", agent.board.status()))
}

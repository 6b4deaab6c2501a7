//! `pgherd agent-main`: starts the parts, then turns the machine: look, decide, act, again on every change, until SIGTERM.

use std::{fs::File, os::fd::AsFd, process::ExitCode, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use nix::sys::signal::SigSet;
use pgherd_core::instance::Phase;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    actions::{describe_chain, divergent, stop},
    agent::Agent,
    archive, archive_window,
    board::Board,
    catalog,
    fencer::Fencer,
    gate::keep_gate,
    kubernetes_store::KubernetesRegister,
    layout::Layout,
    lease::{keep_renewing, watch_register},
    leftovers,
    parameters::accept_parameters,
    probes, server,
    settings::{observe_identity, read_config, watch_config},
    tls::apply_certificates,
    turn::turn,
    upkeep::{keep_certificates, keep_proving_the_disk, keep_sampling},
};

/// Runs the agent until SIGTERM; the supervisor has started it.
#[must_use]
pub fn run_main() -> ExitCode {
    // The supervisor blocks every signal for itself, and a child inherits that.
    let _ = SigSet::all().thread_unblock();
    let format = tracing_subscriber::fmt().json().with_writer(std::io::stdout);
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube=warn,hyper=warn".into());
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
async fn prepare(
    layout: Layout,
    identity: crate::settings::Identity,
    board: Board,
) -> Option<(Arc<Agent>, watch::Receiver<u64>)> {
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
    let client = kube::Client::try_default()
        .await
        .inspect_err(|error| tracing::error!(error = %error, "no client for the API server"))
        .ok()?;
    let store = Arc::new(KubernetesRegister::new(client, &identity.namespace, &config.cluster));
    let watched = Arc::clone(&store);
    drop(tokio::spawn(async move { watched.watch().await }));
    let accepted = accept_parameters(&layout, &board, config.clone()).await;
    let (sender, receiver) = watch::channel(Arc::new(accepted));
    drop(tokio::spawn(watch_config(layout.clone(), board.clone(), config, sender)));
    let fencer = Fencer::at(&layout.fencer_socket());
    let agent = Arc::new(Agent::new(identity, layout, receiver, Box::new(store), fencer, board));
    let (changed, certificates) = watch::channel(0);
    drop(tokio::spawn(keep_certificates(Arc::clone(&agent), changed)));
    Some((agent, certificates))
}

/// Starts the agent's tasks and turns the machine until the agent is told to end.
pub fn run_agent(agent: Arc<Agent>, certificates: watch::Receiver<u64>) -> BoxFuture<'static, ()> {
    Box::pin(run_tasks(agent, certificates))
}

async fn run_tasks(agent: Arc<Agent>, certificates: watch::Receiver<u64>) {
    let _tasks = Tasks(vec![
        tokio::spawn(watch_register(Arc::clone(&agent))),
        tokio::spawn(keep_renewing(Arc::clone(&agent))),
        tokio::spawn(keep_sampling(Arc::clone(&agent))),
        tokio::spawn(keep_gate(Arc::clone(&agent))),
        tokio::spawn(keep_proving_the_disk(Arc::clone(&agent))),
        tokio::spawn(server::serve(Arc::clone(&agent), certificates)),
        tokio::spawn(probes::serve(Arc::clone(&agent))),
        tokio::spawn(archive::serve(Arc::clone(&agent))),
        tokio::spawn(wake_on_ended_child(Arc::clone(&agent))),
        tokio::spawn(archive::keep_history(Arc::clone(&agent))),
        tokio::spawn(archive_window::keep_window(Arc::clone(&agent))),
        tokio::spawn(leftovers::keep_bringing(Arc::clone(&agent))),
        tokio::spawn(catalog::keep_looking(Arc::clone(&agent))),
    ]);
    divergent::show_recorded(&agent);
    let _volume = tokio::select! {
        lock = lock_volume(&agent) => lock,
        () = agent.shutdown.cancelled() => None,
    };
    Box::pin(turn(&agent)).await;
    stop::shut_down(&agent).await;
}

/// End with whoever started them.
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
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
            Err(std::fs::TryLockError::WouldBlock) => {
                agent.board.say(Phase::Waiting, "another container still uses the volume")
            }
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::warn!(error = %error, "the volume's file system has no locks");
                return None;
            }
        }
        agent.beat();
        sleep(Duration::from_millis(500)).await;
    }
}

/// A server that dies is noticed at once and not at the next turn; never ends.
async fn wake_on_ended_child(agent: Arc<Agent>) {
    let Ok(mut ended) = signal(SignalKind::child()) else { return };
    while ended.recv().await.is_some() {
        agent.wake.notify_one();
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

//! `pgherd operator`: wires the client, the watches, the leader election, the server and the controllers. No decision.
//!
//! A process that lost the lead becomes a new one in its place: an API server that comes and goes is no fault of this program,
//! and the kubelet, which waits longer before each start of a container, would leave clusters without failover for minutes.

use std::{
    env,
    error::Error,
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    sync::Arc,
};

use futures::{FutureExt, future::join_all};
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    context::{ArchiveLooks, Clock, Context, Memories},
    controllers::{backup, backup_schedule, postgres_cluster},
    kubernetes::{
        agent_client::AgentClients,
        client::connect,
        scope::Scope,
        store::{Stores, Watches},
    },
    leader::{Elector, Leadership},
    server::{self, Readiness},
    settings::{OperatorArgs, Settings},
    telemetry::{logs, metrics::Metrics},
};

/// Why it does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was told to stop.
    Stopped,
    /// Somebody else may lead now.
    LeadLost,
}

/// Runs until a signal comes. When leadership is lost, it begins anew.
///
/// # Errors
/// If it can't start, also anew.
pub fn run(args: OperatorArgs) -> Result<ExitCode, Box<dyn Error>> {
    logs::start();
    let settings = Settings::load(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let end = runtime.block_on(run_async(settings))?;
    // Not waited for: a look-up of a name may take its time.
    runtime.shutdown_background();
    match end {
        End::Stopped => Ok(ExitCode::SUCCESS),
        End::LeadLost => Err(begin_anew().into()),
    }
}

/// Makes this process a new one of the same program and arguments. Nothing that it knew, held open or had under way outlasts
/// that, as if the container had been started again. Returns only if it can't be done.
fn begin_anew() -> io::Error {
    tracing::warn!("leadership was lost: beginning anew");
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}

async fn run_async(settings: Settings) -> Result<End, Box<dyn Error>> {
    // First: process 1 of a container gets no signal that it does not handle.
    let mut stop = stop_signal()?;
    let client = connect().await?;
    let mut registry = Registry::default();
    let metrics = Metrics::registered(&mut registry);
    let readiness = Readiness::default();
    let listener = TcpListener::bind(settings.listen).await?;
    let server = tokio::spawn(server::serve(listener, readiness.clone(), Arc::new(registry)));
    let leadership = Leadership::default();
    let (contexts, watches) = start_contexts(&client, &settings, &leadership, &metrics);
    // Also on the pod that does not lead, so that it takes over at once.
    tokio::select! {
        () = join_all(contexts.iter().map(|context| context.stores.wait_until_ready())).map(|_| ()) => {}
        () = stopped(&mut stop) => return Ok(End::Stopped),
    }
    readiness.set(true);
    let identity = format!("{}/{}", settings.pod_name, uuid::Uuid::new_v4());
    tracing::info!(identity, namespaces = ?settings.namespaces, "waiting to lead");
    let mut elector = Elector::new(client, &settings.pod_namespace, &settings.leader_lease, identity, leadership);
    tokio::select! {
        () = elector.acquire() => {}
        () = stopped(&mut stop) => return Ok(End::Stopped),
    }
    metrics.leader.set(1);
    tracing::info!("leading");
    let controllers = join_all(contexts.iter().map(|context| run_controllers(Arc::clone(context), stop.clone())));
    let outcome = tokio::select! {
        () = elector.hold() => Ok(End::LeadLost),
        _ = controllers => Ok(End::Stopped),
        _ = server => Err("the HTTP server ended".into()),
    };
    readiness.set(false);
    elector.release().await;
    drop(watches);
    match outcome {
        Ok(End::LeadLost) if *stop.borrow() => Ok(End::Stopped),
        outcome => outcome,
    }
}

fn start_contexts(
    client: &Client,
    settings: &Settings,
    leadership: &Leadership,
    metrics: &Metrics,
) -> (Vec<Arc<Context>>, Vec<Watches>) {
    let reporter = Reporter { controller: "pgherd".to_owned(), instance: Some(settings.pod_name.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    Scope::of(&settings.namespaces)
        .into_iter()
        .map(|scope| {
            let (stores, watches) = Stores::start(client, &scope);
            let mut settings = settings.clone();
            // Its controllers watch what its stores hold, and nothing else.
            settings.namespaces = scope.namespace().map(str::to_owned).into_iter().collect();
            let context = Context {
                client: client.clone(),
                scope,
                settings,
                recorder: recorder.clone(),
                stores,
                agents: AgentClients::default(),
                leadership: leadership.clone(),
                metrics: metrics.clone(),
                clock: Clock::start(),
                memories: Memories::default(),
                archive_looks: ArchiveLooks::default(),
            };
            (Arc::new(context), watches)
        })
        .unzip()
}

async fn run_controllers(context: Arc<Context>, stop: watch::Receiver<bool>) {
    let shutdown = || {
        let mut stop = stop.clone();
        async move { stopped(&mut stop).await }.boxed()
    };
    tokio::join!(
        postgres_cluster::run(Arc::clone(&context), shutdown()),
        backup::run(Arc::clone(&context), shutdown()),
        backup_schedule::run(Arc::clone(&context), shutdown()),
    );
}

/// Becomes true on SIGTERM or SIGINT.
fn stop_signal() -> io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // Nobody listens any more when the process is ending anyway.
        let _ = sender.send(true);
    });
    Ok(receiver)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender is gone only after it has sent.
    let _ = stop.wait_for(|stop| *stop).await;
}

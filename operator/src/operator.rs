//! `pgherd operator`: wires the client, the watches, the leader election, the server and the controllers. No decision.

use std::{error::Error, process::ExitCode, sync::Arc};

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

/// Runs until a signal comes or leadership is lost.
///
/// # Errors
/// If it can't start, or if leadership was lost: then the process must end, because somebody else leads.
pub fn run(args: OperatorArgs) -> Result<ExitCode, Box<dyn Error>> {
    logs::start();
    let settings = Settings::load(args)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run_async(settings))
}

async fn run_async(settings: Settings) -> Result<ExitCode, Box<dyn Error>> {
    let client = connect().await?;
    let mut registry = Registry::default();
    let metrics = Metrics::registered(&mut registry);
    let readiness = Readiness::default();
    let listener = TcpListener::bind(settings.listen).await?;
    let server = tokio::spawn(server::serve(listener, readiness.clone(), Arc::new(registry)));
    let leadership = Leadership::default();
    let (contexts, watches) = start_contexts(&client, &settings, &leadership, &metrics);
    // Also on the pod that does not lead, so that it takes over at once.
    let mut stop = stop_signal()?;
    tokio::select! {
        () = join_all(contexts.iter().map(|context| context.stores.wait_until_ready())).map(|_| ()) => {}
        () = stopped(&mut stop) => return Ok(ExitCode::SUCCESS),
    }
    readiness.set(true);
    let identity = format!("{}/{}", settings.pod_name, uuid::Uuid::new_v4());
    tracing::info!(identity, namespaces = ?settings.namespaces, "waiting to lead");
    let mut elector = Elector::new(client, &settings.pod_namespace, &settings.leader_lease, identity, leadership);
    tokio::select! {
        () = elector.acquire() => {}
        () = stopped(&mut stop) => return Ok(ExitCode::SUCCESS),
    }
    metrics.leader.set(1);
    tracing::info!("leading");
    let controllers = join_all(contexts.iter().map(|context| run_controllers(Arc::clone(context), stop.clone())));
    let outcome = tokio::select! {
        () = elector.hold() => Err("leadership was lost".into()),
        _ = controllers => Ok(ExitCode::SUCCESS),
        _ = server => Err("the HTTP server ended".into()),
    };
    readiness.set(false);
    elector.release().await;
    drop(watches);
    outcome
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
fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
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

//! The operator's processes: the real stores, leader election, controller and failover code, with a client over the
//! simulated API server and a transport to the simulated agents. A process that dies is started again.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Method, StatusCode};
use kube::runtime::events::{Recorder, Reporter};
use pgherd::{
    context::{ArchiveLooks, Clock, Context, Memories},
    controllers::postgres_cluster,
    kubernetes::{
        agent_client::{AgentAddress, AgentClients, AgentTransport},
        scope::Scope as Namespaces,
        store::Stores,
    },
    leader::{Elector, Leadership},
    settings::Settings,
    telemetry::metrics::Metrics,
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use crate::{
    api::{Caller, client},
    peers::answer,
    scope::{Node, OPERATORS, Scope},
    trace::note,
    world::World,
};

/// One replica of the operator.
pub(crate) struct Operator {
    world: Arc<World>,
    index: usize,
    pub(crate) caller: Mutex<Arc<Caller>>,
    killed: Notify,
    /// Name of its leader Lease; another one than the others' lets it lead beside them.
    lease: Mutex<String>,
}

impl Operator {
    pub(crate) fn start(world: &Arc<World>, index: usize) -> Arc<Self> {
        let operator = Arc::new(Self {
            world: Arc::clone(world),
            index,
            caller: Mutex::default(),
            killed: Notify::new(),
            lease: Mutex::new("pgherd-operator".to_owned()),
        });
        tokio::spawn(Arc::clone(&operator).keep_running());
        operator
    }

    pub(crate) fn node(&self) -> Node {
        OPERATORS[self.index]
    }

    pub(crate) fn kill(&self) {
        note(format!("operator {} is killed", self.index));
        self.killed.notify_one();
    }

    pub(crate) fn lead_alone(&self) {
        *self.lease.lock().unwrap() = format!("pgherd-operator-{}", self.index);
        self.kill();
    }

    pub(crate) fn lead_with_the_others(&self) {
        "pgherd-operator".clone_into(&mut self.lease.lock().unwrap());
        self.kill();
    }

    /// It dies at its n-th write from now, once.
    pub(crate) fn die_at_write(&self, n: u64, before: bool) {
        let caller = self.caller.lock().unwrap().clone();
        caller.dies_before.store(before, Ordering::SeqCst);
        caller.dies_after.store(n, Ordering::SeqCst);
    }

    async fn keep_running(self: Arc<Self>) {
        let mut round = 0;
        while !self.world.is_stopping() {
            round += 1;
            let caller =
                Arc::new(Caller { name: format!("operator-{}", self.index), node: self.node(), ..Caller::default() });
            *self.caller.lock().unwrap() = Arc::clone(&caller);
            let scope = Scope::new(self.node());
            let ended = Arc::new(Notify::new());
            let (process, signal) = (self.process(Arc::clone(&caller), round), Arc::clone(&ended));
            scope.spawn(async move {
                process.await;
                signal.notify_one();
            });
            let container = || self.world.random.between(800, 4_000);
            let again_after = tokio::select! {
                biased;
                () = self.killed.notified() => container(),
                () = caller.died.notified() => container(),
                // It begins anew by itself.
                () = ended.notified() => {
                    note(format!("operator {} begins anew", self.index));
                    self.world.random.between(20, 200)
                }
            };
            caller.dead.store(true, Ordering::SeqCst);
            scope.kill();
            sleep(Duration::from_millis(again_after)).await;
        }
    }

    /// `pgherd::operator::run_async` without sockets and signals.
    fn process(&self, caller: Arc<Caller>, round: u32) -> BoxFuture<'static, ()> {
        let world = Arc::clone(&self.world);
        let name = format!("pgherd-{}", self.index);
        let lease = self.lease.lock().unwrap().clone();
        async move {
            let client = client(&world, &caller);
            let namespaces = Namespaces::Namespace("web".to_owned());
            let leadership = Leadership::default();
            let (stores, watches) = Stores::start(&client, &namespaces);
            let transport = Arc::new(Wire { world: Arc::clone(&world), node: caller.node, caller });
            let context = Arc::new(Context {
                client: client.clone(),
                scope: namespaces,
                settings: settings(&name),
                recorder: Recorder::new(
                    client.clone(),
                    Reporter { controller: "pgherd".to_owned(), instance: Some(name.clone()) },
                ),
                stores,
                agents: AgentClients::over(transport),
                leadership: leadership.clone(),
                metrics: Metrics::registered(&mut Registry::default()),
                clock: Clock::with_wall(crate::scope::wall),
                memories: Memories::default(),
                archive_looks: ArchiveLooks::default(),
            });
            context.stores.wait_until_ready().await;
            let identity = format!("{name}/{round}");
            let mut elector = Elector::new(client, "pgherd-system", &lease, identity, leadership);
            elector.acquire().await;
            note(format!("{name} leads"));
            tokio::select! {
                biased;
                () = elector.hold() => note(format!("{name} leads no more")),
                () = postgres_cluster::run(context, std::future::pending().boxed()) => {}
            }
            drop(watches);
        }
        .boxed()
    }
}

fn settings(name: &str) -> Settings {
    Settings {
        namespaces: vec!["web".to_owned()],
        image: "pgherd".to_owned(),
        postgres_images: [(17, "postgres:17".to_owned())].into(),
        listen: ([127, 0, 0, 1], 0).into(),
        leader_lease: "pgherd-operator".to_owned(),
        pod_name: name.to_owned(),
        pod_namespace: "pgherd-system".to_owned(),
    }
}

/// The way from an operator to the agents.
struct Wire {
    world: Arc<World>,
    node: Node,
    caller: Arc<Caller>,
}

impl AgentTransport for Wire {
    fn exchange<'a>(
        &'a self,
        agent: &'a AgentAddress,
        method: &'a Method,
        path: &'a str,
        body: &'a Bytes,
    ) -> BoxFuture<'a, Result<(StatusCode, Bytes), String>> {
        self.ask(agent, method, path, body).boxed()
    }
}

impl Wire {
    async fn ask(
        &self,
        agent: &AgentAddress,
        _method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let world = &self.world;
        if self.caller.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        world.while_frozen(self.node).await;
        let at = || world.running().into_iter().find(|instance| instance.ip == agent.ip);
        let there = at().map(|instance| instance.scope.node);
        let Some(there) = there else { return Err("connection refused".to_owned()) };
        let random = world.random.fork(&format!("{} {} {path}", self.caller.name, agent.pod));
        world.net.travel(&random, self.node, there).await;
        let Some(instance) = at() else { return Err("connection refused".to_owned()) };
        let (reply, answered) = oneshot::channel();
        let (path, body, server) = (path.to_owned(), body.clone(), Arc::clone(&instance));
        instance.scope.spawn(async move {
            // Whoever asked may have given up.
            let _ = reply.send(answer(&server, &path, &body).await);
        });
        let answer = answered.await.map_err(|_| "connection reset".to_owned())?;
        world.net.travel(&random, there, self.node).await;
        Ok(answer)
    }
}

//! A container of an instance: the real agent's state, Lease, renewal, decisions and status, over a simulated server. What
//! the real agent does to processes and files is restated in [`crate::actions`]; here are its tasks, among them the fencer.

use std::{
    net::IpAddr,
    os::unix::net::UnixDatagram,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use pgherd_agent::{
    agent::Agent,
    board::Board,
    clock::Boottime,
    fencer::{Fencer, Heartbeat, parse_heartbeat},
    gate::{Lookout, keep_gate_through},
    kubernetes_store::KubernetesRegister,
    layout::Layout,
    lease,
    machine::{DataView, LocalAction, LocalInput, PostgresView, decide_local},
    postgres::{
        config::Role,
        probe::{Admittance, ReceiverSample, Sample},
        sql::SqlError,
    },
    settings::Identity,
    status, turn,
};
use pgherd_core::{
    instance::{InstanceConfig, Phase, Standby},
    quorum::parse_receiver_name,
    register::Register,
};
use tokio::{sync::watch, time::sleep};

use crate::{
    actions::{self, Failed},
    api::{Caller, client},
    data::{Content, Volume},
    peers::Peers,
    postgres::Postgres,
    scope::{Scope, node_of},
    trace::note,
    world::World,
};

/// The machine looks at least this often.
const TURN: Duration = Duration::from_millis(500);
/// Exit code after a fencing.
pub(crate) const EXIT_FENCED: u8 = 75;

pub(crate) struct Instance {
    pub(crate) world: Arc<World>,
    pub(crate) number: u64,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) ip: IpAddr,
    pub(crate) scope: Arc<Scope>,
    pub(crate) agent: Arc<Agent>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) server: Mutex<Option<Arc<Postgres>>>,
    pub(crate) ended: watch::Sender<Option<u8>>,
    written_history: Mutex<String>,
    /// That the server has died was seen.
    pub(crate) died: AtomicBool,
}

impl Instance {
    /// Brings what the data directory knows of itself to where the agent reads it.
    pub(crate) fn write_local(&self) {
        let (layout, marker) = (&self.agent.layout, self.agent.layout.building_marker());
        let local = layout.pgdata.join(pgherd_agent::local_state::FILE_NAME);
        // What is not there need not be removed.
        self.volume.with(|content| match content {
            Content::Complete(data) => {
                std::fs::write(local, serde_json::to_vec(&data.local).unwrap()).unwrap();
                let _ = std::fs::remove_file(marker);
            }
            Content::Partial => std::fs::write(marker, "").unwrap(),
            Content::Empty => {
                let _ = std::fs::remove_file(marker);
                let _ = std::fs::remove_file(local);
            }
        });
    }

    /// Starts a container of a pod.
    pub(crate) fn start(
        world: &Arc<World>,
        pod: &str,
        uid: &str,
        ordinal: u32,
        ip: IpAddr,
        config: watch::Receiver<Arc<InstanceConfig>>,
    ) -> Arc<Self> {
        let number = world.next_number();
        let (run, volume) = (world.folder.path().join(number.to_string()), world.volume_folder(ordinal));
        std::fs::create_dir_all(&run).unwrap();
        std::fs::create_dir_all(volume.join("pgdata/pg_wal")).unwrap();
        let layout = Layout { pgdata: volume.join("pgdata"), volume, run, ..Layout::pod() };
        let identity = Identity {
            pod: pod.to_owned(),
            pod_uid: uid.to_owned(),
            namespace: "web".to_owned(),
            boot_nonce: format!("boot-{number}"),
            address: None,
        };
        let scope = Scope::new(node_of(ordinal));
        let caller = Arc::new(Caller { name: format!("agent {pod}"), node: scope.node, ..Caller::default() });
        let store = Arc::new(KubernetesRegister::new(client(world, &caller), "web", "shop"));
        let socket = UnixDatagram::bind(layout.fencer_socket()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let fencer = Fencer::at(&layout.fencer_socket());
        let board = Board::new(&identity);
        let peers = Arc::new(Peers { world: Arc::clone(world), node: scope.node, pod: pod.to_owned() });
        let agent = Agent::new(identity, layout, config, Box::new(Arc::clone(&store)), fencer, board);
        let agent = Arc::new(agent.with_peers(peers));
        let instance = Arc::new(Self {
            world: Arc::clone(world),
            number,
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            ip,
            scope: Arc::clone(&scope),
            agent: Arc::clone(&agent),
            volume: world.volume(ordinal),
            server: Mutex::default(),
            ended: watch::Sender::new(None),
            written_history: Mutex::default(),
            died: AtomicBool::new(false),
        });
        scope.spawn(async move { store.watch().await });
        scope.spawn(lease::watch_register(Arc::clone(&agent)));
        let gated = Arc::clone(&agent);
        scope.spawn(lease::keep_renewing(agent));
        let task = |of: &Arc<Self>| Arc::clone(of);
        let (sampler, disk, turner, fencing) = (task(&instance), task(&instance), task(&instance), task(&instance));
        scope.spawn(async move { sampler.keep_sampling().await });
        scope.spawn(async move { disk.keep_proving_the_disk().await });
        scope.spawn(async move { turner.turn().await });
        scope.spawn(async move { fencing.keep_fencing(&socket).await });
        let watched = task(&instance);
        let lookout = move || ServerLookout(Arc::clone(&watched));
        scope.spawn(async move { keep_gate_through(gated, lookout).await });
        instance
    }

    /// The container ends, whatever runs in it.
    pub(crate) fn end(&self, code: u8) {
        if self.ended.borrow().is_some() {
            return;
        }
        note(format!("container {} of {} ends with {code}", self.number, self.pod));
        if let Some(server) = self.server.lock().unwrap().take() {
            server.kill();
        }
        self.volume.unlock(self.number);
        self.ended.send_replace(Some(code));
        self.scope.kill();
    }

    pub(crate) fn was_fenced(&self) -> bool {
        *self.ended.borrow() == Some(EXIT_FENCED)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    pub(crate) fn server(&self) -> Option<Arc<Postgres>> {
        self.server.lock().unwrap().clone()
    }

    pub(crate) fn show_local(&self, local: &pgherd_agent::local_state::LocalState) {
        status::show_local(&self.agent, Some(local), Some(crate::world::SYSTEM_ID));
    }

    /// Restates the supervisor's loop: whatever queued up is read before the deadline is judged.
    async fn keep_fencing(&self, socket: &UnixDatagram) {
        let mut deadline: Option<Boottime> = None;
        let mut buffer = [0_u8; 64];
        loop {
            while let Ok(length) = socket.recv(&mut buffer) {
                match parse_heartbeat(&buffer[..length]) {
                    Some(Heartbeat::Arm(until)) => deadline = Some(until),
                    Some(Heartbeat::Disarm) => deadline = None,
                    None => {}
                }
            }
            let due = deadline.is_some_and(|deadline| Boottime::now() >= deadline);
            if due && self.world.mutant.fences() {
                note(format!("{} fences itself", self.pod));
                self.end(EXIT_FENCED);
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn keep_proving_the_disk(&self) {
        loop {
            let started = Boottime::now();
            let slow = self.volume.slow_ms.load(Ordering::SeqCst);
            sleep(Duration::from_millis(self.world.random.between(1, 5) + slow)).await;
            self.agent.note_disk_proof(started);
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn keep_sampling(&self) {
        loop {
            match self.sample_now().await {
                Some(_) => {}
                None if self.agent.sample().is_none() => status::show_silence(&self.agent),
                None => {}
            }
            sleep(Duration::from_millis(400)).await;
        }
    }

    /// Asks the server and shows the answer.
    pub(crate) async fn sample_now(&self) -> Option<Sample> {
        self.agent.role()?;
        let server = self.server()?;
        let (at, generation) = (Boottime::now(), self.agent.server.generation());
        sleep(Duration::from_millis(self.world.random.between(1, 8))).await;
        if !server.answers() {
            return None;
        }
        let sample = self.read_sample(&server, at, generation)?;
        status::show_sample(&self.agent, &sample);
        self.agent.publish_sample(sample.clone());
        Some(sample)
    }

    fn read_sample(&self, server: &Postgres, at: Boottime, generation: u64) -> Option<Sample> {
        let (system_id, received, replayed, history, slots) = self.volume.with(|content| {
            let data = content.data()?;
            let slots: Vec<(String, bool)> = data.slots.clone().into_iter().collect();
            Some((data.system_id.clone(), data.flushed_lsn(), data.lsn_at(data.replayed), data.history.clone(), slots))
        })?;
        let in_recovery = !server.is_primary();
        self.write_history(history.timeline.0, &history.render());
        let segment = received.0.saturating_sub(1) >> 24;
        let receiver = server.receiver().map(|receiver| ReceiverSample {
            pid: receiver.pid,
            streaming: receiver.streaming,
            silent_ms: u64::try_from(receiver.last_message.elapsed().as_millis()).unwrap(),
            host: format!("{}.shop-pods.web.svc", receiver.upstream),
        });
        Some(Sample {
            at,
            generation,
            in_recovery,
            server_version: 170_005,
            system_id,
            segment_bytes: 1 << 24,
            received,
            streamed: None,
            replayed: if in_recovery { replayed } else { received },
            wal_file: Some(format!("{:08X}{:08X}{:08X}", history.timeline.0, segment >> 8, segment & 0xFF)),
            synchronous_standby_names: server.names(),
            checkpointer_idle: true,
            replay_waits: true,
            replay_paused: false,
            pending_restart: Vec::new(),
            receiver,
            standbys: list_standbys(server),
            slots,
        })
    }

    fn admittance(&self) -> Option<Admittance> {
        let server = self.server().filter(|server| server.is_primary())?;
        let flushed = self.volume.with(|content| content.data().map(|data| data.flushed_lsn()))?;
        Some(Admittance { flushed, standbys: list_standbys(&server) })
    }

    /// The agent reads history files: from its folder.
    fn write_history(&self, timeline: u32, text: &str) {
        let mut written = self.written_history.lock().unwrap();
        let now = format!("{timeline}\n{text}");
        if *written != now {
            let path = self.agent.layout.pgdata.join("pg_wal").join(format!("{timeline:08X}.history"));
            std::fs::write(path, text).unwrap();
            *written = now;
        }
    }

    /// Restates `turn`: look, decide by the real rules, act, wait for a change.
    async fn turn(self: Arc<Self>) {
        let agent = Arc::clone(&self.agent);
        while !self.volume.lock(self.number) {
            agent.board.say(Phase::Waiting, "another container still uses the volume");
            sleep(Duration::from_millis(500)).await;
        }
        let (mut register, mut config) = (agent.register.subscribe(), agent.config_changes());
        let mut failures = 0_u32;
        while !agent.shutdown.is_cancelled() {
            agent.beat();
            let pause = tokio::select! {
                biased;
                () = agent.shutdown.cancelled() => break,
                pause = self.step(&mut failures) => pause,
            };
            tokio::select! {
                biased;
                () = agent.shutdown.cancelled() => break,
                () = agent.wake.notified() => {}
                _ = register.changed() => {}
                _ = config.changed() => {}
                () = sleep(pause) => {}
            }
        }
        actions::shut_down(&self).await;
        self.end(0);
    }

    async fn step(&self, failures: &mut u32) -> Duration {
        let _acting = self.agent.acting.lock().await;
        let outcome = self.decide_and_act().await;
        let Err(Failed { why, soon }) = outcome else {
            *failures = 0;
            return TURN;
        };
        *failures = failures.saturating_add(1);
        if failures.is_power_of_two() {
            note(format!("{} a step failed, try {failures}: {why}", self.pod));
        }
        self.agent.board.say(self.agent.board.status().phase, why);
        match (soon, *failures) {
            (true, ..20) => Duration::from_millis(100),
            (true, _) => Duration::from_secs(1),
            (false, failures) => {
                TURN.saturating_mul(2_u32.saturating_pow(failures.min(6))).min(Duration::from_secs(15))
            }
        }
    }

    async fn decide_and_act(&self) -> Result<(), Failed> {
        let agent = &self.agent;
        let Some(seen) = agent.register.borrow().clone() else {
            agent.board.say(Phase::Waiting, "");
            return Ok(());
        };
        let data = self.view_data();
        let action = self.decide(&seen.lease.register, &data);
        let (register, action) = if turn::needs_fresh_register(&action) {
            let fresh = lease::refresh(agent).await.map_err(actions::failed)?.lease.register;
            let action = self.decide(&fresh, &data);
            (fresh, action)
        } else {
            (seen.lease.register, action)
        };
        if agent.led_term().is_some() && !turn::is_for_primaries(&action) {
            actions::stop_now(self, "this pod is not primary any more");
        }
        if !matches!(
            action,
            LocalAction::KeepPrimary | LocalAction::KeepReplica { .. } | LocalAction::Wait(_) | LocalAction::Fail(_)
        ) {
            note(format!("{} {action:?} (term {})", self.pod, register.term));
        }
        actions::execute(self, &register, action).await
    }

    fn decide(&self, register: &Register, data: &DataView) -> LocalAction {
        let unsealed = Register { seal_term: register.term, ..register.clone() };
        let postgres = self.view_postgres();
        decide_local(&LocalInput {
            pod: &self.pod,
            pod_uid: &self.uid,
            register: if self.world.mutant.seals() { register } else { &unsealed },
            data,
            postgres: &postgres,
            instances: self.agent.config().instances,
            diverged: self.agent.diverged(),
        })
    }

    fn view_data(&self) -> DataView {
        let view = self.volume.with(|content| match content {
            Content::Empty => DataView::Absent,
            Content::Partial => DataView::Partial,
            Content::Complete(data) => DataView::Ready { local: data.local.clone(), system_id: data.system_id.clone() },
        });
        match &view {
            DataView::Ready { local, system_id } => status::show_local(&self.agent, Some(local), Some(system_id)),
            _ => status::show_local(&self.agent, None, None),
        }
        view
    }

    fn view_postgres(&self) -> PostgresView {
        let Some(server) = self.server() else { return PostgresView::Stopped };
        if server.is_stopped() {
            if !self.died.swap(true, Ordering::SeqCst) {
                note(format!("{}: PostgreSQL ended by itself", self.pod));
                self.agent.server.count_foreign_change();
            }
            return PostgresView::Died;
        }
        match self.agent.role() {
            Some(Role::Primary { .. }) => PostgresView::Primary,
            Some(Role::Standby { upstream, .. }) => {
                let sample = self.agent.sample();
                if sample.as_ref().is_some_and(|sample| !sample.in_recovery) && self.agent.led_term().is_none() {
                    return PostgresView::Primary;
                }
                PostgresView::Standby { ready: sample.is_some(), upstream: upstream.map(|upstream| upstream.pod) }
            }
            _ => PostgresView::Stopped,
        }
    }
}

fn list_standbys(server: &Postgres) -> Vec<Standby> {
    let senders = server.senders().into_iter();
    let standbys = senders.map(|(name, sender)| {
        let (member, term) = parse_receiver_name(&name);
        let (flush_lsn, replay_lsn) = (sender.flush, sender.flush);
        Standby { member, term, state: "streaming".to_owned(), flush_lsn, replay_lsn }
    });
    standbys.collect()
}

/// The gate's look at the simulated server.
struct ServerLookout(Arc<Instance>);

impl Lookout for ServerLookout {
    fn look<'a>(&'a mut self, _: &'a Agent) -> BoxFuture<'a, Result<Option<Admittance>, SqlError>> {
        async move {
            sleep(Duration::from_millis(self.0.world.random.between(1, 5))).await;
            match self.0.server() {
                Some(server) if server.answers() => Ok(self.0.admittance()),
                _ => Err(SqlError::Timeout),
            }
        }
        .boxed()
    }
}

//! A container of an instance: the real agent's state, Lease, renewal, decisions and status, over a simulated server. What
//! the real agent does to processes and files is restated in [`crate::actions`]; here are its tasks, among them the fencer.

use std::{
    net::IpAddr,
    os::unix::net::UnixDatagram,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use pgherd_agent::{
    agent::Agent,
    board::Board,
    clock::Boottime,
    fencer::{Fencer, Heartbeat, parse_heartbeat},
    kubernetes_store::KubernetesRegister,
    layout::Layout,
    lease,
    machine::{DataView, LocalAction, LocalInput, PostgresView, decide_local},
    postgres::{
        config::Role,
        probe::{ReceiverSample, Sample},
    },
    settings::Identity,
    status, turn,
};
use pgherd_core::{
    instance::{InstanceConfig, Phase, Standby},
    register::{MemberId, Register},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    actions::{self, Failed},
    api::{Caller, client},
    data::{Content, Volume},
    postgres::Postgres,
    scope::{Scope, node_of},
    trace::note,
    world::World,
};

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
}

impl Instance {
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
        let folder = world.folder.path().join(number.to_string());
        std::fs::create_dir_all(folder.join("pgdata/pg_wal")).unwrap();
        let layout = Layout { volume: folder.clone(), pgdata: folder.join("pgdata"), run: folder, ..Layout::pod() };
        let identity = Identity {
            pod: pod.to_owned(),
            pod_uid: uid.to_owned(),
            namespace: "web".to_owned(),
            boot_nonce: format!("boot-{number}"),
        };
        let scope = Scope::new(node_of(ordinal));
        let caller = Arc::new(Caller { name: format!("agent {pod}"), node: scope.node, ..Caller::default() });
        let store = Arc::new(KubernetesRegister::new(client(world, &caller), "web", "shop"));
        let socket = UnixDatagram::bind(layout.fencer_socket()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let fencer = Fencer::at(&layout.fencer_socket());
        let board = Board::new(&identity);
        let agent = Arc::new(Agent::new(identity, layout, config, Box::new(Arc::clone(&store)), fencer, board));
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
        });
        scope.spawn(async move { store.watch().await });
        scope.spawn(lease::watch_register(Arc::clone(&agent)));
        scope.spawn(lease::keep_renewing(agent));
        let task = |of: &Arc<Self>| Arc::clone(of);
        let (sampler, disk, turner, fencing) = (task(&instance), task(&instance), task(&instance), task(&instance));
        scope.spawn(async move { sampler.keep_sampling().await });
        scope.spawn(async move { disk.keep_proving_the_disk().await });
        scope.spawn(async move { turner.turn().await });
        scope.spawn(async move { fencing.keep_fencing(&socket).await });
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
        let at = Boottime::now();
        sleep(Duration::from_millis(self.world.random.between(1, 8))).await;
        if !server.answers() {
            return None;
        }
        let sample = self.read_sample(&server, at)?;
        status::show_sample(&self.agent, &sample);
        self.agent.publish_sample(sample.clone());
        Some(sample)
    }

    fn read_sample(&self, server: &Postgres, at: Boottime) -> Option<Sample> {
        let (system_id, received, replayed, history, slots) = self.volume.with(|content| {
            let data = content.data()?;
            let slots: Vec<(String, bool)> = data.slots.clone().into_iter().collect();
            Some((data.system_id.clone(), data.flushed_lsn(), data.lsn_at(data.replayed), data.history.clone(), slots))
        })?;
        let in_recovery = !server.is_primary();
        self.write_history(history.timeline.0, &history.render());
        let segment = received.0.saturating_sub(1) >> 24;
        let receiver = server.receiver().map(|receiver| ReceiverSample {
            streaming: receiver.streaming,
            silent_ms: u64::try_from(receiver.last_message.elapsed().as_millis()).unwrap(),
            host: format!("{}.shop-pods.web.svc", receiver.upstream),
        });
        let standbys = server.senders().into_iter().map(|(member, sender)| Standby {
            member: MemberId(member),
            state: "streaming".to_owned(),
            flush_lsn: sender.flush,
            replay_lsn: sender.flush,
        });
        Some(Sample {
            at,
            generation: 0,
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
            receiver,
            standbys: standbys.collect(),
            slots,
        })
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
        *failures = if outcome.is_ok() { 0 } else { failures.saturating_add(1) };
        if let Err(Failed(why)) = &outcome {
            note(format!("{} a step failed: {why}", self.pod));
            self.agent.board.say(self.agent.board.status().phase, why.clone());
        }
        Duration::from_millis(500).saturating_mul(2_u32.saturating_pow((*failures).min(1)))
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
            let fresh = lease::refresh(agent).await.map_err(|error| Failed(error.to_string()))?.lease.register;
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

//! A primary and its only voter, brought up with the fencer listened in on, and sessions as a client opens them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pgherd_agent::{
    clock::Boottime,
    fencer::{Fencer, Heartbeat, parse_heartbeat},
    run::wait_for_phase,
    tls::build_client_config,
};
use pgherd_core::{
    instance::{InstanceStatus, Phase},
    register::{Holder, Register, Term, Voter, VoterSet},
};
use tokio::net::UnixDatagram;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Cluster, Instance,
    takeover::{PATIENCE, streams, wait_for},
};

/// Term 1 of a new cluster that c-0 leads; a commit waits for `acks` voters.
pub fn new_register(acks: u32) -> Register {
    let holder =
        Holder { pod: "c-0".into(), pod_uid: "uid-0".into(), boot_nonce: String::new(), address: None, member: None };
    let quorum = VoterSet { voters: Vec::new(), acks };
    Register { term: Term(1), seal_term: Term(1), holder: Some(holder), quorum, ..Register::default() }
}

/// Connects over TCP as the application does; the server's error otherwise.
pub async fn connect_as_app(instance: &Instance) -> Result<tokio_postgres::Client, String> {
    let layout = &instance.agent.layout;
    let mut options = tokio_postgres::Config::new();
    options.host("localhost").port(layout.postgres_port).user("app").password("it's \\ secret").dbname("app");
    options.ssl_mode(tokio_postgres::config::SslMode::Require).connect_timeout(Duration::from_secs(5));
    let tls = MakeRustlsConnect::new(build_client_config(&layout.tls()).unwrap());
    match options.connect(tls).await {
        Ok((client, connection)) => {
            drop(tokio::spawn(connection));
            Ok(client)
        }
        Err(error) => Err(error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned())),
    }
}

/// Makes the replica the only voter of the primary, as the operator does: pending, past the barrier, committed.
pub async fn make_voter(cluster: &Cluster, primary: &Instance, replica: &InstanceStatus) {
    let voter = Voter { member: replica.member.clone().unwrap(), pod: replica.pod.clone() };
    cluster.register.edit(|register| register.pending = Some(VoterSet { voters: vec![voter], acks: 1 }));
    wait_for(primary, "past the barrier", |status| {
        status.applied_quorum.as_ref().is_some_and(|applied| applied.barrier_passed && applied.voters.len() == 1)
    })
    .await;
    cluster.register.edit(|register| register.quorum = register.pending.take().unwrap());
}

/// Brings up c-0 as primary and c-1 as its only voter. The primary's heartbeats are listened to.
pub async fn bring_up(cluster: &Cluster) -> (Instance, Instance, Deadline) {
    let (fencer, deadline) = listen(cluster, "c-0");
    let first = cluster.start_with("c-0", "uid-0", fencer);
    let second = cluster.start("c-1", "uid-1");
    wait_for_phase(&first.agent, Phase::Primary, PATIENCE).await.unwrap();
    let status = wait_for(&first, "up", |status| status.is_primary && status.system_id.is_some()).await;
    assert!(status.admits_clients, "a new cluster lets clients in at once");
    cluster.register.edit(|register| {
        register.system_id = status.system_id.clone();
        register.holder.as_mut().unwrap().member = status.member.clone();
    });
    let replica = wait_for(&second, "streaming", streams).await;
    make_voter(cluster, &first, &replica).await;
    wait_for(&second, "in term 1", |status| status.term == Term(1)).await;
    (first, second, deadline)
}

/// Until when the fencer would let PostgreSQL run as primary.
#[derive(Clone)]
pub struct Deadline(Arc<AtomicU64>);

impl Deadline {
    pub fn get(&self) -> Boottime {
        Boottime(self.0.load(Ordering::SeqCst))
    }

    pub fn has_passed(&self) -> bool {
        Boottime::now() >= self.get()
    }
}

/// Plays the supervisor's end of the fencing, but never kills.
fn listen(cluster: &Cluster, pod: &str) -> (Fencer, Deadline) {
    let path = cluster.layout(pod).fencer_socket();
    let socket = UnixDatagram::bind(&path).unwrap();
    let deadline = Deadline(Arc::new(AtomicU64::new(u64::MAX)));
    let shared = deadline.clone();
    drop(tokio::spawn(async move {
        let mut buffer = [0_u8; 64];
        while let Ok(length) = socket.recv(&mut buffer).await {
            match parse_heartbeat(&buffer[..length]) {
                Some(Heartbeat::Arm(until)) => shared.0.store(until.0, Ordering::SeqCst),
                Some(Heartbeat::Disarm) => shared.0.store(u64::MAX, Ordering::SeqCst),
                None => {}
            }
        }
    }));
    (Fencer::at(&path), deadline)
}

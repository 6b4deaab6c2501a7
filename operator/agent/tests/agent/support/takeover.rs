//! The steps that tests of several instances share: a cluster that runs, and the operator's part of a failover.

use std::time::Duration;

use pgherd_agent::{actions::seal::seal, lease, postgres::sql::Session, run::wait_for_phase};
use pgherd_core::{
    instance::{InstanceStatus, Phase},
    register::{Holder, Register, Term, Voter, VoterSet},
};
use tokio::time::{Instant, sleep};

use super::{Cluster, Instance};

/// A deadline that only a hang misses.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The register of a new cluster, held by `c-0`.
pub fn first_register() -> Register {
    Register {
        term: Term(1),
        seal_term: Term(1),
        holder: Some(holder("c-0", "uid-0")),
        quorum: VoterSet { voters: Vec::new(), acks: 1 },
        ..Register::default()
    }
}

pub fn holder(pod: &str, uid: &str) -> Holder {
    Holder { pod: pod.into(), pod_uid: uid.into(), boot_nonce: String::new(), address: None, member: None }
}

/// Waits until the instance's status is as wanted.
pub async fn wait_for(instance: &Instance, what: &str, check: impl Fn(&InstanceStatus) -> bool) -> InstanceStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = instance.agent.board.status();
        if check(&status) {
            return status;
        }
        assert!(Instant::now() < end, "not {what}: {status:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub fn streams(status: &InstanceStatus) -> bool {
    status.phase == Phase::Replica && status.receiver.as_ref().is_some_and(|receiver| receiver.streaming)
}

/// A data directory that was moved aside is there.
pub fn has_aside(instance: &Instance) -> bool {
    let mut entries = std::fs::read_dir(&instance.agent.layout.volume).unwrap().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with("pgdata.aside-"))
}

/// Waits until none is.
pub async fn wait_without_aside(instance: &Instance) {
    let end = Instant::now() + Duration::from_secs(60);
    while has_aside(instance) {
        assert!(Instant::now() < end, "what was moved aside is still there");
        sleep(Duration::from_millis(50)).await;
    }
}

pub async fn session(instance: &Instance, database: &str) -> Session {
    let layout = &instance.agent.layout;
    Session::connect(&layout.socket_dir, layout.postgres_port, database, Duration::from_secs(10)).await.unwrap()
}

fn voter_set(statuses: &[InstanceStatus]) -> VoterSet {
    let voter = |status: &InstanceStatus| Voter { member: status.member.clone().unwrap(), pod: status.pod.clone() };
    VoterSet { voters: statuses.iter().map(voter).collect(), acks: 1 }
}

/// Brings up `c-0` as primary and the others as its voters, of which one must flush a commit.
pub async fn bring_up(cluster: &Cluster, instances: usize) -> Vec<Instance> {
    let all: Vec<Instance> =
        (0..instances).map(|ordinal| cluster.start(&format!("c-{ordinal}"), &format!("uid-{ordinal}"))).collect();
    wait_for_phase(&all[0].agent, Phase::Primary, PATIENCE).await.unwrap();
    let status = wait_for(&all[0], "up", |status| status.is_primary && status.system_id.is_some()).await;
    cluster.register.edit(|register| {
        register.system_id = status.system_id.clone();
        register.holder.as_mut().unwrap().member = status.member.clone();
    });
    if instances == 1 {
        return all;
    }
    let mut replicas = Vec::new();
    for replica in &all[1..] {
        replicas.push(wait_for(replica, "streaming", streams).await);
    }
    let set = voter_set(&replicas);
    cluster.register.edit(|register| register.pending = Some(set));
    wait_for(&all[0], "past the barrier", |status| {
        let applied = status.applied_quorum.as_ref();
        applied.is_some_and(|applied| applied.barrier_passed && applied.voters.len() == replicas.len())
    })
    .await;
    cluster.register.edit(|register| register.quorum = register.pending.take().unwrap());
    for replica in &all[1..] {
        wait_for(replica, "in term 1", |status| status.term == Term(1)).await;
    }
    all
}

/// What the operator does beside a write: every agent reads the register anew, at once.
pub async fn wake(instances: &[&Instance]) {
    for instance in instances {
        lease::refresh(&instance.agent).await.unwrap();
        instance.agent.wake.notify_one();
    }
}

/// Seals these instances at once in `term`.
pub async fn seal_all(cluster: &Cluster, instances: &[&Instance], term: u64) {
    cluster.register.edit(|register| register.seal_term = Term(term));
    wake(instances).await;
    let seals = instances.iter().map(|instance| seal(&instance.agent, Term(term)));
    for report in futures::future::join_all(seals).await {
        report.unwrap();
    }
}

/// Makes `winner` the holder of `term`, with the others as voters, `acks` of which must flush a commit.
pub async fn claim(cluster: &Cluster, winner: &Instance, others: &[&Instance], term: u64, acks: u32) {
    let statuses: Vec<InstanceStatus> = others.iter().map(|other| other.agent.board.status()).collect();
    let member = winner.agent.board.status().member;
    let identity = &winner.agent.identity;
    cluster.register.edit(|register| {
        register.term = Term(term);
        register.seal_term = Term(term);
        register.released = false;
        register.handover = None;
        register.timeline = None;
        register.holder = Some(Holder { member, ..holder(&identity.pod, &identity.pod_uid) });
        register.quorum = VoterSet { acks, ..voter_set(&statuses) };
    });
    let mut all = vec![winner];
    all.extend(others);
    wake(&all).await;
}

/// Waits until the register says that its holder is down.
pub async fn wait_released(cluster: &Cluster) {
    let end = Instant::now() + PATIENCE;
    while !cluster.register.view().register.released {
        assert!(Instant::now() < end, "not released: {:?}", cluster.register.view());
        sleep(Duration::from_millis(2)).await;
    }
}

/// Writes one row as soon as the instance takes it, acknowledged by its voters.
pub async fn wait_write(instance: &Instance, statement: &str) {
    let layout = &instance.agent.layout;
    let end = Instant::now() + PATIENCE;
    loop {
        let patience = Duration::from_secs(20);
        if let Ok(open) = Session::connect(&layout.socket_dir, layout.postgres_port, "app", patience).await
            && open.execute(statement).await.is_ok()
        {
            return;
        }
        assert!(Instant::now() < end, "no write: {:?}", instance.agent.board.status());
        sleep(Duration::from_millis(10)).await;
    }
}

//! A pair of real instances: bootstrap, a replica, synchronous voters, seal, promotion, and the former primary's return.

use std::time::Duration;

use crate::support::{Cluster, Instance, ran_as_postgres};
use pgherd_agent::{actions::seal::seal, postgres::sql::Session, register_store::MemoryRegister, run::wait_for_phase};
use pgherd_core::{
    instance::{InstanceStatus, Phase},
    register::{Holder, Register, Term, Voter, VoterSet},
};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

fn holder(pod: &str, uid: &str) -> Holder {
    Holder { pod: pod.into(), pod_uid: uid.into(), boot_nonce: String::new(), address: None, member: None }
}

async fn wait_for(instance: &Instance, what: &str, check: impl Fn(&InstanceStatus) -> bool) -> InstanceStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = instance.agent.board.status();
        if check(&status) {
            return status;
        }
        assert!(Instant::now() < end, "not {what}: {status:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn session(instance: &Instance, database: &str) -> Session {
    let layout = &instance.agent.layout;
    Session::connect(&layout.socket_dir, layout.postgres_port, database, Duration::from_secs(10)).await.unwrap()
}

fn voters(status: &InstanceStatus) -> VoterSet {
    VoterSet { voters: vec![Voter { member: status.member.clone().unwrap(), pod: status.pod.clone() }], acks: 1 }
}

/// Brings up a primary and a replica that is its only voter.
async fn bring_up(cluster: &Cluster) -> (Instance, Instance) {
    let first = cluster.start("c-0", "uid-0");
    let second = cluster.start("c-1", "uid-1");
    wait_for_phase(&first.agent, Phase::Primary, PATIENCE).await.unwrap();
    let status = wait_for(&first, "up", |status| status.is_primary && status.system_id.is_some()).await;
    cluster.register.edit(|register| {
        register.system_id = status.system_id.clone();
        register.holder.as_mut().unwrap().member = status.member.clone();
    });
    let replica =
        wait_for(&second, "streaming", |status| status.receiver.as_ref().is_some_and(|receiver| receiver.streaming))
            .await;
    assert_eq!(replica.source.as_ref().unwrap().source, "instance");
    cluster.register.edit(|register| register.pending = Some(voters(&replica)));
    wait_for(&first, "past the barrier", |status| {
        status
            .applied_quorum
            .as_ref()
            .is_some_and(|applied| applied.barrier_passed && applied.voters.len() == 1 && applied.acks == 1)
    })
    .await;
    cluster.register.edit(|register| register.quorum = register.pending.take().unwrap());
    wait_for(&second, "in term 1", |status| status.term == Term(1)).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_over_and_the_former_primary_comes_back() {
    if ran_as_postgres("pair::a_replica_takes_over_and_the_former_primary_comes_back") {
        return;
    }
    let register = Register {
        term: Term(1),
        seal_term: Term(1),
        holder: Some(holder("c-0", "uid-0")),
        quorum: VoterSet { voters: Vec::new(), acks: 1 },
        ..Register::default()
    };
    let cluster = Cluster::new(MemoryRegister::new(register), 2);
    let (first, second) = bring_up(&cluster).await;
    session(&first, "app")
        .await
        .execute("CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1)")
        .await
        .unwrap();

    let root = cluster.root.path();
    let (first_line, answer) = first.ask(root, "replication", "GET", "/v1/status", "").await;
    assert!(first_line.contains("200") && answer.contains("\"phase\":\"Primary\""), "{first_line} {answer}");
    assert!(!answer.contains("secret"));
    let (refused, _) = second.ask(root, "replication", "POST", "/v1/seal", r#"{"term":9}"#).await;
    assert!(refused.contains("403"), "{refused}");
    let (woken, _) = second.ask(root, "operator", "POST", "/v1/wake", "").await;
    assert!(woken.contains("204"), "{woken}");

    // The replica is sealed: what the primary writes from now on reaches nobody, and what waits for a voter never commits.
    let report = seal(&second.agent, Term(2)).await.unwrap();
    assert_eq!((report.sealed_term, report.term), (Term(2), Term(1)));
    assert!(report.replayed_lsn >= report.received_lsn);
    let tail = "SET synchronous_commit = local; INSERT INTO public.t VALUES (2)";
    session(&first, "app").await.execute(tail).await.unwrap();
    cluster.register.edit(|register| register.seal_term = Term(2));
    wait_for(&first, "stopped as primary", |status| !status.is_primary).await;
    // The former primary answers as well, as a standby that follows nobody.
    let former = seal(&first.agent, Term(2)).await.unwrap();
    assert_eq!(former.history.timeline, report.history.timeline);

    let member = second.agent.board.status().member;
    cluster.register.edit(|register| {
        register.term = Term(2);
        register.holder = Some(Holder { member, ..holder("c-1", "uid-1") });
        register.quorum.acks = 0;
        register.quorum.voters.clear();
    });
    wait_for_phase(&second.agent, Phase::Primary, PATIENCE).await.unwrap();
    let rows = session(&second, "app").await.query("SELECT id FROM public.t", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(cluster.register.view().register.holder.unwrap().boot_nonce, second.agent.identity.boot_nonce);

    let back = wait_for(&first, "a replica", |status| {
        status.phase == Phase::Replica && status.receiver.as_ref().is_some_and(|receiver| receiver.streaming)
    })
    .await;
    assert_eq!(back.source.as_ref().unwrap().source, "rewind");
    assert_ne!(back.member, Some(former.member));
    wait_for(&first, "in term 2", |status| status.term == Term(2)).await;
    let rows = session(&first, "app").await.query("SELECT id FROM public.t", &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "the former primary kept a row that nobody else has");

    // A clean end of the primary gives the role back.
    second.terminate().await;
    assert!(cluster.register.view().register.released);
    first.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_postgres_dies_gives_its_role_back_and_can_be_asked() {
    if ran_as_postgres("pair::a_primary_whose_postgres_dies_gives_its_role_back_and_can_be_asked") {
        return;
    }
    let register =
        Register { term: Term(1), seal_term: Term(1), holder: Some(holder("c-0", "uid-0")), ..Register::default() };
    let cluster = Cluster::new(MemoryRegister::new(register), 2);
    let first = cluster.start("c-0", "uid-0");
    wait_for_phase(&first.agent, Phase::Primary, PATIENCE).await.unwrap();
    let status = wait_for(&first, "up", |status| status.is_primary).await;
    cluster.register.edit(|register| register.system_id = status.system_id.clone());

    let postmaster = pgherd_agent::postgres::stray::postmaster(&first.agent.layout.pgdata).unwrap();
    nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
    let died = Instant::now();
    while !cluster.register.view().register.released {
        assert!(died.elapsed() < Duration::from_secs(5), "not released: {:?}", first.agent.board.status());
        sleep(Duration::from_millis(20)).await;
    }
    cluster.register.edit(|register| register.seal_term = Term(2));
    wait_for(&first, "a waiting standby", |status| {
        status.postgres_up && !status.is_primary && status.sealed_term == Term(2)
    })
    .await;
    let report = seal(&first.agent, Term(2)).await.unwrap();
    assert_eq!(report.pod, "c-0");

    // Nobody else can take over: the same member is granted the next term, and begins a timeline of its own.
    cluster.register.edit(|register| {
        register.term = Term(2);
        register.released = false;
    });
    wait_for_phase(&first.agent, Phase::Primary, PATIENCE).await.unwrap();
    let status = wait_for(&first, "primary again", |status| status.is_primary).await;
    assert_eq!(status.history.unwrap().timeline.0, 2);
    first.terminate().await;
}

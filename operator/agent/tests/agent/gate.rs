//! A primary that was started again or promoted lets nobody in before its voters have what it had.

use std::{sync::Arc, time::Duration};

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{PATIENCE, session, wait_for},
    watched::{bring_up, connect_as_app, new_register},
};
use pgherd_agent::{postgres::stray, register_store::MemoryRegister, run::wait_for_phase};
use pgherd_core::{
    instance::{InstanceConfig, Phase},
    register::{Holder, Term, VoterSet},
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_primary_lets_nobody_in_until_its_voter_has_what_waited_for_it() {
    if ran_as_postgres("gate::a_restarted_primary_lets_nobody_in_until_its_voter_has_what_waited_for_it") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(new_register(1)), 2);
    let (first, second, _) = bring_up(&cluster).await;
    // Nobody is there to take over, so that a server that dies is started again in its term.
    let set_instances = |instances| {
        first.config.send_modify(|config| *config = Arc::new(InstanceConfig { instances, ..(**config).clone() }));
    };
    set_instances(1);
    session(&first, "app").await.execute("CREATE TABLE public.t (id int); GRANT ALL ON public.t TO app").await.unwrap();
    assert!(connect_as_app(&first).await.is_ok());

    // The voter is away, a commit waits for it, and the server dies: after its recovery the row would be there to see,
    // while a failover to the voter would make it disappear.
    second.terminate().await;
    let waiting = session(&first, "app").await;
    let commit = tokio::spawn(async move { waiting.execute("INSERT INTO public.t VALUES (1)").await });
    let watcher = session(&first, "app").await;
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let end = Instant::now() + PATIENCE;
    while watcher.query(waits, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < end, "the commit does not wait");
        sleep(Duration::from_millis(20)).await;
    }
    let postmaster = stray::postmaster(&first.agent.layout.pgdata).unwrap();
    nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(commit.await.unwrap().is_err());

    let closed = wait_for(&first, "closed", |status| status.message.contains("missing: c-1 (not connected)")).await;
    assert!(closed.phase == Phase::Starting && !closed.admits_clients, "{closed:?}");
    wait_for(&first, "running", |status| status.is_primary && !status.admits_clients).await;
    let refused = connect_as_app(&first).await.err().unwrap();
    assert!(refused.contains("pg_hba.conf rejects"), "{refused}");
    let rows = session(&first, "app").await.query("SELECT id FROM public.t", &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "the local superuser may look");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(first.agent.board.status().phase, Phase::Starting);

    set_instances(2);
    let second = cluster.start("c-1", "uid-1");
    wait_for_phase(&first.agent, Phase::Primary, PATIENCE).await.unwrap();
    let seen = first.agent.board.status();
    assert!(seen.admits_clients, "{seen:?}");
    let flushed = second.agent.board.status();
    let client = connect_when_reloaded(&first).await;
    assert_eq!(client.query("SELECT id FROM t", &[]).await.unwrap().len(), 1, "{flushed:?}");

    // Once open it stays open: a loss of the voter is no reason to send clients away.
    second.terminate().await;
    sleep(Duration::from_secs(2)).await;
    let status = first.agent.board.status();
    assert!(status.admits_clients && status.phase == Phase::Primary, "{status:?}");
    assert!(connect_as_app(&first).await.is_ok());
    first.terminate().await;
}

/// The postmaster reads its files a moment after it was told to.
async fn connect_when_reloaded(instance: &crate::support::Instance) -> tokio_postgres::Client {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match connect_as_app(instance).await {
            Ok(client) => return client,
            Err(why) => assert!(Instant::now() < end, "{why}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_primary_without_voters_stays_closed_and_says_so() {
    if ran_as_postgres("gate::a_promoted_primary_without_voters_stays_closed_and_says_so") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(new_register(1)), 2);
    let (first, second, _) = bring_up(&cluster).await;
    first.terminate().await;
    cluster.register.edit(|register| register.seal_term = Term(2));
    let report = pgherd_agent::actions::seal::seal(&second.agent, Term(2)).await.unwrap();
    // As `register_claimed` writes it: what was acknowledged lies on the winner, and there is no other voter.
    cluster.register.edit(|register| {
        register.term = Term(2);
        register.released = false;
        register.pending = Some(VoterSet { voters: Vec::new(), acks: 1 });
        register.holder = Some(Holder {
            pod: "c-1".into(),
            pod_uid: "uid-1".into(),
            boot_nonce: String::new(),
            address: None,
            member: Some(report.member),
        });
    });
    let closed = wait_for(&second, "promoted and closed", |status| {
        status.is_primary && status.message.contains("there are no such voters")
    })
    .await;
    assert!(closed.phase == Phase::Promoting && !closed.admits_clients, "{closed:?}");
    let refused = connect_as_app(&second).await.err().unwrap();
    assert!(refused.contains("pg_hba.conf rejects"), "{refused}");

    // The user gives the promise up: the gate opens at once.
    cluster.register.edit(|register| register.pending = Some(VoterSet::default()));
    wait_for_phase(&second.agent, Phase::Primary, PATIENCE).await.unwrap();
    connect_when_reloaded(&second).await;
    assert!(second.agent.board.status().admits_clients);
    second.terminate().await;
}

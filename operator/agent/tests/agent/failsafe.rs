//! The API server is away: a primary goes on by the word of its peers and no longer, and whoever vouched does not seal.

use std::time::Duration;

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{PATIENCE, session},
    watched::{bring_up, new_register},
};
use pgherd_agent::{
    actions::seal::{SealError, seal},
    clock::Boottime,
    register_store::MemoryRegister,
};
use pgherd_core::{
    instance::{Phase, Timings},
    register::Term,
};
use tokio::time::{Instant, sleep};

/// Short, so that the test is; the relations are those of the real ones.
const TIMINGS: Timings = Timings { renew_ms: 500, fence_ms: 3_000, take_over_ms: 12_000, silence_ms: 4_000 };

fn cluster(instances: u32) -> Cluster {
    let mut cluster = Cluster::new(MemoryRegister::new(new_register(1)), instances);
    cluster.config.timings = TIMINGS;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_goes_on_by_the_word_of_its_voter_which_does_not_seal_before_the_primary_is_gone() {
    if ran_as_postgres(
        "failsafe::a_primary_goes_on_by_the_word_of_its_voter_which_does_not_seal_before_the_primary_is_gone",
    ) {
        return;
    }
    let cluster = cluster(2);
    let (first, second, deadline) = bring_up(&cluster).await;
    session(&first, "app").await.execute("CREATE TABLE public.t (id int)").await.unwrap();

    // Longer than the fencing time, with an API server that answers nothing, and then with none at all: no stop, and
    // commits go on.
    let began = Instant::now();
    for fault in ["hangs", "is away"] {
        cluster.register.set_hanging(fault == "hangs");
        cluster.register.set_reachable(fault != "is away");
        let until = Instant::now() + Duration::from_millis(3 * TIMINGS.fence_ms);
        while Instant::now() < until {
            assert!(!deadline.has_passed(), "{fault}: the fencer would have stopped it after {:?}", began.elapsed());
            assert_eq!(first.agent.board.status().phase, Phase::Primary);
            session(&first, "app").await.execute("INSERT INTO public.t VALUES (1)").await.unwrap();
            sleep(Duration::from_millis(50)).await;
        }
    }
    let message = first.agent.board.status().message;
    assert!(message.contains("enough other instances vouch"), "{message}");
    let (line, status) = second.ask(cluster.root.path(), "operator", "GET", "/v1/status", "").await;
    assert!(line.contains("200") && status.contains("\"vouch\":{\"term\":1"), "{line} {status}");

    // A failover that begins now is held up, also over a restart of the peer, and the peer vouches no more.
    let body = r#"{"term":2}"#;
    let (line, why) = second.ask(cluster.root.path(), "operator", "POST", "/v1/seal", body).await;
    assert!(line.contains("409") && why.contains("vouches for the primary of term 1"), "{line} {why}");
    second.terminate().await;
    let second = cluster.start("c-1", "uid-1");
    assert!(matches!(seal(&second.agent, Term(2)).await, Err(SealError::Vouching(_))));
    let report = loop {
        match seal(&second.agent, Term(2)).await {
            Ok(report) => break report,
            Err(SealError::Vouching(_)) => sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "the promise does not lapse");
    };
    let killed_by = deadline.get().plus_millis(1_000);
    assert!(Boottime::now() > killed_by, "sealed while the old primary may still run");
    assert_eq!(report.sealed_term, Term(2));
    let (line, why) = second.ask(cluster.root.path(), "replication", "POST", "/v1/vouch", VOUCH).await;
    assert!(line.contains("409"), "{line} {why}");
    assert!(deadline.has_passed());
    first.terminate().await;
    second.terminate().await;
}

const VOUCH: &str = r#"{"term":1,"pod":"c-0","podUid":"uid-0","forMs":5000}"#;

#[tokio::test(flavor = "multi_thread")]
async fn without_its_voter_a_primary_does_not_go_on_and_renews_at_once_when_the_api_server_is_back() {
    if ran_as_postgres(
        "failsafe::without_its_voter_a_primary_does_not_go_on_and_renews_at_once_when_the_api_server_is_back",
    ) {
        return;
    }
    let cluster = cluster(2);
    let (first, second, deadline) = bring_up(&cluster).await;
    second.terminate().await;
    cluster.register.set_reachable(false);
    let cut = Boottime::now();
    while !deadline.has_passed() {
        assert!(Boottime::now().since(cut) < PATIENCE, "it goes on for ever");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(deadline.get() < cut.plus_millis(TIMINGS.fence_ms), "counted from before the last good renewal");
    let message = first.agent.board.status().message;
    assert!(message.contains("do not vouch") && message.contains("c-1"), "{message}");

    // (A real fencer has stopped it by now.) The first answer of the API server renews.
    let version = cluster.register.view().version;
    cluster.register.set_reachable(true);
    let back = Instant::now();
    while cluster.register.view().version == version {
        assert!(back.elapsed() < Duration::from_secs(5), "not renewed");
        sleep(Duration::from_millis(10)).await;
    }
    first.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vouching_is_for_the_holder_alone_and_for_the_clusters_own_instances() {
    if ran_as_postgres("failsafe::vouching_is_for_the_holder_alone_and_for_the_clusters_own_instances") {
        return;
    }
    let cluster = cluster(2);
    let (first, second, _) = bring_up(&cluster).await;
    let root = cluster.root.path();
    for (body, code) in [
        (VOUCH, "200"),
        (r#"{"term":1,"pod":"c-0","podUid":"a twin","forMs":5000}"#, "409"),
        (r#"{"term":1,"pod":"c-1","podUid":"uid-1","forMs":5000}"#, "400"),
        (r#"{"term":1,"pod":"c-0","podUid":"uid-0","forMs":60001}"#, "400"),
    ] {
        let (line, why) = second.ask(root, "replication", "POST", "/v1/vouch", body).await;
        assert!(line.contains(code), "{body}: {line} {why}");
    }
    let (line, _) = first.ask(root, "replication", "POST", "/v1/vouch", VOUCH.replace("c-0", "c-1").as_str()).await;
    assert!(line.contains("409"), "a primary vouches for nobody: {line}");
    let (line, _) = first.ask(root, "tls", "POST", "/v1/vouch", VOUCH).await;
    assert!(line.contains("403"), "{line}");
    // What the API server says counts for more than what a holder asks for.
    cluster.register.edit(|register| register.seal_term = Term(2));
    let refused = async {
        loop {
            let (line, why) = second.ask(root, "replication", "POST", "/v1/vouch", VOUCH).await;
            if line.contains("409") {
                return why;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let why = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!(why.contains("term 2"), "{why}");
    first.terminate().await;
    second.terminate().await;
}

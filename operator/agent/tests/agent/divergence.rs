//! A former primary that wrote what nobody else has: its tail is kept and reported, and a rewind that is cut off leads to a
//! new copy.

use std::time::Duration;

use crate::support::{
    Cluster, Instance,
    archive::CLIENT,
    minio::{self, Minio},
    programs::ran_with_rewind,
    takeover::{bring_up, claim, first_register, session, streams, wait_for, wait_without_aside, wake},
};
use pgherd_agent::{actions::seal::seal, register_store::MemoryRegister};
use pgherd_core::register::Term;
use tokio::time::{Instant, sleep};

/// The replica leads term 2, and the former primary has a row of its own.
async fn diverge(cluster: &Cluster, first: &Instance, second: &Instance) {
    session(first, "app").await.execute("CREATE TABLE public.t (id int)").await.unwrap();
    seal(&second.agent, Term(2)).await.unwrap();
    let lost = "SET synchronous_commit = local; INSERT INTO public.t SELECT generate_series(1, 1000)";
    session(first, "app").await.execute(lost).await.unwrap();
    cluster.register.edit(|register| register.seal_term = Term(2));
    wake(&[first, second]).await;
    wait_for(first, "stopped as primary", |status| !status.is_primary).await;
    claim(cluster, second, &[], 2, 0).await;
    wait_for(second, "primary", |status| status.is_primary).await;
}

async fn count(instance: &Instance) -> i64 {
    let rows = session(instance, "app").await.query("SELECT count(*) FROM public.t", &[]).await.unwrap();
    rows[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_divergent_tail_is_kept_in_the_store_and_still_shown_after_a_restart() {
    if minio::ran_as_postgres("divergence::the_divergent_tail_is_kept_in_the_store_and_still_shown_after_a_restart") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let minio = Minio::start(cluster.root.path()).await;
    // pg_rewind gets from it what the archive has yet to get.
    cluster.stand_in(CLIENT);
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    let former = first.agent.board.status().member.unwrap();
    diverge(&cluster, &first, &second).await;
    let back = wait_for(&first, "a replica", |status| streams(status) && status.divergent.is_some()).await;
    assert_eq!(back.source.unwrap().source, "rewind");
    assert_eq!(count(&first).await, 0, "a row that nobody else had is still there");

    let tail = back.divergent.unwrap();
    let (prefix, error) = (tail.kept_at.clone(), tail.error.clone());
    assert!(tail.to_lsn > tail.from_lsn && tail.timeline.0 == 1 && error.is_none(), "{tail:?}");
    let prefix = prefix.unwrap();
    assert!(prefix.ends_with(&format!("/divergent/1-{former}/")), "{prefix}");
    let switch = second.agent.board.status().history.unwrap().ancestors[0].switch_lsn;
    assert_eq!(tail.from_lsn, switch);
    let kept = minio.store().await.list(&prefix).await.unwrap();
    assert!(!kept.is_empty() && kept.iter().all(|(key, size)| key.ends_with(".zst") && *size > 0), "{kept:?}");

    first.terminate().await;
    let again = cluster.start("c-0", "uid-0");
    let shown = wait_for(&again, "a replica", streams).await;
    assert_eq!(shown.divergent, Some(tail));
    again.terminate().await;
    second.terminate().await;
}

/// A pg_rewind that destroys its target and then hangs.
const CUT_OFF: &str = "#!/bin/sh\nfor a in \"$@\"; do case $a in --target-pgdata=*) d=${a#*=};; esac; done\n\
    rm -f \"$d/global/pg_control\"\ntouch \"$d/../rewinding\"\nexec sleep 600\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_that_was_cut_off_leads_to_a_new_copy_and_the_old_data_stays_until_that_streams() {
    const NAME: &str =
        "divergence::a_rewind_that_was_cut_off_leads_to_a_new_copy_and_the_old_data_stays_until_that_streams";
    if ran_with_rewind(NAME, CUT_OFF) {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    diverge(&cluster, &first, &second).await;
    let layout = cluster.layout("c-0");
    let end = Instant::now() + Duration::from_secs(90);
    while !layout.volume.join("rewinding").exists() {
        assert!(Instant::now() < end, "pg_rewind is not run: {:?}", first.agent.board.status());
        sleep(Duration::from_millis(20)).await;
    }
    // The agent ends in the middle of it.
    first.terminate().await;
    assert!(layout.building_marker().exists() && !layout.pgdata.join("global/pg_control").exists());

    let again = cluster.start("c-0", "uid-0");
    let back = wait_for(&again, "a replica", streams).await;
    let source = back.source.unwrap();
    assert_eq!(source.source, "instance");
    assert!(source.reason.starts_with("pg_rewind was interrupted"), "{}", source.reason);
    assert_eq!(count(&again).await, 0);
    wait_without_aside(&again).await;
    again.terminate().await;
    second.terminate().await;
}

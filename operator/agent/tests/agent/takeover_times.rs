//! Where the time of a take-over goes on the agents' side, printed; the test itself only demands that it ends.

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{bring_up, claim, first_register, seal_all, session, streams, wait_for, wait_released, wait_write},
};
use pgherd_agent::{postgres::stray, register_store::MemoryRegister};
use tokio::time::Instant;

const ROW: &str = "INSERT INTO public.t VALUES (1)";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postmaster_is_followed_by_a_release_a_seal_and_a_promotion() {
    if ran_as_postgres("takeover_times::a_killed_postmaster_is_followed_by_a_release_a_seal_and_a_promotion") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 3);
    let all = bring_up(&cluster, 3).await;
    session(&all[0], "app").await.execute("CREATE TABLE public.t (id int)").await.unwrap();
    let rounds: u64 = std::env::var("PGHERD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut current = 0;
    for round in 0..rounds {
        let others: Vec<&Instance> = (0..3).filter(|index| *index != current).map(|index| &all[index]).collect();
        for other in &others {
            wait_for(other, "streaming", streams).await;
        }
        wait_write(&all[current], ROW).await;
        let started = Instant::now();
        let postmaster = stray::postmaster(&all[current].agent.layout.pgdata).unwrap();
        nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
        wait_released(&cluster).await;
        let released = started.elapsed();
        seal_all(&cluster, &others, round + 2).await;
        let sealed = started.elapsed() - released;
        claim(&cluster, others[0], &others[1..], round + 2, 1).await;
        let claimed = Instant::now();
        wait_for(others[0], "primary", |status| status.is_primary).await;
        let promoted = claimed.elapsed();
        wait_write(others[0], ROW).await;
        let written = claimed.elapsed();
        println!(
            "round {round}: released after {released:?}, sealed after {sealed:?}, claim to primary {promoted:?}, claim to an acknowledged write {written:?}, in all {:?}",
            started.elapsed()
        );
        let next = (0..3).find(|index| all[*index].agent.identity.pod == others[0].agent.identity.pod);
        current = next.unwrap();
    }
    for instance in all {
        instance.terminate().await;
    }
}

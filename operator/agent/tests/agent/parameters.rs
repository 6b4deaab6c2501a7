//! Parameters that a standby must have as high as its primary, and those that PostgreSQL does not take.

use std::collections::BTreeMap;

use pgherd_agent::{board::Board, parameters::accept_parameters, register_store::MemoryRegister};
use pgherd_core::instance::Phase;

use crate::support::{
    Cluster, Instance, ran_as_postgres,
    takeover::{bring_up, first_register, session, streams, wait_for, wait_write},
};

async fn max_connections(instance: &Instance) -> String {
    session(instance, "postgres").await.query("SHOW max_connections", &[]).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_keeps_up_with_a_primary_that_was_started_with_more() {
    if ran_as_postgres("parameters::a_standby_keeps_up_with_a_primary_that_was_started_with_more") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    // Only the primary starts with it; the standby would pause its replay for good.
    first.terminate().await;
    cluster.register.edit(|register| register.released = false);
    cluster.config.parameters.insert("max_connections".to_owned(), "150".to_owned());
    let first = cluster.start("c-0", "uid-0");
    wait_for(&first, "primary again", |status| status.phase == Phase::Primary).await;
    wait_write(&first, "CREATE TABLE public.t AS SELECT 1 AS n").await;
    let replayed = first.agent.board.status().received_lsn;
    wait_for(&second, "a standby that replays", |status| streams(status) && status.replayed_lsn >= replayed).await;
    assert_eq!(max_connections(&second).await, "150");

    // Lowered, it holds for the standby as long as the primary runs with it.
    second.terminate().await;
    cluster.config.parameters.remove("max_connections");
    let second = cluster.start("c-1", "uid-1");
    wait_for(&second, "streaming", streams).await;
    assert_eq!(max_connections(&second).await, "150");
    second.terminate().await;
    first.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_does_not_take_keeps_its_value_or_is_left_out_and_is_named() {
    if ran_as_postgres("parameters::what_postgresql_does_not_take_keeps_its_value_or_is_left_out_and_is_named") {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let (layout, identity) = (cluster.layout("c-0"), cluster.identity("c-0", "uid-0"));
    let board = Board::new(&identity);
    let good =
        [("work_mem", "8MB"), ("log_min_duration_statement", "250"), ("pg_stat_statements.max", "what it likes")];
    let bad = [
        ("work_mem", "12 potatoes"),
        ("no_such_thing", "1"),
        ("max_connections", "0"),
        ("log_statement", "sometimes"),
        ("search_path", "\"$user"),
    ];
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let wanted = |pairs: &[(&str, &str)]| {
        let mut config = cluster.config.clone();
        config.parameters = map(pairs);
        config
    };
    let all: Vec<(&str, &str)> = good.into_iter().chain(bad).collect();

    // The later of two values of the same name is the one that is wanted: there is nothing from before.
    let accepted = accept_parameters(&layout, &board, wanted(&all)).await.parameters;
    assert_eq!(accepted, map(&good[1..]));
    let refused = board.status().refused_parameters;
    for (name, said) in [
        ("work_mem", "Valid units for this parameter"),
        ("no_such_thing", "unrecognized configuration parameter"),
        ("max_connections", "outside the valid range"),
        ("log_statement", "Available values: none, ddl, mod, all"),
        ("search_path", "List syntax is invalid"),
    ] {
        let told: Vec<&String> = refused.iter().filter(|told| told.starts_with(&format!("{name}: "))).collect();
        assert!(
            told.len() == 1 && told[0].contains(said) && !told[0].contains("postgresql.conf"),
            "{name}: {refused:?}"
        );
    }

    assert_eq!(accept_parameters(&layout, &board, wanted(&good)).await.parameters, map(&good));
    assert!(board.status().refused_parameters.is_empty());
    let accepted = accept_parameters(&layout, &board, wanted(&all)).await;
    assert_eq!(accepted.parameters, map(&good), "the earlier value of work_mem stays");
    assert_eq!(board.status().refused_parameters.len(), bad.len());

    // The server starts with it.
    cluster.config = accepted;
    let instance = cluster.start("c-0", "uid-0");
    wait_for(&instance, "primary", |status| status.phase == Phase::Primary).await;
    let shown: String = session(&instance, "postgres").await.query("SHOW work_mem", &[]).await.unwrap()[0].get(0);
    assert_eq!(shown, "8MB");
    instance.terminate().await;
}

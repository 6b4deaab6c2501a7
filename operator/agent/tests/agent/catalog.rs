//! The primary names databases whose text was sorted by another version of their collation, and roles whose commits wait for nobody.

use pgherd_agent::{catalog::observe, register_store::MemoryRegister};

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{bring_up, first_register, session},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_another_version_sorted_is_named() {
    if ran_as_postgres("catalog::a_database_that_another_version_sorted_is_named") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let primary = bring_up(&cluster, 1).await.pop().unwrap();
    let session = session(&primary, "postgres").await;
    // There is no replica that a commit could wait for.
    session.execute("SET synchronous_commit = local").await.unwrap();
    let create = "CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'und'";
    session.execute(create).await.unwrap();
    session.execute("UPDATE pg_database SET datcollversion = '0.1' WHERE datname = 'sorted'").await.unwrap();
    let found = observe(&primary.agent).await.unwrap();
    let stale = found.stale_collations;
    assert!(found.weak_commits.is_empty(), "{:?}", found.weak_commits);
    assert!(stale.len() == 1 && stale[0].starts_with("sorted (made with 0.1, now "), "{stale:?}");
    primary.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_databases_whose_commits_wait_for_no_replicas_disk_are_named() {
    if ran_as_postgres("catalog::roles_and_databases_whose_commits_wait_for_no_replicas_disk_are_named") {
        return;
    }
    let cluster = Cluster::new(MemoryRegister::new(first_register()), 1);
    let primary = bring_up(&cluster, 1).await.pop().unwrap();
    let session = session(&primary, "postgres").await;
    session.execute("SET synchronous_commit = local").await.unwrap();
    for statement in [
        "CREATE ROLE hasty",
        "CREATE ROLE careful",
        "ALTER ROLE hasty SET synchronous_commit = off",
        "ALTER ROLE careful SET synchronous_commit = remote_apply",
        "ALTER ROLE careful IN DATABASE postgres SET synchronous_commit = 'Remote_Write'",
        "ALTER DATABASE template1 SET synchronous_commit = 'false'",
    ] {
        session.execute(statement).await.unwrap();
    }
    let weak = observe(&primary.agent).await.unwrap().weak_commits.join("; ").to_lowercase();
    let wanted = "database template1: synchronous_commit=false; \
                  role careful in database postgres: synchronous_commit=remote_write; role hasty: synchronous_commit=off";
    assert_eq!(weak, wanted);
    primary.terminate().await;
}

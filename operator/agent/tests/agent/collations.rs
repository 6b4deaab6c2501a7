//! A database whose text was sorted by another version of its collation is named by the primary.

use pgherd_agent::{collations::observe_stale, register_store::MemoryRegister};

use crate::support::{
    Cluster, ran_as_postgres,
    takeover::{bring_up, first_register, session},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_another_version_sorted_is_named() {
    if ran_as_postgres("collations::a_database_that_another_version_sorted_is_named") {
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
    let stale = observe_stale(&primary.agent).await.unwrap();
    assert!(stale.len() == 1 && stale[0].starts_with("sorted (made with 0.1, now "), "{stale:?}");
    primary.terminate().await;
}

//! The tests on a real Kubernetes: one file per behaviour, each in a namespace of its own. They print what they measured.
//!
//! `make e2e` runs them, one at a time, since some of them cut nodes off. They look at the cluster from outside only, as a
//! user does: objects, Services, psql, the store.
#![forbid(unsafe_code)]

mod backup_restore;
mod bad_input;
mod checks;
mod create;
mod encryption;
mod failover;
mod failover_off;
mod failover_required;
mod import;
mod incremental;
mod killed_backup;
mod manifests;
mod replica_from_backup;
mod restore_in_place;
mod retention;
mod scale;
mod secrecy;
mod store_outage;
mod verification;

use kube::Client;
use pgherd_e2e::{Result, cluster, namespace, nodes, store};
use tokio::sync::OnceCell;

static OPERATOR: OnceCell<()> = OnceCell::const_new();

/// Runs a test in a namespace of its own, with the store's credentials in it, the operator installed, all nodes plugged
/// in, and nothing of an earlier run in the store.
async fn in_namespace(name: &str, test: impl AsyncFnOnce(&Client, &str) -> Result<()>) -> Result<()> {
    let client = cluster::connect().await?;
    nodes::heal_all().await;
    OPERATOR.get_or_try_init(install_operator).await?;
    namespace::with_namespace(name, async |namespace| {
        store::forget(&format!("{namespace}/")).await?;
        store::provide_credentials(&client, namespace).await?;
        test(&client, namespace).await
    })
    .await
}

/// `PGHERD_E2E_INSTALLED=1` says that the operator is there already, as this checkout builds it.
async fn install_operator() -> Result<()> {
    if std::env::var("PGHERD_E2E_INSTALLED").is_ok_and(|value| value == "1") {
        return Ok(());
    }
    cluster::install_operator().await
}

//! The tests on a real Kubernetes: one file per behaviour, each in a namespace of its own. They print what they measured.
//!
//! `make e2e` runs them: those in `alone` one at a time, since some of them cut nodes off; those in `together` a few at once. They
//! look at the cluster from outside only, as a user does: objects, Services, psql, the store.
#![forbid(unsafe_code)]

mod alone;
mod checks;
mod failover;
mod manifests;
mod secrecy;
mod together;

use kube::Client;
use pgherd_e2e::{Result, cluster, namespace, nodes, store};
use tokio::sync::{OnceCell, RwLock};

static OPERATOR: OnceCell<()> = OnceCell::const_new();
/// Shared by the tests that run together. It is fair: who wants it alone gets it before those who come later.
static CLUSTER: RwLock<()> = RwLock::const_new(());

/// Runs a test in a namespace of its own, with the store's credentials in it, the operator installed, all nodes plugged
/// in, and nothing of an earlier run in the store. Others of its kind run at the same time.
async fn in_namespace(name: &str, test: impl AsyncFnOnce(&Client, &str) -> Result<()>) -> Result<()> {
    let _shared = CLUSTER.read().await;
    prepare(name, test).await
}

/// As [`in_namespace`], while no other test runs.
async fn alone_in_namespace(name: &str, test: impl AsyncFnOnce(&Client, &str) -> Result<()>) -> Result<()> {
    let _exclusive = CLUSTER.write().await;
    nodes::heal_all().await;
    prepare(name, test).await
}

async fn prepare(name: &str, test: impl AsyncFnOnce(&Client, &str) -> Result<()>) -> Result<()> {
    let client = cluster::connect().await?;
    OPERATOR.get_or_try_init(install_operator).await?;
    namespace::with_namespace(name, async |namespace| {
        store::await_answer().await?;
        store::forget(&format!("{namespace}/")).await?;
        store::provide_credentials(&client, namespace).await?;
        test(&client, namespace).await
    })
    .await
}

/// `PGHERD_E2E_INSTALLED=1` says that the operator is there already, as this checkout builds it.
async fn install_operator() -> Result<()> {
    nodes::heal_all().await;
    if std::env::var("PGHERD_E2E_INSTALLED").is_ok_and(|value| value == "1") {
        return Ok(());
    }
    cluster::install_operator().await
}

//! The writer as tests use it: a pod in the cluster, reached through the API server's pod proxy.

use kube::Client;
use serde::de::DeserializeOwned;

use crate::{
    Result,
    cluster::PATIENCE,
    kubectl::{apply, kubectl},
    ledger::{LedgerReport, Verification},
    wait::{Look, until},
};

/// A running writer.
#[derive(Clone)]
pub struct WriterPod {
    client: Client,
    namespace: String,
}

impl WriterPod {
    /// Starts the writer against `<cluster>-rw` on a node that is not `avoid_node`, and waits for its first row.
    ///
    /// # Errors
    /// The pod was not made or wrote nothing in time.
    pub async fn start(client: &Client, namespace: &str, cluster: &str, avoid_node: &str) -> Result<Self> {
        Self::start_with(client, namespace, cluster, avoid_node, 0).await
    }

    /// As [`Self::start`], with clients that append to lists and one that reads what is there.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        client: &Client,
        namespace: &str,
        cluster: &str,
        avoid_node: &str,
        appenders: u32,
    ) -> Result<Self> {
        let more = format!("CLUSTER-rw.NAMESPACE.svc, --appenders, \"{appenders}\"]");
        let manifest = include_str!("../demo/writer.yaml")
            .replace("CLUSTER-rw.NAMESPACE.svc]", &more)
            .replace("CLUSTER", cluster)
            .replace("NAMESPACE", namespace)
            .replace("AVOID_NODE", avoid_node);
        apply(namespace, &manifest).await?;
        let writer = Self { client: client.clone(), namespace: namespace.into() };
        writer.wait_acknowledged(1).await?;
        Ok(writer)
    }

    /// Removes the pod, and with it the ledger.
    ///
    /// # Errors
    /// kubectl failed.
    pub async fn stop(&self) -> Result<()> {
        remove(&self.namespace).await
    }

    /// Waits until at least `rows` rows are acknowledged.
    ///
    /// # Errors
    /// It was not so in time; the text has the writer's last error.
    pub async fn wait_acknowledged(&self, rows: u64) -> Result<LedgerReport> {
        until(&format!("{rows} acknowledged rows"), PATIENCE, async || {
            let report = self.ledger().await?;
            let seen = format!("{} acknowledged, last error: {}", report.acknowledged, report.last_error);
            Ok(if report.acknowledged >= rows { Look::Done(report) } else { Look::NotYet(seen) })
        })
        .await
    }

    /// Waits until rows are acknowledged again after now.
    ///
    /// # Errors
    /// As [`Self::wait_acknowledged`].
    pub async fn wait_progress(&self, rows: u64) -> Result<LedgerReport> {
        let now = self.ledger().await?.acknowledged;
        self.wait_acknowledged(now + rows).await
    }

    /// What was acknowledged so far.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn ledger(&self) -> Result<LedgerReport> {
        self.call("GET", "ledger").await
    }

    /// Holds the ledger against the table on the primary.
    ///
    /// # Errors
    /// The pod or the database did not answer.
    pub async fn verify(&self) -> Result<Verification> {
        until("the ledger to be compared", PATIENCE, async || Ok(Look::Done(self.call("GET", "verify").await?))).await
    }

    /// Forgets the longest gap.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn reset_gap(&self) -> Result<()> {
        self.text("POST", "reset-gap").await.map(drop)
    }

    /// Stops or resumes writing.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn set_paused(&self, paused: bool) -> Result<()> {
        self.text("POST", if paused { "pause" } else { "resume" }).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T> {
        Ok(serde_json::from_str(&self.text(method, path).await?)?)
    }

    async fn text(&self, method: &str, path: &str) -> Result<String> {
        let uri = format!("/api/v1/namespaces/{}/pods/writer:8080/proxy/{path}", self.namespace);
        let request = http::Request::builder().method(method).uri(uri).body(Vec::new())?;
        Ok(self.client.request_text(request).await?)
    }
}

/// Removes the writer of a namespace, if there is one.
///
/// # Errors
/// kubectl failed.
pub async fn remove(namespace: &str) -> Result<()> {
    // Not by force: its container would go on writing for a moment, into the tables of the next one.
    kubectl(namespace, &["delete", "pod", "writer", "--ignore-not-found", "--grace-period=1", "--timeout=60s"])
        .await
        .map(drop)
}

//! The object store goes together with the primary, and no packet comes back from it: neither the failover nor a replica
//! that starts meanwhile waits for it.

use pgherd_crds::names::keys;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, describe},
    kubectl::{apply, kubectl},
    nodes,
    postgres::psql,
    store,
    wait::{Look, until},
    writer::WriterPod,
};

use crate::{
    alone_in_namespace,
    checks::claim,
    failover::{LONGEST_GAP_MS, check_nothing_lost, check_record, kill_postmaster_of, report_gap, wait_failover},
    manifests,
};

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_store_that_goes_together_with_the_primary_holds_nothing_up() -> Result<()> {
    alone_in_namespace("e2e-store-outage", async |client, namespace| {
        let spec = format!("{}{}", manifests::REQUIRED, manifests::backup_to_store());
        apply(namespace, &manifests::cluster("c", 3, &spec)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(3).await?;
        let node = store::node().await?;
        let primary = make_primary_on(&cluster, &node).await?;
        let writer = WriterPod::start(client, namespace, "c", &node).await?;
        writer.wait_progress(50).await?;

        let before = cluster.wait_ready(3).await?;
        let replicas = before.members.iter().map(|member| member.pod.clone()).filter(|pod| *pod != primary);
        let replicas: Vec<String> = replicas.collect();
        // It asks the archive every few seconds from now on.
        psql(namespace, &replicas[0], "postgres", "ALTER SYSTEM SET primary_conninfo = ''").await?;
        psql(namespace, &replicas[0], "postgres", "SELECT pg_reload_conf()").await?;
        writer.wait_progress(50).await?;
        writer.reset_gap().await?;
        nodes::while_cut(&node, async || {
            let failover = wait_failover(&cluster, &before).await?;
            let ledger = writer.wait_progress(100).await?;
            report_gap("the node of the primary and of the store cut off", &ledger, Some(&failover));
            check_record(&failover)?;
            claim(ledger.longest_gap_ms < LONGEST_GAP_MS, || format!("{} ms without a write", ledger.longest_gap_ms))?;

            // The only voter left: commits wait until it streams again.
            let voter = replicas.iter().find(|pod| **pod != failover.to).ok_or("no other replica")?;
            writer.reset_gap().await?;
            kill_postmaster_of(&cluster, voter).await?;
            let ledger = writer.wait_progress(100).await?;
            report_gap("its replica started anew", &ledger, None);
            claim(ledger.longest_gap_ms < LONGEST_GAP_MS, || format!("{} ms without a write", ledger.longest_gap_ms))
        })
        .await?;
        cluster.wait_ready(3).await?;
        writer.wait_progress(50).await?;
        check_nothing_lost(&writer).await
    })
    .await
}

/// Sees to it that the primary is on this node, and returns its pod.
async fn make_primary_on(cluster: &Cluster, node: &str) -> Result<String> {
    let status = cluster.status().await?;
    let wanted = status.members.iter().find(|member| member.node.as_deref() == Some(node));
    let wanted = wanted.map(|member| member.pod.clone()).ok_or_else(|| format!("no instance is on {node}"))?;
    if status.primary.as_ref() != Some(&wanted) {
        let ask = format!("{}={wanted}", keys::SWITCHOVER);
        kubectl(&cluster.namespace, &["annotate", "postgrescluster", &cluster.name, &ask, "--overwrite"]).await?;
        until(&format!("the switchover to {wanted}"), PATIENCE, async || {
            let status = cluster.status().await?;
            Ok(if status.primary.as_ref() == Some(&wanted) { Look::Done(()) } else { Look::NotYet(describe(&status)) })
        })
        .await?;
    }
    Ok(wanted)
}

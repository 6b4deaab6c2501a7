//! More instances, then fewer.

use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    wait::{Look, until},
};

use crate::{
    checks::{DIGEST, claim, endpoints, fill, wait_follows},
    in_namespace, manifests,
};

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn one_instance_becomes_three_and_then_two() -> Result<()> {
    in_namespace("e2e-scale", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 1, "")).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(1).await?;
        psql(namespace, "c-0", "app", &fill(20_000)).await?;
        let rows = psql(namespace, "c-0", "app", DIGEST).await?;

        kubectl(namespace, &["scale", "postgrescluster/c", "--replicas=3"]).await?;
        cluster.wait_ready(3).await?;
        for replica in ["c-1", "c-2"] {
            wait_follows(&cluster, replica).await?;
            let theirs = psql(namespace, replica, "app", DIGEST).await?;
            claim(theirs == rows, || format!("{replica} has {theirs} instead of {rows}"))?;
        }

        cluster.scale(2).await?;
        let status = cluster.wait_ready(2).await?;
        claim(status.primary.as_deref() == Some("c-0"), || format!("the primary is {:?} now", status.primary))?;
        wait_gone(&cluster).await?;
        wait_follows(&cluster, "c-1").await?;
        let claims = kubectl(namespace, &["get", "pvc", "-o", "name"]).await?;
        claim(claims.lines().count() == 3, || format!("the volume of the instance that went is gone: {claims}"))
    })
    .await
}

/// The third instance leaves nothing that would hold WAL or draw clients.
async fn wait_gone(cluster: &Cluster) -> Result<()> {
    let namespace = &cluster.namespace;
    until("c-2 to be gone", PATIENCE, async || {
        let pods = cluster.pods().await?.len();
        let members = cluster.status().await?.members.len();
        let slots = psql(
            namespace,
            "c-0",
            "postgres",
            "SELECT string_agg(slot_name, ' ' ORDER BY 1) FROM pg_replication_slots",
        )
        .await?;
        let reachable = endpoints(namespace, "c-r").await?.contains("c-2");
        let gone = pods == 2 && members == 2 && slots == "pgherd_c_1" && !reachable;
        Ok(if gone {
            Look::Done(())
        } else {
            Look::NotYet(format!("{pods} pods, {members} members, slots {slots}, in c-r: {reachable}"))
        })
    })
    .await
}

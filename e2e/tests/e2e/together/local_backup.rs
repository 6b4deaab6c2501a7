//! A backup that the agent reads from its files: its status says so, and it comes back like any other. One that says otherwise streams.
//! Both keep to the rate that the cluster allows.

use jiff::Timestamp;
use pgherd_crds::v1alpha1::backup::{BackupMethod, BackupStatus};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, wait_backup},
    kubectl::apply,
    postgres::psql,
};

use super::backup_restore::check_recovered;
use crate::{
    checks::{DIGEST, archive_segment, claim, fill, take_backup},
    in_namespace, manifests,
};

const STREAMED: &str = "apiVersion: pgherd.dev/v1alpha1\nkind: Backup\nmetadata: {name: streamed}\n\
     spec: {clusterRef: {name: c}, method: Stream}\n";

/// `maxRate` of the cluster, in bytes a second.
const RATE: i64 = 8 << 20;

/// It took as long as its bytes take at that rate; times are whole seconds.
fn check_rate(status: &BackupStatus) -> Result<()> {
    let second = |time: &Option<String>| {
        Ok::<_, jiff::Error>(time.as_deref().unwrap_or_default().parse::<Timestamp>()?.as_second())
    };
    let took = second(&status.completed_at)? - second(&status.started_at)?;
    let bytes = status.bytes_done.unwrap_or_default();
    claim(took + 1 >= bytes / RATE, || format!("{bytes} bytes were read in {took} s"))
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_backup_that_the_agent_reads_from_its_files_comes_back() -> Result<()> {
    in_namespace("e2e-local", async |client, namespace| {
        let backup = format!("{}    method: Local\n    maxRate: 8Mi\n", manifests::backup_to_store());
        apply(namespace, &manifests::cluster("c", 2, &backup)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(2).await?;
        let primary = cluster.primary().await?;
        psql(namespace, &primary, "app", &fill(200_000)).await?;
        psql(namespace, &primary, "app", "CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 1000) AS id")
            .await?;
        let expected = psql(namespace, &primary, "app", DIGEST).await?;
        let status = take_backup(client, namespace, "local", "c").await?.status.unwrap_or_default();
        claim(status.method == Some(BackupMethod::Local), || format!("the method is {:?}", status.method))?;
        claim(status.source_pod.as_deref().is_some_and(|pod| pod != primary), || "the primary was read".into())?;
        claim(status.bytes_done.is_some_and(|bytes| bytes > 20_000_000), || format!("{:?} bytes", status.bytes_done))?;
        check_rate(&status)?;
        apply(namespace, STREAMED).await?;
        let status = wait_backup(client, namespace, "streamed", |_| ()).await?.status.unwrap_or_default();
        claim(status.method == Some(BackupMethod::Stream), || format!("the method is {:?}", status.method))?;
        check_rate(&status)?;
        psql(namespace, &primary, "app", "CREATE TABLE later AS SELECT generate_series(1, 1000) AS id").await?;
        archive_segment(namespace, &primary).await?;

        let restored = Cluster::new(client, namespace, "restored");
        check_recovered(&restored, &manifests::recovery_from_object("local"), &expected).await?;
        let scratch = psql(namespace, "restored-0", "app", "SELECT count(*) FROM scratch").await?;
        claim(scratch == "0", || format!("{scratch} rows in a table that is not logged"))
    })
    .await
}

//! Claims about a cluster that several tests make.

use std::collections::BTreeSet;

use kube::{Api, Client};
use pgherd_crds::{Backup, v1alpha1::postgres_cluster::MemberSource};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, wait_backup},
    kubectl::{apply, kubectl},
    postgres::psql,
    wait::{Look, until},
};

use crate::manifests;

/// Rows for a backup to carry: about 130 bytes each.
pub(crate) fn fill(rows: u64) -> String {
    format!(
        "CREATE TABLE goods AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS name, g % 1000 AS price \
         FROM generate_series(1, {rows}) g; ALTER TABLE goods ADD PRIMARY KEY (id)"
    )
}

/// A count and a hash over everything that [`fill`] made.
pub(crate) const DIGEST: &str =
    "SELECT count(*) || ' ' || sum(hashtext(id::text || name || price::text)::bigint) FROM goods";

/// The present time, as `target.time` takes it.
pub(crate) const NOW: &str = r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;

/// Fails a test with a sentence unless the claim holds.
pub(crate) fn claim(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

/// Makes a Backup and waits until it is restorable and the archive reaches its end.
pub(crate) async fn take_backup(client: &Client, namespace: &str, name: &str, cluster: &str) -> Result<Backup> {
    apply(namespace, &manifests::backup(name, cluster)).await?;
    let done = wait_backup(client, namespace, name, |_| ()).await?;
    let restorable = done.status.as_ref().and_then(|status| status.restorable);
    claim(restorable == Some(true), || format!("backup {name} completed, but restorable is {restorable:?}"))?;
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until(&format!("backup {name} to be ready for recovery to a time"), PATIENCE, async || {
        let backup = api.get(name).await?;
        let status = backup.status.clone().unwrap_or_default();
        let said = status.conditions.first().map(|condition| condition.message.clone()).unwrap_or_default();
        Ok(if status.pitr_ready == Some(true) {
            Look::Done(backup)
        } else {
            Look::NotYet(format!("{:?}: {said}", status.pitr_ready))
        })
    })
    .await
}

/// How a member's data directory was made.
pub(crate) async fn source_of(cluster: &Cluster, pod: &str) -> Result<MemberSource> {
    let status = cluster.status().await?;
    let member = status.members.into_iter().find(|member| member.pod == pod);
    let member = member.ok_or_else(|| format!("{pod} is not in status.members"))?;
    member.source.ok_or_else(|| format!("status does not say how {pod} was built").into())
}

/// Writes a mark on the primary and waits until a replica has it.
pub(crate) async fn wait_follows(cluster: &Cluster, replica: &str) -> Result<()> {
    let (namespace, primary) = (&cluster.namespace, cluster.primary().await?);
    psql(
        namespace,
        &primary,
        "app",
        "CREATE TABLE IF NOT EXISTS mark (at timestamptz); INSERT INTO mark VALUES (clock_timestamp())",
    )
    .await?;
    let newest = "SELECT max(at) FROM mark";
    let written = psql(namespace, &primary, "app", newest).await?;
    until(&format!("{replica} to follow {primary}"), PATIENCE, async || {
        let recovering = psql(namespace, replica, "app", "SELECT pg_is_in_recovery()").await?;
        let streaming = psql(namespace, replica, "app", "SELECT status FROM pg_stat_wal_receiver").await?;
        let seen = psql(namespace, replica, "app", newest).await?;
        let follows = recovering == "t" && streaming == "streaming" && seen == written;
        Ok(if follows {
            Look::Done(())
        } else {
            Look::NotYet(format!("in recovery {recovering}, receiver {streaming:?}, {seen} of {written}"))
        })
    })
    .await
}

/// Ends the present WAL segment and waits until the archive has it; returns the segment's name.
pub(crate) async fn archive_segment(namespace: &str, primary: &str) -> Result<String> {
    let segment = psql(
        namespace,
        primary,
        "postgres",
        "SELECT pg_logical_emit_message(true, 'e2e', 'x'); SELECT pg_walfile_name(pg_current_wal_insert_lsn())",
    )
    .await?;
    let segment = segment.lines().last().unwrap_or_default().to_string();
    psql(namespace, primary, "postgres", "SELECT pg_switch_wal()").await?;
    until(&format!("segment {segment} to be archived"), PATIENCE, async || {
        let seen =
            psql(namespace, primary, "postgres", "SELECT last_archived_wal, last_failed_wal FROM pg_stat_archiver")
                .await?;
        let archived = seen.split('|').next().unwrap_or_default();
        // Timelines aside, names sort as positions do.
        Ok(if archived.get(8..) >= segment.get(8..) && !archived.is_empty() {
            Look::Done(())
        } else {
            Look::NotYet(seen)
        })
    })
    .await?;
    Ok(segment)
}

/// How often the containers of pods with a label were restarted.
pub(crate) async fn restarts(namespace: &str, selector: &str) -> Result<u32> {
    let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let counts = kubectl(namespace, &["get", "pods", "-l", selector, "-o", path]).await?;
    Ok(counts.split_whitespace().filter_map(|count| count.parse::<u32>().ok()).sum())
}

/// The pods that a Service leads to.
pub(crate) async fn endpoints(namespace: &str, service: &str) -> Result<BTreeSet<String>> {
    let selector = format!("kubernetes.io/service-name={service}");
    let path = "jsonpath={range .items[*].endpoints[*]}{.conditions.ready} {.targetRef.name}{\"\\n\"}{end}";
    let lines = kubectl(namespace, &["get", "endpointslices", "-l", &selector, "-o", path]).await?;
    Ok(lines.lines().filter_map(|line| line.trim().strip_prefix("true ")).map(str::to_string).collect())
}

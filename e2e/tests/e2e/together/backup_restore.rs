//! A backup comes back: by hand with standard tools, by its object, and from the bucket alone.

use pgherd_crds::Backup;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    toolbox::Toolbox,
    wait::{Look, until},
};

use crate::{
    checks::{DIGEST, NOW, archive_segment, claim, fill, take_backup},
    in_namespace, manifests, secrecy,
};

/// docs/backup-by-hand.md as a script; `BACKUP` and `WAL` are folders in the store.
const BY_HAND: &str = include_str!("by_hand.sh");

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_backup_is_restored_by_hand_by_its_object_and_from_the_bucket_alone() -> Result<()> {
    in_namespace("e2e-restore", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 2, &manifests::backup_to_store())).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(2).await?;
        let primary = cluster.primary().await?;
        psql(namespace, &primary, "app", &fill(200_000)).await?;
        let expected = psql(namespace, &primary, "app", DIGEST).await?;
        let backup = take_backup(client, namespace, "by-hand", "c").await?;
        check_figures(&backup, &primary)?;
        let between = psql(namespace, &primary, "app", NOW).await?;
        // What comes after the backup is in the archive alone.
        psql(namespace, &primary, "app", "CREATE TABLE later AS SELECT generate_series(1, 1000) AS id").await?;
        archive_segment(namespace, &primary).await?;
        secrecy::check(client, &cluster).await?;
        check_window(&cluster, &backup).await?;

        restore_by_hand(namespace, &backup, &expected).await?;
        let more = manifests::recovery_from_object("by-hand");
        check_recovered(&Cluster::new(client, namespace, "from-object"), &more, &expected).await?;
        take_backup(client, namespace, "later", "c").await?;
        // The bucket is all that is left.
        kubectl(namespace, &["delete", "pgc/c", "pgb/by-hand", "pgb/later", "--timeout=120s"]).await?;
        recover_to_a_time(&Cluster::new(client, namespace, "to-a-time"), &between, &expected).await?;
        let more = manifests::recovery_from_bucket("c");
        check_recovered(&Cluster::new(client, namespace, "from-bucket"), &more, &expected).await
    })
    .await
}

/// The newest backup is from after that time. A time before all backups is refused, and one that is never reached leads to no cluster: both
/// say so.
async fn recover_to_a_time(cluster: &Cluster, time: &str, expected: &str) -> Result<()> {
    let (namespace, name) = (&cluster.namespace, &cluster.name);
    let to = |target: &str| {
        manifests::cluster(name, 1, &format!("{}      target: {{{target}}}\n", manifests::recovery_from_bucket("c")))
    };
    for (target, said) in [
        ("time: \"2020-01-01T00:00:00Z\"", "no backup is as old as the target"),
        ("name: nowhere", "recovery ended before configured recovery target was reached"),
    ] {
        apply(namespace, &to(target)).await?;
        until(&format!("the status to say of {target}: {said}"), PATIENCE, async || {
            let status = kubectl(namespace, &["get", "pgc", name, "-o", "jsonpath={.status}"]).await?;
            Ok(if status.contains(said) { Look::Done(()) } else { Look::NotYet(status) })
        })
        .await?;
        let (reason, message) = cluster.wait_condition("Ready", "False").await?;
        println!("{name} to {target}: {reason}: {message}");
        kubectl(namespace, &["delete", "pgc", name, "--timeout=120s"]).await?;
    }
    apply(namespace, &to(&format!("time: \"{time}\""))).await?;
    cluster.wait_ready(1).await?;
    let primary = cluster.primary().await?;
    let found = psql(namespace, &primary, "app", DIGEST).await?;
    claim(found == expected, || format!("{name} has {found} instead of {expected}"))?;
    let later = psql(namespace, &primary, "app", "SELECT to_regclass('later') IS NULL").await?;
    claim(later == "t", || format!("{name} has a table that was made after {time}"))?;
    let reached = cluster.status().await?.recovery.unwrap_or_default();
    claim(reached.timeline.is_some() && reached.lsn.is_some() && reached.last_transaction.is_some(), || {
        format!("{reached:?}")
    })?;
    println!("{name}: {found}, as it was at {time}");
    Ok(())
}

/// The cluster says what can be restored: from this backup on, without a gap.
async fn check_window(cluster: &Cluster, backup: &Backup) -> Result<()> {
    let id = backup.status.as_ref().and_then(|status| status.id.clone());
    let window = until("the restorable window", PATIENCE, async || {
        let window = cluster.status().await?.backup.unwrap_or_default();
        Ok(if window.earliest_backup.is_some() { Look::Done(window) } else { Look::NotYet(format!("{window:?}")) })
    })
    .await?;
    println!("what can be restored: {window:?}");
    let whole = window.gaps.is_empty() && window.gap_count.is_none() && window.earliest_time.is_some();
    claim(window.earliest_backup == id && window.backups == Some(1) && whole && window.latest_lsn.is_some(), || {
        format!("{window:?} is not from {id:?} on")
    })
}

fn check_figures(backup: &Backup, primary: &str) -> Result<()> {
    let status = backup.status.clone().unwrap_or_default();
    let bytes = status.bytes_done.unwrap_or_default();
    let peak = status.peak_rss_bytes.unwrap_or_default();
    println!(
        "backup of {}: {bytes} bytes read, {} stored, in {}, peak memory {peak} bytes",
        status.source_pod.clone().unwrap_or_default(),
        status.stored_bytes.unwrap_or_default(),
        status.duration.unwrap_or_default()
    );
    claim(status.source_pod.as_deref().is_some_and(|pod| pod != primary), || {
        "the backup was read from the primary".into()
    })?;
    claim(bytes > 20_000_000 && peak > 0, || format!("{bytes} bytes and {peak} bytes of memory cannot be true"))?;
    let levels = status.compression.clone().unwrap_or_default();
    claim((1..=6).contains(&levels.lowest_level) && levels.highest_level <= 6, || {
        format!("the levels {levels:?} are not those of the defaults")
    })?;
    let known =
        status.start_lsn.is_some() && status.stop_lsn.is_some() && status.timeline.is_some() && status.id.is_some();
    claim(known, || "the status lacks positions, timeline or id".to_string())
}

async fn restore_by_hand(namespace: &str, backup: &Backup, expected: &str) -> Result<()> {
    let toolbox = Toolbox::start(namespace, "c").await?;
    let destination =
        backup.status.as_ref().and_then(|status| status.destination.clone()).ok_or("the backup has no destination")?;
    let folder =
        destination.strip_prefix("s3://").ok_or_else(|| format!("destination is {destination}"))?.trim_end_matches('/');
    let (root, _) = folder.split_once("/base/").ok_or_else(|| format!("destination is {destination}"))?;
    let script = format!("BACKUP=store/{folder}\nWAL=store/{root}/wal\n{BY_HAND}");
    let printed = toolbox.bash(&script).await?;
    claim(printed.contains("backup successfully verified"), || format!("pg_verifybackup says: {printed}"))?;
    let query =
        async |sql: &str| toolbox.bash(&format!("psql -h /tmp -p 5433 -U postgres -d app -XAtq -c \"{sql}\"")).await;
    let found = query(DIGEST).await?;
    claim(found.trim() == expected, || format!("restored by hand: {} instead of {expected}", found.trim()))?;
    let later = query("SELECT count(*) FROM later").await?;
    claim(later.trim() == "1000", || format!("restored by hand: {} rows of later", later.trim()))?;
    println!("restored by hand: {expected}, and 1000 rows that came after the backup");
    Ok(())
}

/// Applies a cluster that is recovered, and looks for what was backed up and for what came after that.
pub(crate) async fn check_recovered(cluster: &Cluster, more: &str, expected: &str) -> Result<()> {
    let (namespace, name) = (&cluster.namespace, &cluster.name);
    apply(namespace, &manifests::cluster(name, 1, more)).await?;
    cluster.wait_ready(1).await?;
    let primary = cluster.primary().await?;
    let found = psql(namespace, &primary, "app", DIGEST).await?;
    claim(found == expected, || format!("{name} has {found} instead of {expected}"))?;
    let later = psql(namespace, &primary, "app", "SELECT count(*) FROM later").await?;
    claim(later == "1000", || format!("{name} has {later} rows of later"))?;
    psql(namespace, &primary, "app", "INSERT INTO later VALUES (0)").await?;
    println!("{name}: {found}, and 1000 rows that came after the backup");
    Ok(())
}

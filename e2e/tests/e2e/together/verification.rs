//! Verification restores the newest backup in a Job and says that it is good; of a damaged one it names the object, and of
//! a statement that does not hold the statement.

use kube::{Api, Client};
use pgherd_crds::Backup;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    toolbox::Toolbox,
    wait::{Look, until},
};

use super::retention::wait_schedule;
use crate::{
    checks::{claim, fill, take_backup},
    in_namespace, manifests,
};

/// Never due by itself: only the verification is of interest.
const NEVER: &str = "0 0 1 1 *";

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_good_backup_is_verified_and_a_damaged_one_is_named() -> Result<()> {
    in_namespace("e2e-verification", async |client, namespace| {
        apply(namespace, &manifests::cluster("c", 1, &manifests::backup_to_store())).await?;
        Cluster::new(client, namespace, "c").wait_ready(1).await?;
        psql(namespace, "c-0", "app", &fill(100_000)).await?;
        let backup = take_backup(client, namespace, "b", "c").await?;
        verify(namespace, "select count(*) = 100000 from goods").await?;
        let good = wait_verified(client, namespace, "True").await?;
        let status = good.status.clone().unwrap_or_default();
        println!("verified: {:?} {:?}", status.verified_at, status.verification);
        claim(status.verified_at.is_some(), || "verifiedAt is missing".to_string())?;
        let details = status.verification.ok_or("the figures of the verification are missing")?;
        claim(details.amcheck == "Passed", || format!("pg_amcheck: {details:?}"))?;
        claim(details.statements == 1 && details.files > 500, || format!("{details:?} cannot be true"))?;
        let schedule = wait_schedule(client, namespace, PATIENCE, "the schedule to say so", |status| {
            status.verification.as_ref().is_some_and(|verification| verification.last_success_time.is_some())
        })
        .await?;
        claim(schedule.conditions.iter().any(|c| c.type_ == "Verified" && c.status == "True"), || {
            format!("the schedule's conditions: {:?}", schedule.conditions)
        })?;

        // A statement that does not hold.
        kubectl(namespace, &["delete", "pgbs/s"]).await?;
        verify(namespace, "select count(*) = 7 from goods").await?;
        let bad = wait_verified(client, namespace, "False").await?;
        claim(said(&bad).contains("StatementFailed") && said(&bad).contains("count(*) = 7"), || said(&bad))?;
        claim(bad.status.as_ref().and_then(|status| status.restorable) == Some(true), || {
            "a false statement made the backup unrestorable".to_string()
        })?;

        // Eight bytes of the data.
        kubectl(namespace, &["delete", "pgbs/s"]).await?;
        damage(namespace, &backup).await?;
        verify(namespace, "select true").await?;
        let bad = until("the damage to be found", PATIENCE, async || {
            let backup: Backup = Api::namespaced(client.clone(), namespace).get("b").await?;
            let told = said(&backup);
            Ok(if told.contains("base.tar.zst.0000") { Look::Done(backup) } else { Look::NotYet(told) })
        })
        .await?;
        println!("damaged: {}", said(&bad));
        claim(bad.status.and_then(|status| status.restorable) == Some(false), || {
            "a damaged backup is called restorable".to_string()
        })
    })
    .await
}

async fn verify(namespace: &str, statement: &str) -> Result<()> {
    let more = format!("  verify:\n    every: 7d\n    sql: [\"{statement}\"]\n");
    apply(namespace, &format!("{}{more}", manifests::schedule("s", "c", NEVER))).await.map(drop)
}

async fn wait_verified(client: &Client, namespace: &str, status: &str) -> Result<Backup> {
    let api: Api<Backup> = Api::namespaced(client.clone(), namespace);
    until(&format!("the backup to be Verified={status}"), PATIENCE, async || {
        let backup = api.get("b").await?;
        let conditions = backup.status.clone().unwrap_or_default().conditions;
        let holds = conditions.iter().any(|condition| condition.type_ == "Verified" && condition.status == status);
        Ok(if holds { Look::Done(backup) } else { Look::NotYet(format!("{conditions:?}")) })
    })
    .await
}

/// Reason and message of the condition Verified.
fn said(backup: &Backup) -> String {
    let conditions = backup.status.clone().unwrap_or_default().conditions;
    let found = conditions.into_iter().find(|condition| condition.type_ == "Verified");
    found.map(|condition| format!("{}: {}", condition.reason, condition.message)).unwrap_or_default()
}

async fn damage(namespace: &str, backup: &Backup) -> Result<()> {
    let destination = backup.status.as_ref().and_then(|status| status.destination.clone());
    let destination = destination.ok_or("the backup has no destination")?;
    let folder = destination.strip_prefix("s3://").ok_or("the destination is no s3 address")?.trim_end_matches('/');
    let script = format!(
        "KEY=store/{folder}/base.tar.zst.0000\nmc cat \"$KEY\" >/work/object\nHALF=$(( $(stat -c %s /work/object) / 2 ))\n\
         printf damaged. | dd of=/work/object bs=1 seek=$HALF conv=notrunc\nmc cp /work/object \"$KEY\""
    );
    Toolbox::start(namespace, "c").await?.bash(&script).await.map(drop)
}

//! Faults of the store and of the cluster while a base backup is made or deleted. Numbers 48 to 50, and 52. A backup ends as a
//! whole one or as none; what is visible is always whole.

use std::time::Duration;

use pgherd_crds::{Backup, names::keys, v1alpha1::backup::BackupPhase};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    containers::Kind,
    kubectl::{apply, kubectl},
    postgres::psql,
    store,
    store_faults::{ErrorCode, Rule, StoreFault, StoreProxy},
    wait::{Look, until},
};

use crate::{
    backed::{ask_backup, digest, forget_cluster, single, wait_completed, wait_ended, wait_hits},
    registry::Mode,
    run::NAMESPACE,
    scene::{Scene, claim},
};

/// How long a backup is watched that must not appear.
const WATCHED: Duration = Duration::from_secs(20);
/// The end of an upload in parts.
const COMPLETION: [&str; 2] = ["/base/", "uploadId="];

/// Takes a backup while faults that pass befall its requests: these are repeated, and it is whole.
async fn back_up(scene: &Scene, name: &str, rule: Rule) -> Result<()> {
    let backed = scene.backed()?;
    let before = backed.records(Mode::Backed.cluster()).await?.len();
    backed.proxy.befall(&[rule]).await?;
    ask_backup(Mode::Backed.cluster(), name, "").await?;
    let ended = wait_ended(&scene.cluster.client, name).await?;
    let hits = backed.proxy.hits().await?;
    backed.proxy.heal().await?;
    claim(hits > 0, || format!("{name}: the fault befell nothing"))?;
    let visible = backed.records(Mode::Backed.cluster()).await?.len() - before;
    let completed = ended.phase == Some(BackupPhase::Completed);
    claim(completed && visible == 1, || {
        format!("{name} ended as {:?} ({:?}), and {visible} are visible", ended.phase, ended.error)
    })?;
    scene.note(format!("{name}: {hits} requests befallen, completed"));
    wait_completed(&scene.cluster.client, name).await.map(drop)
}

/// Bits of what is uploaded are others when the store gets it.
pub(crate) async fn uploads_damaged(scene: &Scene) -> Result<()> {
    back_up(scene, "part-damaged", Rule::of(StoreFault::FlipRequest, "PUT", &["/base/", "partNumber="]).times(2))
        .await?;
    back_up(scene, "object-damaged", Rule::of(StoreFault::FlipRequest, "PUT", &["/base/", "index.json"]).times(1)).await
}

/// The end of each upload is answered with 200 and an error inside, as S3 may do; then it is done, and the answer lost.
pub(crate) async fn completion_fails(scene: &Scene) -> Result<()> {
    let backed = scene.backed()?;
    let before = backed.records(Mode::Backed.cluster()).await?;
    let refused = StoreFault::Refuse(200, ErrorCode::InternalError);
    backed.proxy.befall(&[Rule::of(refused, "POST", &COMPLETION)]).await?;
    ask_backup(Mode::Backed.cluster(), "completion-refused", "").await?;
    wait_hits(scene, 1).await?;
    // A span to watch, not a wait for something.
    tokio::time::sleep(WATCHED).await;
    let now = backed.records(Mode::Backed.cluster()).await?;
    claim(before == now, || format!("a backup is visible whose end was refused: {now:?}, before {before:?}"))?;
    backed.proxy.heal().await?;
    let ended = wait_ended(&scene.cluster.client, "completion-refused").await?;
    scene.note(format!("refused until the store was well: {:?} {}", ended.phase, ended.error.unwrap_or_default()));
    back_up(scene, "completion-lost", Rule::of(StoreFault::LostAnswer, "POST", &COMPLETION).times(1)).await
}

/// A database in which nothing happens is backed up, and restored as soon as the backup is there: its last WAL must be in the
/// archive by then.
pub(crate) async fn idle(scene: &Scene) -> Result<()> {
    let client = &scene.cluster.client;
    let spec = format!("  backup:\n{}", StoreProxy::object_store_yaml(NAMESPACE, 4));
    apply(NAMESPACE, &single("idle", &spec)).await?;
    let idle = Cluster::new(client, NAMESPACE, "idle");
    idle.wait_ready(1).await?;
    let sql = "CREATE TABLE ledger AS SELECT generate_series(1, 1000) AS id; CREATE TABLE lists (key int); CREATE TABLE goods (id int)";
    psql(NAMESPACE, "idle-0", "app", sql).await?;
    let expected = digest("idle-0").await?;
    // A span in which nothing happens.
    tokio::time::sleep(WATCHED).await;
    ask_backup("idle", "of-idle", "").await?;
    let ended = wait_ended(client, "of-idle").await?;
    claim(ended.restorable == Some(true), || format!("{:?} {:?}", ended.phase, ended.error))?;
    let recovery = "  bootstrap:\n    recovery:\n      from: {backupRef: {name: of-idle}}\n";
    crate::backed::check_copy(scene, "idle-copy", recovery, Some(&expected)).await?;
    forget_cluster(client, "idle").await
}

/// The primary hangs in the middle of a backup, and another takes over: the backup completes all the same, if need be by another attempt.
pub(crate) async fn failover_meanwhile(scene: &Scene) -> Result<()> {
    begin_slowly(scene, "in-failover").await?;
    let container = scene.primary_container()?;
    container.set_frozen(true)?;
    let outcome = async {
        scene.wait_failover().await?;
        scene.writer.wait_progress(100).await
    }
    .await;
    container.set_frozen(false)?;
    outcome?;
    finish(scene, "in-failover").await
}

/// The instance that the backup is read from dies in the middle of it: another attempt completes it.
pub(crate) async fn source_dies(scene: &Scene) -> Result<()> {
    begin_slowly(scene, "source-dies").await?;
    let api: kube::Api<Backup> = kube::Api::namespaced(scene.cluster.client.clone(), NAMESPACE);
    let source = api.get("source-dies").await?.status.and_then(|status| status.source_pod);
    let source = source.ok_or("the backup does not say where it is read")?;
    scene.container(&source)?.signal("KILL", &[Kind::Supervisor]).await?;
    scene.note(format!("{source} was killed while it was read"));
    finish(scene, "source-dies").await
}

/// A backup whose parts are slow, in the middle of which something can happen.
async fn begin_slowly(scene: &Scene, name: &str) -> Result<()> {
    let proxy = &scene.backed()?.proxy;
    proxy.befall(&[Rule::of(StoreFault::Late(4_000), "PUT", &["/base/", "partNumber="])]).await?;
    ask_backup(Mode::Backed.cluster(), name, "").await?;
    wait_hits(scene, 1).await.map(drop)
}

async fn finish(scene: &Scene, name: &str) -> Result<()> {
    scene.backed()?.proxy.heal().await?;
    // What befell it is over: there are attempts left, and instances to read.
    let done = wait_completed(&scene.cluster.client, name).await?;
    scene.note(format!("{name}: completed as {}", done.id.unwrap_or_default()));
    Ok(())
}

/// The Job's pod is killed when the backup is announced, in the middle of its data, and when its end is under way: it is tried
/// again each time.
pub(crate) async fn job_killed(scene: &Scene) -> Result<()> {
    let proxy = &scene.backed()?.proxy;
    let late = StoreFault::Late(5_000);
    for (name, rule) in [
        ("killed-at-its-begin", Rule::of(late, "PUT", &["inprogress.json"])),
        ("killed-in-its-data", Rule::of(late, "PUT", &["/base/", "partNumber="])),
        ("killed-at-its-end", Rule::of(late, "POST", &["/backup.json", "uploadId="])),
    ] {
        proxy.befall(&[rule]).await?;
        ask_backup(Mode::Backed.cluster(), name, "").await?;
        wait_hits(scene, 1).await?;
        let selector = format!("{}={name}", keys::BACKUP);
        let kill = ["delete", "pods", "-l", &selector, "--force", "--grace-period=0", "--wait=false"];
        kubectl(NAMESPACE, &kill).await?;
        proxy.heal().await?;
        let done = wait_completed(&scene.cluster.client, name).await?;
        scene.note(format!("{name}: completed as {}", done.id.unwrap_or_default()));
    }
    Ok(())
}

/// Two backups are asked for at once.
pub(crate) async fn two_at_once(scene: &Scene) -> Result<()> {
    for name in ["one", "other"] {
        ask_backup(Mode::Backed.cluster(), name, "").await?;
    }
    let one = wait_completed(&scene.cluster.client, "one").await?;
    let other = wait_completed(&scene.cluster.client, "other").await?;
    claim(one.id != other.id, || format!("both are {:?}", one.id))
}

/// A backup that is being restored is to be deleted: its data stays while it is read.
pub(crate) async fn deleted_while_read(scene: &Scene) -> Result<()> {
    let (client, backed) = (&scene.cluster.client, scene.backed()?);
    scene.writer.set_paused(true).await?;
    let outcome = async {
        ask_backup(Mode::Backed.cluster(), "read", ", deletionPolicy: Delete").await?;
        let id = wait_completed(client, "read").await?.id.ok_or("the backup has no id")?;
        ask_backup(Mode::Backed.cluster(), "newer", "").await?;
        wait_completed(client, "newer").await?;
        let data = format!("/base/{id}/base.tar");
        backed.proxy.befall(&[Rule::of(StoreFault::Late(40_000), "GET", &[&data])]).await?;
        let recovery = "  bootstrap:\n    recovery:\n      from: {backupRef: {name: read}}\n";
        apply(NAMESPACE, &single("reader", recovery)).await?;
        wait_hits(scene, 1).await?;
        kubectl(NAMESPACE, &["delete", "pgb/read", "--wait=false"]).await?;
        let why = wait_kept(scene, "read").await?;
        claim(why.contains("in use"), || format!("its data stays because: {why}"))?;
        let left = store::keys(&format!("{}/base/{id}/", backed.root(Mode::Backed.cluster()))).await?;
        claim(left.iter().any(|key| key.ends_with("/backup.json")), || format!("of {id} is left: {left:?}"))?;
        scene.note(why);
        backed.proxy.heal().await?;
        let reader = Cluster::new(client, NAMESPACE, "reader");
        reader.wait_ready(1).await?;
        let (found, expected) = (digest("reader-0").await?, digest(&scene.cluster.primary().await?).await?);
        claim(found == expected, || format!("what was read has {found} instead of {expected}"))?;
        // The next try is minutes away.
        kubectl(NAMESPACE, &["patch", "pgb/read", "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Retain"}}"#])
            .await?;
        forget_cluster(client, "reader").await
    }
    .await;
    scene.writer.set_paused(false).await?;
    outcome
}

/// What the Backup says of why its data stays.
async fn wait_kept(scene: &Scene, name: &str) -> Result<String> {
    let api: kube::Api<Backup> = kube::Api::namespaced(scene.cluster.client.clone(), NAMESPACE);
    until("the data to be kept", PATIENCE, async || {
        let conditions = api.get(name).await?.status.unwrap_or_default().conditions;
        let kept = conditions.iter().find(|condition| condition.reason == "DataKept");
        Ok(kept.map_or_else(|| Look::NotYet(format!("{conditions:?}")), |kept| Look::Done(kept.message.clone())))
    })
    .await
}

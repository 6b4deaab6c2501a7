//! Faults of the store while something is read from it, and recoveries that can't succeed: each is said by name, nothing becomes
//! Ready that is not whole, and the source stays as it is. Numbers 48 and 53.

use std::time::Duration;

use pgherd_crds::v1alpha1::postgres_cluster::RestoreStatus;
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, describe},
    kubectl::{apply, kubectl},
    namespace,
    postgres::psql,
    store::{self, BUCKET, keys, mc},
    store_faults::{Rule, StoreFault, StoreProxy},
    wait::{Look, until},
};
use serde_json::json;

use crate::{
    backed::{check_copy, digest, end_segment, forget_cluster, single, wait_archived},
    registry::Mode,
    run::NAMESPACE,
    scene::{Scene, claim},
};

/// Answers that hold data break off in their middle, every now and then: they are asked for again.
pub(crate) async fn answers_cut(scene: &Scene) -> Result<()> {
    quietly(scene, async || {
        let backed = scene.backed()?;
        let cut = |part: &str, times| Rule::of(StoreFault::CutAnswer, "GET", &[part]).times(times);
        let rules = [cut("/backup_manifest", 1), cut("/index.json", 2), cut("/base.tar", 4), cut("/wal/", 2)];
        backed.proxy.befall(&rules).await?;
        check_copy(scene, "after-cuts", &backed.recovery(Mode::Backed.cluster(), ""), None).await?;
        scene.note(format!("{} answers broke off", backed.proxy.hits().await?));
        claim(backed.proxy.hits().await? >= 7, || "not all faults befell a request".to_owned())
    })
    .await
}

/// A bit is another one in each kind of object: a cluster that is made from the store says in which, is not Ready with it, and
/// comes up once the store gives what it was given.
pub(crate) async fn objects_damaged(scene: &Scene) -> Result<()> {
    quietly(scene, async || {
        let backed = scene.backed()?;
        let expected = digest(&scene.cluster.primary().await?).await?;
        let copy = Cluster::new(&scene.cluster.client, NAMESPACE, "damaged");
        let histories = scene.cluster.status().await?.timeline > Some(1);
        let mut kinds: Vec<(&[&str], &str)> = vec![
            (&["/backup.json"], "backup.json"),
            (&["/backup_manifest"], "backup_manifest"),
            (&["/index.json"], "index.json.zst"),
            (&["/base.tar.zst.0000"], "base.tar.zst.0000"),
        ];
        // A cluster that has always been on its first timeline has none.
        kinds.extend(histories.then_some((&["/wal/", ".history"][..], ".history is damaged")));
        kinds.push((&["/wal/", ".zst"], "could not restore file"));
        let mut applied = false;
        for (parts, name) in kinds {
            backed.proxy.befall(&[Rule::of(StoreFault::FlipAnswer, "GET", parts)]).await?;
            if !applied {
                apply(NAMESPACE, &single("damaged", &backed.recovery(Mode::Backed.cluster(), ""))).await?;
                applied = true;
            }
            let said = wait_said(&copy, name).await?;
            scene.note(format!("{}: {said}", parts.join("…")));
        }
        backed.proxy.heal().await?;
        copy.wait_ready(1).await?;
        let found = digest(&copy.primary().await?).await?;
        claim(found == expected, || format!("{found} instead of {expected}"))?;
        forget_cluster(&scene.cluster.client, "damaged").await
    })
    .await
}

/// Waits until a member's message, or a condition, has a text; returns what said it.
async fn wait_said(cluster: &Cluster, text: &str) -> Result<String> {
    until(&format!("{} to say {text}", cluster.name), PATIENCE, async || {
        let status = cluster.status().await?;
        let ready = status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if ready {
            return Ok(Look::NotYet(format!("it is Ready: {}", describe(&status))));
        }
        let members = status.members.iter().filter_map(|member| member.message.clone());
        let all = members.chain(status.conditions.iter().map(|condition| condition.message.clone()));
        Ok(all.into_iter().find(|said| said.contains(text)).map_or_else(|| Look::NotYet(describe(&status)), Look::Done))
    })
    .await
}

/// Does the work while no client writes.
async fn quietly(scene: &Scene, work: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    scene.writer.set_paused(true).await?;
    let outcome = async {
        wait_archived(&scene.cluster).await?;
        work().await
    }
    .await;
    scene.backed()?.proxy.heal().await?;
    scene.writer.set_paused(false).await?;
    outcome
}

/// A time from before the oldest backup: it is refused with the time that there is, in place and as a new cluster.
pub(crate) async fn before_base(scene: &Scene) -> Result<()> {
    let target = json!({"time": "2020-01-01T00:00:00Z"});
    let refused = ask_in_place(scene, "before-base", &target).await?;
    let why = "no backup is as old as the target: the oldest one ended at";
    claim(refused.contains(why), || format!("refused because: {refused}"))?;
    check_recovery_refused(scene, "too-early", &target, why).await
}

/// A segment between the backup and the target is gone from the archive: what is refused names it, and the target that can be reached.
pub(crate) async fn segment_missing(scene: &Scene) -> Result<()> {
    let primary = scene.primary()?;
    let mut segments = Vec::new();
    for _ in 0..4 {
        segments.push(end_segment(&primary).await?);
        scene.writer.wait_progress(20).await?;
    }
    let target = psql(NAMESPACE, &primary, "postgres", "SELECT pg_current_wal_flush_lsn()").await?;
    wait_archived(&scene.cluster).await?;
    let gone = segments.get(1).ok_or("no segment was ended")?;
    let wal = format!("{}/wal/", scene.backed()?.root(Mode::Backed.cluster()));
    let key = keys(&wal).await?.into_iter().find(|key| key.ends_with(&format!("/{gone}.zst")));
    let key = key.ok_or_else(|| format!("{gone} is not in the archive"))?;
    let (there, aside) = (format!("local/{BUCKET}/{key}"), format!("local/{BUCKET}/{NAMESPACE}-aside/{gone}.zst"));
    mc(&["mv", &there, &aside]).await?;
    let outcome = async {
        let target = json!({"lsn": target});
        let refused = ask_in_place(scene, "segment-missing", &target).await?;
        let why = format!("the archive lacks 1 file(s) that the recovery needs: {gone}; a target.lsn up to");
        claim(refused.contains(&why), || format!("refused because: {refused}"))?;
        check_recovery_refused(scene, "with-a-gap", &target, &why).await
    }
    .await;
    mc(&["mv", &aside, &there]).await?;
    outcome
}

/// Asks for a restore in place that can't be done; returns why not. The cluster serves on in its term.
async fn ask_in_place(scene: &Scene, id: &str, target: &serde_json::Value) -> Result<String> {
    scene.cluster.patch(json!({"spec": {"restore": null}})).await?;
    scene.cluster.patch(json!({"spec": {"restore": {"id": id, "target": target}}})).await?;
    let refused: RestoreStatus = until(&format!("restore {id} to be refused"), PATIENCE, async || {
        let found = scene.cluster.status().await?.restore.unwrap_or_default();
        let is_refused = found.id == id && found.phase == "Refused";
        Ok(if is_refused { Look::Done(found) } else { Look::NotYet(format!("{found:?}")) })
    })
    .await?;
    scene.cluster.patch(json!({"spec": {"restore": null}})).await?;
    scene.watch_no_failover(Duration::from_secs(5)).await?;
    scene.writer.wait_progress(20).await?;
    let why = refused.message.unwrap_or_default();
    scene.note(format!("in place: {why}"));
    Ok(why)
}

/// A new cluster with this target is never Ready, and says before it restores anything why it can't be. Nothing of the source changes.
async fn check_recovery_refused(scene: &Scene, name: &str, target: &serde_json::Value, why: &str) -> Result<()> {
    let backed = scene.backed()?;
    let before = backed.records(Mode::Backed.cluster()).await?;
    let target = format!("      target: {target}\n");
    apply(NAMESPACE, &single(name, &backed.recovery(Mode::Backed.cluster(), &target))).await?;
    let said = wait_said(&Cluster::new(&scene.cluster.client, NAMESPACE, name), why).await?;
    claim(said.contains("this recovery is not possible"), || format!("a new cluster says {said}"))?;
    scene.note(format!("a new cluster: {said}"));
    let after = backed.records(Mode::Backed.cluster()).await?;
    claim(before == after, || format!("the backups of the source are {after:?} now"))?;
    forget_cluster(&scene.cluster.client, name).await
}

/// Another namespace, where a cluster of the same name is made from the store, and is to archive into the same path.
const TWIN: &str = "faults-twin";

/// Somebody recovers the cluster elsewhere, under its own name and with its own path in the store, while it lives.
pub(crate) async fn into_own_path(scene: &Scene) -> Result<()> {
    let (client, name) = (&scene.cluster.client, Mode::Backed.cluster());
    namespace::recreate(TWIN).await?;
    store::provide_credentials(client, TWIN).await?;
    let store = |indent| format!("{}{:indent$}  prefix: {NAMESPACE}\n", store::object_store_yaml(indent), "");
    let recovery = scene.backed()?.recovery(name, "");
    let recovery = recovery.replace(&StoreProxy::object_store_yaml(NAMESPACE, 8), &store(8));
    wait_archived(&scene.cluster).await?;
    let before = observe_objects(scene).await?;
    apply(TWIN, &single(name, &format!("  backup:\n{}{recovery}", store(4)))).await?;
    let outcome = check_twin(scene, &Cluster::new(client, TWIN, name), &before).await;
    namespace::remove(TWIN).await?;
    outcome
}

async fn check_twin(scene: &Scene, twin: &Cluster, before: &[String]) -> Result<()> {
    let said = wait_said(twin, "another prefix").await?;
    scene.note(format!("the twin: {said}"));
    let after = observe_objects(scene).await?;
    let gone: Vec<_> = before.iter().filter(|object| !after.contains(object)).collect();
    claim(gone.is_empty(), || format!("objects of the live cluster are gone or others: {gone:?}"))?;
    kubectl(TWIN, &["delete", "postgrescluster", &twin.name, "--timeout=120s"]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// Keys and ETags of the live cluster's objects.
async fn observe_objects(scene: &Scene) -> Result<Vec<String>> {
    let root = scene.backed()?.root(Mode::Backed.cluster());
    let listed = mc(&["ls", "--recursive", "--json", &format!("local/{BUCKET}/{root}/")]).await?;
    let mut objects = Vec::new();
    for line in listed.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        objects.push(format!(
            "{} {}",
            entry["key"].as_str().unwrap_or_default(),
            entry["etag"].as_str().unwrap_or_default()
        ));
    }
    Ok(objects)
}

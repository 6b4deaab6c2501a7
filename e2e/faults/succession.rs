//! Faults one after the other: the new primary dies as well, instances return in the wrong order, a replica that was promoted by
//! hand, a new data directory, a copy that is killed. Numbers 21 to 30.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pgherd_e2e::{
    Result,
    cluster::PATIENCE,
    containers::{Container, Kind},
    kubectl::kubectl,
    partition::{self, Direction},
    postgres::psql,
    wait::{Look, until},
};

use crate::scene::{Scene, claim, unix_ms};

/// How long the cluster is watched that must not promote anybody: longer than the take-over time and a failover.
const BLOCKED: Duration = Duration::from_secs(25);

fn two_replicas(scene: &Scene) -> Result<(String, String)> {
    match scene.replicas().as_slice() {
        [one, other, ..] => Ok((one.clone(), other.clone())),
        few => Err(format!("{} replicas instead of two", few.len()).into()),
    }
}

/// The primary dies, then its successor, before the third has what the successor acknowledged.
pub(crate) async fn successor_dies(scene: &Scene) -> Result<()> {
    let first = scene.primary_container()?;
    first.set_frozen(true)?;
    let outcome = async {
        let failover = scene.wait_failover().await?;
        let second = scene.container(&failover.to)?;
        second.set_frozen(true)?;
        let third = scene.replicas().into_iter().find(|pod| *pod != failover.to).unwrap_or_default();
        // The span that is watched: what is acknowledged by one of three can't be known to be on the last.
        tokio::time::sleep(BLOCKED).await;
        let status = scene.cluster.status().await?;
        let promoted = status.term > Some(failover.term) && status.primary.as_deref() == Some(&third);
        scene.note(format!("{third}, the last of three, was {}promoted", if promoted { "" } else { "not " }));
        second.set_frozen(false)
    }
    .await;
    first.set_frozen(false)?;
    outcome?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// A replica is down, commits go on, then both others are down and only the old replica comes back.
pub(crate) async fn outdated_returns_alone(scene: &Scene) -> Result<()> {
    let (outdated, other) = two_replicas(scene)?;
    let (outdated, other) = (scene.container(&outdated)?, scene.container(&other)?);
    let primary = scene.primary_container()?;
    outdated.set_frozen(true)?;
    let outcome = async {
        scene.writer.wait_progress(200).await?;
        primary.set_frozen(true)?;
        other.set_frozen(true)?;
        outdated.set_frozen(false)?;
        scene.watch_no_failover(BLOCKED).await
    }
    .await;
    for container in [&other, &primary, &outdated] {
        container.set_frozen(false)?;
    }
    outcome?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// The one that the register names instead of the primary before the fault.
async fn chosen(scene: &Scene) -> Result<String> {
    let primary = scene.primary()?;
    until("somebody to be chosen", PATIENCE, async || {
        let register = scene.register().await?;
        let holder = register["holder"]["pod"].as_str().unwrap_or_default().to_string();
        Ok(if holder.is_empty() || holder == primary { Look::NotYet(holder) } else { Look::Done(holder) })
    })
    .await
}

/// The one that was chosen is killed as soon as the register names it.
pub(crate) async fn candidate_killed(scene: &Scene) -> Result<()> {
    kill_candidate(scene, "the register named it", async || chosen(scene).await).await
}

/// The other voter hangs as soon as the register names the winner: who is promoted then has nobody who could acknowledge, and
/// must let no client see what only it has.
pub(crate) async fn voter_dies_after_decision(scene: &Scene) -> Result<()> {
    let primary = scene.primary_container()?;
    let replicas = scene.replicas().into_iter().map(|pod| scene.container(&pod)).collect::<Result<Vec<_>>>()?;
    primary.set_frozen(true)?;
    let mut frozen = vec![&primary];
    let outcome = async {
        let winner = chosen(scene).await?;
        let other = replicas.iter().find(|container| container.pod != winner).ok_or("there is no other replica")?;
        other.set_frozen(true)?;
        frozen.push(other);
        scene.writer.reset_gap().await?;
        // The span that is watched.
        tokio::time::sleep(BLOCKED).await;
        let silent = scene.writer.ledger().await?.since_last_ack_ms;
        scene.note(format!("{winner} was chosen, {} hung; no commit for {silent} ms", other.pod));
        claim(silent + 2_000 >= BLOCKED.as_millis() as u64, || {
            "a commit was acknowledged that no replica has".to_string()
        })
    }
    .await;
    for container in frozen {
        // It is gone if its liveness probe has failed meanwhile.
        drop(container.set_frozen(false));
    }
    outcome?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// It is killed as soon as it has written down that it leads the new term: before PostgreSQL is told.
pub(crate) async fn candidate_killed_at_promotion(scene: &Scene) -> Result<()> {
    let term = scene.before.term.unwrap_or_default();
    kill_candidate(scene, "it had the new term on its disk", async || {
        until_on_disk(scene, |pgdata| {
            let text = std::fs::read_to_string(pgdata.join(LOCAL_STATE)).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            state["term"].as_u64() > Some(term) && state["wasPrimary"] == true
        })
        .await
    })
    .await
}

/// It is killed as soon as PostgreSQL has written the history of its new timeline: before anybody is led to it.
pub(crate) async fn candidate_killed_at_history(scene: &Scene) -> Result<()> {
    let known = newest_history(&pgdata_of(&scene.primary_container()?)?);
    kill_candidate(scene, "its new timeline had a history", async || {
        until_on_disk(scene, |pgdata| newest_history(pgdata) > known).await
    })
    .await
}

/// The file of a data directory in which an agent keeps what must survive it.
const LOCAL_STATE: &str = pgherd_agent::local_state::FILE_NAME;

/// The data directory of an instance, as this machine sees it.
fn pgdata_of(container: &Container) -> Result<PathBuf> {
    let pids = container.pids(&[Kind::Supervisor]);
    let pid = pids.first().ok_or_else(|| format!("{} has no supervisor", container.pod))?;
    Ok(PathBuf::from(format!("/proc/{pid}/root{}", pgherd_core::instance::paths::PGDATA)))
}

/// The newest timeline of this data directory that has a history: the name of its file.
fn newest_history(pgdata: &Path) -> Option<String> {
    let files = std::fs::read_dir(pgdata.join("pg_wal")).into_iter().flatten().flatten();
    files.filter_map(|file| file.file_name().into_string().ok()).filter(|name| name.ends_with(".history")).max()
}

/// The first replica of which this holds, looked at as often as possible: what is waited for lasts milliseconds.
async fn until_on_disk(scene: &Scene, holds: impl Fn(&Path) -> bool) -> Result<String> {
    let replicas = scene.replicas().into_iter().map(|pod| Ok((pgdata_of(&scene.container(&pod)?)?, pod)));
    let replicas: Vec<(PathBuf, String)> = replicas.collect::<Result<_>>()?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some((_, pod)) = replicas.iter().find(|(pgdata, _)| holds(pgdata)) {
            return Ok(pod.clone());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err("no replica was promoted".into())
}

/// The primary hangs, and its successor is killed in the middle of its promotion.
async fn kill_candidate(scene: &Scene, when: &str, chosen: impl AsyncFnOnce() -> Result<String>) -> Result<()> {
    let primary = scene.primary()?;
    let containers = scene.replicas().into_iter().map(|pod| scene.container(&pod)).collect::<Result<Vec<_>>>()?;
    scene.primary_container()?.set_frozen(true)?;
    let outcome = async {
        let chosen = chosen().await?;
        let container = containers.iter().find(|container| container.pod == chosen);
        container.ok_or_else(|| format!("{chosen} is no replica"))?.signal("KILL", &[Kind::Supervisor]).await?;
        scene.note(format!("{chosen} was killed as soon as {when}"));
        scene.writer.wait_progress(50).await.map(drop)
    }
    .await;
    // It is gone if its liveness probe has failed meanwhile.
    drop(scene.container(&primary).map(|container| container.set_frozen(false)));
    outcome
}

/// The timeline that a server writes.
async fn timeline(scene: &Scene, pod: &str) -> Result<String> {
    psql(scene.namespace(), pod, "postgres", "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").await
}

/// Mode `Off`: the replicas don't hear each other. One is promoted and written to, hangs, and the other one is promoted from where
/// the first one was: both promotions take the same number, and pg_rewind alone would see no difference between them.
pub(crate) async fn one_timeline_twice(scene: &Scene) -> Result<()> {
    let (one, other) = two_replicas(scene)?;
    let cut = scene.container(&one)?;
    partition::cut(&cut, &scene.addresses(std::slice::from_ref(&other)).await?, Direction::Both).await?;
    let primary = scene.primary_container()?;
    primary.set_frozen(true)?;
    let mut frozen = vec![primary];
    let outcome = async {
        let first = scene.wait_failover().await?;
        scene.writer.wait_progress(50).await?;
        let taken = timeline(scene, &first.to).await?;
        let winner = scene.container(&first.to)?;
        winner.set_frozen(true)?;
        frozen.push(winner);
        let second = scene.wait_term_after(first.term).await?;
        scene.writer.wait_progress(50).await?;
        let taken = (taken, timeline(scene, &second.to).await?);
        scene.note(format!("{} took timeline {}, {} took {}", first.to, taken.0, second.to, taken.1));
        claim(first.to != second.to && taken.0 == taken.1, || "the promotions did not take one number".to_string())
    }
    .await;
    partition::heal(&cut).await;
    for container in frozen {
        // It is gone if its liveness probe has failed meanwhile.
        drop(container.set_frozen(false));
    }
    outcome
}

/// Somebody promotes a replica by hand and writes to it.
pub(crate) async fn promoted_by_hand(scene: &Scene) -> Result<()> {
    let (rogue, _) = two_replicas(scene)?;
    let since = unix_ms();
    psql(scene.namespace(), &rogue, "postgres", "SELECT pg_promote(true, 30)").await?;
    let written =
        psql(scene.namespace(), &rogue, "app", "SET synchronous_commit = local; CREATE TABLE rogue AS SELECT 1 AS a")
            .await;
    scene.note(format!("a write on it by a superuser: {}", if written.is_ok() { "taken" } else { "refused" }));
    until(&format!("{rogue} to follow again"), PATIENCE, async || {
        let recovering = psql(scene.namespace(), &rogue, "postgres", "SELECT pg_is_in_recovery()").await?;
        Ok(if recovering == "t" { Look::Done(()) } else { Look::NotYet(format!("in recovery: {recovering}")) })
    })
    .await?;
    scene.note(format!("it follows again after {} ms", unix_ms() - since));
    // It may be started once more on its way back.
    let there = until(&format!("an answer of {rogue}"), PATIENCE, async || {
        psql(scene.namespace(), &rogue, "app", "SELECT to_regclass('rogue') IS NOT NULL").await.map(Look::Done)
    })
    .await?;
    claim(there == "f", || "what was written on it is still there".to_string())
}

/// The old primary has WAL that nobody acknowledged; it hangs, another takes over, it comes back.
pub(crate) async fn old_primary_ahead(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    let peers = scene.addresses(&scene.replicas()).await?;
    partition::cut(&container, &peers, Direction::Both).await?;
    // Long enough for sessions to write what they can't get acknowledged.
    tokio::time::sleep(Duration::from_secs(2)).await;
    container.set_frozen(true)?;
    let outcome = scene.wait_failover().await;
    let written = scene.writer.wait_progress(300).await;
    partition::heal(&container).await;
    container.set_frozen(false)?;
    outcome?;
    written.map(drop)
}

/// Mode `Off`: the replica that was ahead could not be reached when another was promoted; it returns.
pub(crate) async fn ahead_replica_returns(scene: &Scene) -> Result<()> {
    let (ahead, behind) = two_replicas(scene)?;
    let (ahead, primary) = (scene.container(&ahead)?, scene.primary_container()?);
    pgherd_e2e::postgres::stop_receiving(scene.namespace(), &behind).await?;
    scene.writer.wait_progress(100).await?;
    ahead.set_frozen(true)?;
    primary.set_frozen(true)?;
    let outcome = scene.wait_failover().await;
    let written = scene.writer.wait_progress(50).await;
    ahead.set_frozen(false)?;
    primary.set_frozen(false)?;
    claim(outcome?.to == behind, || format!("not {behind} was promoted"))?;
    written.map(drop)
}

/// A replica loses its volume; before its new copy has caught up the primary dies. A new data directory has forgotten what it
/// acknowledged and must not be counted.
pub(crate) async fn wiped_replica(scene: &Scene) -> Result<()> {
    let (wiped, _) = two_replicas(scene)?;
    let before =
        scene.before.members.iter().find(|member| member.pod == wiped).and_then(|member| member.member.clone());
    let namespace = scene.namespace();
    let claims = kubectl(
        namespace,
        &["get", "pod", &wiped, "-o", "jsonpath={.spec.volumes[*].persistentVolumeClaim.claimName}"],
    )
    .await?;
    for claim in claims.split_whitespace() {
        kubectl(namespace, &["delete", "pvc", claim, "--wait=false"]).await?;
    }
    kubectl(namespace, &["delete", "pod", &wiped, "--force", "--grace-period=0"]).await?;
    scene.primary_container()?.signal("KILL", &[Kind::Supervisor]).await?;
    scene.writer.wait_progress(50).await?;
    let status = scene.cluster.wait_ready(3).await?;
    let now = status.members.iter().find(|member| member.pod == wiped).and_then(|member| member.member.clone());
    claim(before != now, || format!("{wiped} is the same member {now:?} although its volume is new"))
}

/// A replica's new copy is killed midway; it must begin anew and never take the half for a whole.
pub(crate) async fn copy_killed(scene: &Scene) -> Result<()> {
    let (replica, _) = two_replicas(scene)?;
    let namespace = scene.namespace();
    let fill = "CREATE TABLE IF NOT EXISTS fill AS SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 700000) g";
    psql(namespace, &scene.primary()?, "app", fill).await?;
    let claims = kubectl(
        namespace,
        &["get", "pod", &replica, "-o", "jsonpath={.spec.volumes[*].persistentVolumeClaim.claimName}"],
    )
    .await?;
    for claim in claims.split_whitespace() {
        kubectl(namespace, &["delete", "pvc", claim, "--wait=false"]).await?;
    }
    kubectl(namespace, &["delete", "pod", &replica, "--force", "--grace-period=0"]).await?;
    let phase = until(&format!("{replica} to be copied"), PATIENCE, async || {
        let status = scene.cluster.status().await?;
        let phase = status.members.iter().find(|member| member.pod == replica).map(|member| member.phase.clone());
        let copying = matches!(phase.as_deref(), Some("Cloning" | "Restoring" | "Rewinding"));
        Ok(if copying { Look::Done(phase) } else { Look::NotYet(format!("{phase:?}")) })
    })
    .await?;
    scene.container(&replica)?.signal("KILL", &[Kind::Supervisor]).await?;
    scene.note(format!("{replica} was killed while it was {}", phase.unwrap_or_default()));
    scene.cluster.wait_ready(3).await?;
    let count = psql(namespace, &replica, "app", "SELECT count(*) FROM fill").await?;
    psql(namespace, &scene.cluster.primary().await?, "app", "DROP TABLE fill").await?;
    claim(count == "700000", || format!("{replica} has {count} of 700000 rows"))
}

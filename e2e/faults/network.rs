//! Partitions that leave something standing: the primary without the API, without its peers, without the operator, one way
//! only; lost packets; no DNS. Numbers 9 to 13, 20, 39, 40.

use std::time::{Duration, Instant};

use pgherd_e2e::{
    Result,
    cluster::PATIENCE,
    containers::{self, Container},
    operators,
    partition::{self, API_ADDRESS, Direction},
    wait::{Look, until},
};

use crate::scene::{Scene, claim, unix_ms};

/// How long a cut lasts that is to change nothing: far longer than the take-over time.
const LONG: Duration = Duration::from_secs(40);
/// How long a cut lasts of which a failover may come.
const SHORT: Duration = Duration::from_secs(20);

async fn operator_addresses() -> Result<Vec<String>> {
    Ok(operators::pods().await?.into_iter().map(|(_, _, address)| address).collect())
}

/// Who is cut from the primary.
#[derive(Clone, Copy)]
pub(crate) struct From {
    pub(crate) api: bool,
    pub(crate) peers: bool,
    pub(crate) operator: bool,
}

pub(crate) async fn addresses(scene: &Scene, from: From) -> Result<Vec<String>> {
    let mut all = Vec::new();
    if from.api {
        all.push(API_ADDRESS.to_string());
    }
    if from.peers {
        all.extend(scene.addresses(&scene.replicas()).await?);
    }
    if from.operator {
        all.extend(operator_addresses().await?);
    }
    Ok(all)
}

/// Cuts the primary, does the work, and takes the cut away whatever came of it.
async fn while_cut(
    scene: &Scene,
    from: From,
    direction: Direction,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    while_all_cut(&[scene.primary_container()?], &addresses(scene, from).await?, direction, work).await
}

/// Cuts each of these from the addresses, does the work, and takes all cuts away whatever came of it.
async fn while_all_cut(
    containers: &[Container],
    addresses: &[String],
    direction: Direction,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let outcome = async {
        for container in containers {
            partition::cut(container, addresses, direction).await?;
        }
        work().await
    }
    .await;
    for container in containers {
        partition::heal(container).await;
    }
    outcome
}

pub(crate) async fn without_api(scene: &Scene) -> Result<()> {
    let from = From { api: true, peers: false, operator: false };
    scene
        .nothing_moves(async || {
            while_cut(scene, from, Direction::Both, async || scene.watch_no_failover(LONG).await).await
        })
        .await
}

/// Clients still reach it, and one in its own network has a session open all the time.
pub(crate) async fn isolated(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    let from = From { api: true, peers: true, operator: true };
    let mut since = 0;
    while_cut(scene, from, Direction::Both, async || {
        since = unix_ms();
        scene.wait_failover().await?;
        scene.writer.wait_progress(50).await?;
        scene.wait_silent(&container, PATIENCE).await
    })
    .await?;
    let last = scene.note_last_ack_of(&container, since);
    claim(last <= 10_000, || format!("it took writes for {last} ms after it was isolated"))
}

/// Commits wait, none is acknowledged that no replica has.
pub(crate) async fn without_peers(scene: &Scene) -> Result<()> {
    let from = From { api: false, peers: true, operator: false };
    let container = scene.primary_container()?;
    let mut since = 0;
    while_cut(scene, from, Direction::Both, async || {
        since = unix_ms();
        // The time that the fault is defined by.
        tokio::time::sleep(SHORT).await;
        Ok(())
    })
    .await?;
    let last = scene.note_last_ack_of(&container, since);
    claim(last < 2_000, || format!("commits were acknowledged for {last} ms without a replica"))?;
    let status = scene.cluster.status().await?;
    scene.note(format!("term {:?} before, {:?} after", scene.before.term, status.term));
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn without_operator(scene: &Scene) -> Result<()> {
    let from = From { api: false, peers: false, operator: true };
    scene
        .nothing_moves(async || {
            while_cut(scene, from, Direction::Both, async || scene.watch_no_failover(LONG).await).await
        })
        .await
}

/// Cuts each of these pods from the others that are named, the API server and the operators, for the time of the work.
async fn while_zone_is_cut(
    scene: &Scene,
    zone: &[String],
    others: &[String],
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let mut away = scene.addresses(others).await?;
    away.push(API_ADDRESS.to_string());
    away.extend(operator_addresses().await?);
    let containers = zone.iter().map(|pod| scene.container(pod)).collect::<Result<Vec<_>>>()?;
    while_all_cut(&containers, &away, Direction::Both, work).await
}

/// The primary and one replica on one side, the other replica, the operators and the API server on the other. The voter beside
/// the primary keeps its promise to it, and the one on the other side can't prove alone that it has everything: no election
/// begins, and writes go on.
pub(crate) async fn zone_without_api(scene: &Scene) -> Result<()> {
    let (near, far) = sides(scene)?;
    let work = async || {
        let (reason, _) = scene.cluster.wait_condition("FailoverBlocked", "True").await?;
        claim(reason == "QuorumMissing", || format!("the failover is blocked for {reason}"))?;
        scene.watch_no_failover(SHORT).await?;
        let silent = scene.writer.ledger().await?.since_last_ack_ms;
        claim(silent < 2_000, || format!("no commit was acknowledged for {silent} ms although a voter promised"))
    };
    scene.nothing_moves(async || while_zone_is_cut(scene, &near, &far, work).await).await
}

/// The same, and the replica on the other side is cut from the API server as well.
pub(crate) async fn zones_without_api(scene: &Scene) -> Result<()> {
    let (near, far) = sides(scene)?;
    let work = async || while_zone_is_cut(scene, &far, &near, async || scene.watch_no_failover(LONG).await).await;
    scene.nothing_moves(async || while_zone_is_cut(scene, &near, &far, work).await).await
}

/// The primary alone is cut from everybody, and no replica reaches the API server: nobody can take over, and the primary must not go on.
pub(crate) async fn isolated_and_nobody_has_api(scene: &Scene) -> Result<()> {
    let (primary, replicas) = (vec![scene.primary()?], scene.replicas());
    let container = scene.primary_container()?;
    let mut since = 0;
    let work = async || {
        since = unix_ms();
        scene.watch_no_failover(SHORT).await?;
        scene.wait_silent(&container, PATIENCE).await
    };
    let replicas_cut = async || while_zone_is_cut(scene, &replicas, &primary, work).await;
    while_zone_is_cut(scene, &primary, &replicas, replicas_cut).await?;
    let last = scene.note_last_ack_of(&container, since);
    claim(last <= 2_000, || format!("commits were acknowledged for {last} ms without a replica"))?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// The primary with one replica, and the other replica.
fn sides(scene: &Scene) -> Result<(Vec<String>, Vec<String>)> {
    match scene.replicas().as_slice() {
        [near, far @ ..] if !far.is_empty() => Ok((vec![scene.primary()?, near.clone()], far.to_vec())),
        few => Err(format!("{} replicas instead of two", few.len()).into()),
    }
}

async fn one_way(scene: &Scene, from: From, direction: Direction) -> Result<()> {
    while_cut(scene, from, direction, async || {
        // The time that the fault is defined by.
        tokio::time::sleep(SHORT).await;
        Ok(())
    })
    .await?;
    scene.writer.wait_progress(50).await?;
    let status = scene.cluster.status().await?;
    scene.note(format!("term {:?} before, {:?} after", scene.before.term, status.term));
    Ok(())
}

pub(crate) async fn peers_in(scene: &Scene) -> Result<()> {
    one_way(scene, From { api: false, peers: true, operator: false }, Direction::In).await
}

pub(crate) async fn peers_out(scene: &Scene) -> Result<()> {
    one_way(scene, From { api: false, peers: true, operator: false }, Direction::Out).await
}

pub(crate) async fn api_in(scene: &Scene) -> Result<()> {
    one_way(scene, From { api: true, peers: false, operator: false }, Direction::In).await
}

pub(crate) async fn api_out(scene: &Scene) -> Result<()> {
    one_way(scene, From { api: true, peers: false, operator: false }, Direction::Out).await
}

/// One replica streams, but the operator can't reach it; then the primary goes. Unreachable is not sealed: with one of two
/// voters sealed nobody may be promoted.
pub(crate) async fn replica_without_operator(scene: &Scene) -> Result<()> {
    let hidden = scene.replicas().into_iter().next().ok_or("there is no replica")?;
    let hidden = scene.container(&hidden)?;
    let operators = operator_addresses().await?;
    partition::cut(&hidden, &operators, Direction::Both).await?;
    let primary = scene.primary_container()?;
    primary.set_frozen(true)?;
    let outcome = async {
        let (reason, message) = scene.cluster.wait_condition("FailoverBlocked", "True").await?;
        scene.note(format!("blocked: {reason}: {message}"));
        scene.watch_no_failover(SHORT).await
    }
    .await;
    partition::heal(&hidden).await;
    let after = if outcome.is_ok() { scene.wait_failover().await.map(drop) } else { Ok(()) };
    primary.set_frozen(false)?;
    outcome.and(after)
}

/// Five of a hundred packets between the primary and everybody vanish for half a minute.
pub(crate) async fn packets_lost(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    let all = addresses(scene, From { api: true, peers: true, operator: true }).await?;
    partition::lose(&container, &all, Direction::Both, 5).await?;
    // The time that the fault is defined by.
    tokio::time::sleep(Duration::from_secs(30)).await;
    partition::heal(&container).await;
    let status = scene.cluster.status().await?;
    let (before, after) = (scene.before.term.unwrap_or_default(), status.term.unwrap_or_default());
    claim(after <= before + 1, || format!("it flaps: term {before} before, {after} after"))
}

/// No name is answered while a primary's PostgreSQL dies, and then its successor's whole container. Instances find each other by the
/// addresses in the register and in their pods' status; clients of this fault's writer need the name.
pub(crate) async fn dns_down(scene: &Scene) -> Result<()> {
    let pid = std::fs::read_to_string("/var/lib/pgherd-cluster/run/coredns.pid")?;
    let pid: [u32; 1] = [pid.split_whitespace().next().ok_or("no pid of CoreDNS")?.parse()?];
    containers::send("STOP", &pid).await?;
    let outcome = async {
        scene.primary_container()?.signal("KILL", &[containers::Kind::Postmaster]).await?;
        let successor = scene.wait_failover().await?.to;
        let restarts = async || -> Result<i32> {
            Ok(scene.restarts().await?.into_iter().find(|(pod, _)| *pod == successor).map_or(0, |(_, count)| count))
        };
        let (before, begun) = (restarts().await?, Instant::now());
        scene.container(&successor)?.signal("KILL", &[containers::Kind::Supervisor]).await?;
        until("a primary after the successor's death", PATIENCE, async || {
            let status = scene.cluster.status().await?;
            let ready = status.conditions.iter().any(|c| c.type_ == "PrimaryAvailable" && c.status == "True");
            let died = restarts().await? > before;
            Ok(if died && ready { Look::Done(()) } else { Look::NotYet(format!("{:?}", status.primary)) })
        })
        .await?;
        scene.note(format!("without DNS a primary again {} ms after its container died", begun.elapsed().as_millis()));
        Ok(())
    }
    .await;
    containers::send("CONT", &pid).await?;
    outcome
}

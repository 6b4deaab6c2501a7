//! Faults of the store while WAL is archived: away, slow, refusing, with and without a failover, and an old primary that
//! archives once more. Numbers 47 and 51.

use std::time::Duration;

use pgherd_e2e::{
    Result,
    partition::{self, Direction},
    store::{self, BUCKET},
    store_faults::{ErrorCode, Rule, StoreFault},
    wait::{Look, until},
};

use crate::{
    backed::{count_waiting, end_segment, wait_archived},
    network::{From, addresses},
    registry::Mode,
    scene::{Scene, claim},
};

/// Failovers in which an isolated primary may archive.
const TRIES: usize = 3;
/// Segments that are ended while the store fails.
const SEGMENTS: u64 = 4;
/// How long the cluster is watched after the status has said that archiving fails.
const WATCHED: Duration = Duration::from_secs(20);

pub(crate) async fn down(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Down, "cannot be reached", stays).await
}

pub(crate) async fn busy(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Refuse(503, ErrorCode::SlowDown), "SlowDown", stays).await
}

pub(crate) async fn denies(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Refuse(403, ErrorCode::AccessDenied), "AccessDenied", stays).await
}

pub(crate) async fn expired(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Refuse(403, ErrorCode::ExpiredToken), "ExpiredToken", stays).await
}

pub(crate) async fn down_in_failover(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Down, "cannot be reached", fails_over).await
}

pub(crate) async fn expired_in_failover(scene: &Scene) -> Result<()> {
    fails(scene, StoreFault::Refuse(403, ErrorCode::ExpiredToken), "ExpiredToken", fails_over).await
}

/// The store fails every request: the status says so and why, WAL waits on the volume, clients notice nothing, and once the
/// store is back the archive catches up.
async fn fails(
    scene: &Scene,
    fault: StoreFault,
    said: &str,
    meanwhile: impl AsyncFnOnce(&Scene) -> Result<()>,
) -> Result<()> {
    let proxy = &scene.backed()?.proxy;
    proxy.befall(&[Rule::always(fault)]).await?;
    let primary = scene.primary()?;
    for _ in 0..SEGMENTS {
        end_segment(&primary).await?;
        scene.writer.wait_progress(20).await?;
    }
    let (reason, message) = scene.cluster.wait_condition("Archiving", "False").await?;
    claim(reason == "ArchiveFailing" && message.contains(said), || format!("Archiving says {reason}: {message}"))?;
    let waiting = count_waiting(&primary).await?;
    claim(waiting >= SEGMENTS, || format!("{waiting} files wait for the archive of at least {SEGMENTS}"))?;
    scene.note(format!("{waiting} files waited; Archiving=False {reason}: {message}"));
    meanwhile(scene).await?;
    scene.writer.wait_progress(50).await?;
    proxy.heal().await?;
    let begun = std::time::Instant::now();
    wait_archived(&scene.cluster).await?;
    scene.note(format!("the archive caught up in {} s", begun.elapsed().as_secs()));
    Ok(())
}

async fn stays(scene: &Scene) -> Result<()> {
    scene.watch_no_failover(WATCHED).await
}

async fn fails_over(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    container.set_frozen(true)?;
    let outcome = async {
        scene.wait_failover().await?;
        scene.writer.wait_progress(100).await
    }
    .await;
    container.set_frozen(false)?;
    outcome.map(drop)
}

/// Each request takes three seconds: the archive lags, and nothing else happens.
pub(crate) async fn slow(scene: &Scene) -> Result<()> {
    let proxy = &scene.backed()?.proxy;
    proxy.befall(&[Rule::always(StoreFault::Late(3_000))]).await?;
    let primary = scene.primary()?;
    for _ in 0..SEGMENTS {
        end_segment(&primary).await?;
    }
    scene.watch_no_failover(WATCHED + WATCHED).await?;
    scene.note(format!("{} files wait for the archive", count_waiting(&primary).await?));
    proxy.heal().await?;
    wait_archived(&scene.cluster).await
}

/// The primary is cut from API, peers and operators, but not from the store, and ends a segment with WAL that no replica has: it
/// reaches the archive under a name that the successor knows as well. Neither overwrites the other, and the history that was
/// promised is the one that comes back. Whether it archives before it is fenced is a matter of a second: it has several tries.
pub(crate) async fn old_primary_archives(scene: &Scene) -> Result<()> {
    for _ in 0..TRIES {
        if archive_behind(scene).await? {
            return Ok(());
        }
        scene.cluster.wait_ready(3).await?;
        wait_archived(&scene.cluster).await?;
    }
    Err(format!("skipped: in {TRIES} tries no isolated primary archived anything before it was fenced").into())
}

/// False when the isolated primary was fenced before it had archived anything.
async fn archive_behind(scene: &Scene) -> Result<bool> {
    let (status, primary) = (scene.cluster.status().await?, scene.cluster.primary().await?);
    let container = scene.container(&primary)?;
    let mut all = addresses(scene, From { api: true, peers: false, operator: true }).await?;
    let others = status.members.iter().filter(|member| member.pod != primary).map(|member| member.pod.clone());
    all.extend(scene.addresses(&others.collect::<Vec<_>>()).await?);
    partition::cut(&container, &all, Direction::Both).await?;
    // Time for sessions to write what nobody will acknowledge.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let outcome = async {
        let segment = end_segment(&primary).await?;
        let seen = wait_object(scene, &segment).await;
        scene.wait_term_after(status.term.unwrap_or_default()).await?;
        scene.writer.wait_progress(100).await?;
        Ok::<_, pgherd_e2e::Error>((segment, seen))
    }
    .await;
    partition::heal(&container).await;
    let (segment, seen) = outcome?;
    let Ok(before) = seen else {
        scene.note(format!("{primary} was fenced before it had archived {segment}"));
        return Ok(false);
    };
    let successor = scene.cluster.primary().await?;
    end_segment(&successor).await?;
    scene.cluster.wait_ready(3).await?;
    wait_archived(&scene.cluster).await?;
    let after = wait_object(scene, &segment).await?;
    scene.note(format!("{primary} archived {segment} after it was cut off; {successor} left it alone"));
    claim(before == after, || format!("{segment} was replaced in the archive: {before} before, {after} after"))?;
    Ok(true)
}

/// The ETag of a segment in the archive, as soon as it is there.
async fn wait_object(scene: &Scene, segment: &str) -> Result<String> {
    let wal = format!("{}/wal/", scene.backed()?.root(Mode::Backed.cluster()));
    let name = format!("/{segment}.zst");
    until(&format!("{segment} in the archive"), Duration::from_secs(7), async || {
        let all = store::keys(&wal).await?;
        let Some(key) = all.iter().find(|key| key.ends_with(&name)) else {
            return Ok(Look::NotYet(format!("{} objects", all.len())));
        };
        let stat = store::mc(&["stat", "--json", &format!("local/{BUCKET}/{key}")]).await?;
        let stat: serde_json::Value = serde_json::from_str(stat.lines().next().unwrap_or_default())?;
        Ok(Look::Done(stat["etag"].as_str().unwrap_or_default().to_owned()))
    })
    .await
}

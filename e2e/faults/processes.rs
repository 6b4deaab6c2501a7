//! Faults of single processes: killed, stopped, out of processor time. Numbers 1 to 4, 35, 36.

use std::time::Duration;

use pgherd_e2e::{Result, containers::Kind, postgres::psql};

use crate::scene::{Scene, claim, unix_ms};

/// Memory that the container may take beyond what it has, in bytes.
const OOM_ROOM: u64 = 64 << 20;
/// The fencing time (8 s), a second for SIGKILL, and a second for a busy machine.
const FENCED_WITHIN_MS: i64 = 10_000;

pub(crate) async fn postmaster_killed(scene: &Scene) -> Result<()> {
    scene.primary_container()?.signal("KILL", &[Kind::Postmaster]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn supervisor_killed(scene: &Scene) -> Result<()> {
    scene.primary_container()?.signal("KILL", &[Kind::Supervisor]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn agent_killed(scene: &Scene) -> Result<()> {
    scene.primary_container()?.signal("KILL", &[Kind::Agent]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

pub(crate) async fn backend_killed(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    let session =
        container.processes.iter().find(|process| process.title.contains("[local]") || process.title.contains(" app "));
    let session = session.ok_or_else(|| format!("no session among {:?}", container.processes))?;
    pgherd_e2e::containers::send("KILL", &[session.pid]).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// A session asks for more memory than the container may have, and the kernel kills it; PostgreSQL starts anew.
pub(crate) async fn out_of_memory(scene: &Scene) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let limit = container.limit_memory(OOM_ROOM)?;
    let greedy = "SELECT length(string_agg(repeat(g::text, 100000), '')) FROM generate_series(1, 1500) g";
    let outcome = psql(scene.namespace(), &primary, "postgres", greedy).await;
    limit.lift()?;
    scene.note(format!("the session: {}", outcome.map_or_else(|error| error.to_string(), |out| format!("got {out}"))));
    let kills = limit.kills()?;
    claim(kills > 0, || "the kernel killed nobody".to_string())?;
    scene.note(format!("{kills} processes were killed"));
    scene.writer.wait_progress(50).await.map(drop)
}

/// The supervisor is left alone and must act.
pub(crate) async fn agent_stopped(scene: &Scene) -> Result<()> {
    let (primary, container) = (scene.primary()?, scene.primary_container()?);
    let since = unix_ms();
    container.signal("STOP", &[Kind::Agent]).await?;
    scene.writer.wait_progress(50).await?;
    // Writes may have gone on for a while, or come back elsewhere: the primary's own last word counts.
    scene.wait_failover_or_restart(&primary).await?;
    let last = scene.note_last_ack_of(&container, since);
    claim(last <= FENCED_WITHIN_MS, || format!("{primary} took writes for {last} ms after its agent was stopped"))
}

/// The agent is left alone and must notice.
pub(crate) async fn postgres_stopped(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    container.signal("STOP", &[Kind::Postmaster, Kind::Backend]).await?;
    scene.wait_failover_or_restart(&scene.primary()?).await?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// Two percent of a processor for a minute: whatever comes of it, two must not write at once.
pub(crate) async fn starved(scene: &Scene) -> Result<()> {
    let container = scene.primary_container()?;
    container.limit_cpu(Some(2))?;
    // The time that the fault is defined by.
    tokio::time::sleep(Duration::from_secs(60)).await;
    // One that answered no probe for so long was started anew by the kubelet: then the limit went with it.
    let now = scene.container(&container.pod);
    if now.is_ok_and(|now| now.cgroup == container.cgroup) {
        container.limit_cpu(None)?;
    }
    let status = scene.cluster.status().await?;
    scene.note(format!("term {:?} before, {:?} after", scene.before.term, status.term));
    Ok(())
}

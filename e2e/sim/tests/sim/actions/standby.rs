//! Steps of a standby: to start, to follow, and to be built.

use std::{sync::Arc, time::Duration};

use pgherd_agent::{
    actions::follow::{locate, may_be_namesake},
    layout::slot_name,
    local_state::LocalState,
    postgres::{config::Role, probe::Sample, wal_dir::is_diverged},
};
use pgherd_core::{instance::Phase, quorum::receiver_name, register::Register};
use tokio::time::{Instant, sleep, timeout};

use super::{Failed, failed, local, new_member, runs, start_server};
use crate::{
    data::{Content, DataDir},
    instance::Instance,
    postgres::Postgres,
    trace::note,
};

/// The holder's server, if it takes writes, and a copy of what it holds.
pub(super) async fn meet_primary(
    on: &Instance,
    register: &Register,
    pod: &str,
) -> Result<(Arc<Postgres>, DataDir), Failed> {
    let met = async {
        let server = on.world.server_of(pod).ok_or_else(|| failed(format!("{pod} refuses the connection")))?;
        let (here, there) = (on.scope.node, server.scope.node);
        on.world.net.travel(&on.world.random, here, there).await;
        while server.scope.is_frozen() && !server.is_stopped() {
            sleep(Duration::from_millis(100)).await;
        }
        on.world.net.travel(&on.world.random, there, here).await;
        Ok::<_, Failed>(server)
    };
    let server = timeout(Duration::from_secs(5), met).await.map_err(|_| failed(format!("{pod} does not answer")))??;
    if !server.answers() || !server.is_primary() {
        return Err(failed(format!("{pod} does not take writes yet")));
    }
    let data = server.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("no data there"))?;
    if register.system_id.as_ref().is_some_and(|expected| *expected != data.system_id) {
        return Err(failed("another database system"));
    }
    Ok((server, data))
}

pub(super) fn ensure_slot(on: &Instance, of: &Postgres) {
    of.volume.with(|content| {
        if let Some(data) = content.data_mut() {
            data.slots.insert(slot_name(&on.pod), true);
        }
    });
}

fn may_follow(on: &Instance, register: &Register, theirs: &DataDir) -> Result<bool, Failed> {
    let known = local(on)?.term;
    let diverged = on.volume.with(|content| {
        content.data().is_some_and(|mine| {
            is_diverged(&mine.history, mine.flushed_lsn(), &theirs.history)
                || may_be_namesake(known, register.term, mine.history.timeline, theirs.history.timeline)
        })
    });
    if diverged {
        note(format!("{} is on a branch of its own", on.pod));
        on.agent.set_diverged(true);
        on.agent.wake.notify_one();
    }
    Ok(!diverged)
}

fn enter_term(on: &Instance, register: &Register) -> Result<(), Failed> {
    let mut state = local(on)?;
    if state.term < register.term {
        state.term = register.term;
        on.volume.put_local(&state);
    }
    Ok(())
}

fn standby_role(on: &Instance, upstream: Option<&str>) -> Result<Role, Failed> {
    let upstream = upstream.map(|pod| locate(&on.agent, pod));
    let local = local(on)?;
    Ok(Role::Standby { upstream, receiver_name: receiver_name(&local.member, local.term), promotion: None })
}

pub(super) fn start_as(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    start_server(on, true, upstream.map(str::to_owned), "", true);
    on.agent.set_role(Some(role));
    on.agent.board.say(Phase::Starting, "PostgreSQL starts as a standby");
    Ok(())
}

pub(super) async fn start_standby(on: &Instance, register: &Register, upstream: Option<&str>) -> Result<(), Failed> {
    let Some(pod) = upstream else { return start_as(on, None) };
    match meet_primary(on, register, pod).await {
        Ok((server, theirs)) => {
            if !may_follow(on, register, &theirs)? {
                return Ok(());
            }
            ensure_slot(on, &server);
            enter_term(on, register)?;
            start_as(on, upstream)
        }
        Err(_) => start_as(on, None),
    }
}

pub(super) fn change_role(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    if let Some(server) = on.server() {
        server.configure(upstream.map(str::to_owned), "", true);
    }
    on.agent.set_role(Some(role));
    Ok(())
}

pub(super) async fn set_upstream(on: &Instance, register: &Register, upstream: Option<&str>) -> Result<(), Failed> {
    let Some(pod) = upstream else { return change_role(on, None) };
    if matches!(on.agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
        change_role(on, None)?;
    }
    if on.agent.board.status().phase != Phase::Starting {
        on.agent.board.say(Phase::Replica, format!("waiting to follow {pod}"));
    }
    let (server, theirs) = meet_primary(on, register, pod).await?;
    let settled = |sample: &Sample| sample.receiver.is_none() && sample.replayed >= sample.received;
    if !on.agent.sample().is_some_and(|sample| settled(&sample)) {
        let replayed = await_replay_end(on, Duration::from_secs(3)).await;
        replayed.map_err(|missing| failed(format!("before it follows {pod}: {missing}")))?;
    }
    if !may_follow(on, register, &theirs)? {
        return Ok(());
    }
    ensure_slot(on, &server);
    enter_term(on, register)?;
    change_role(on, Some(pod))
}

/// Everything that was received is replayed, and nothing more comes.
pub(super) async fn await_replay_end(on: &Instance, bound: Duration) -> Result<Sample, &'static str> {
    let deadline = Instant::now() + bound;
    let (mut before, mut waiting_for) = (None, "PostgreSQL does not answer");
    while Instant::now() < deadline {
        let sample = on.sample_now().await;
        if let Some(sample) = sample {
            let seals = on.world.mutant.seals();
            let ended = sample.in_recovery && (sample.receiver.is_none() || !seals);
            if ended && sample.replayed >= sample.received && (before == Some(sample.replayed) || !seals) {
                return Ok(sample);
            }
            waiting_for = if ended { "the replay goes on" } else { "the WAL receiver still runs" };
            before = ended.then_some(sample.replayed);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(waiting_for)
}

/// Its WAL is on the primary's history: it follows as the member that it was.
pub(super) fn resume(on: &Instance, register: &Register, server: &Postgres, pod: &str) -> Result<(), Failed> {
    ensure_slot(on, server);
    let state = LocalState { term: register.term, was_primary: false, ..local(on)? };
    on.volume.put_local(&state);
    on.agent.set_diverged(false);
    note(format!("{} follows {pod} as it is", on.pod));
    if runs(on) { change_role(on, Some(pod)) } else { start_as(on, Some(pod)) }
}

pub(super) async fn keep_replica(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    let agent = &on.agent;
    change_role(on, Some(pod))?;
    let sample = agent.sample();
    let receiver = sample.as_ref().and_then(|sample| sample.receiver.as_ref().filter(|receiver| receiver.streaming));
    match receiver {
        Some(receiver) if agent.streaming.note_receiver(receiver.pid) => {
            agent.streaming.note_streaming();
            on.volume.with(|content| content.data_mut().map(|data| data.slots.clear()));
            agent.board.say(Phase::Replica, "");
            return Ok(());
        }
        Some(_) if agent.streaming.not_streaming_for().is_zero() => agent.board.say(Phase::Replica, ""),
        Some(_) => {}
        None => {
            agent.streaming.note_not_streaming();
            match &sample {
                None => agent.board.say(Phase::Starting, "PostgreSQL starts as a standby"),
                Some(_) => agent.board.say(Phase::Replica, format!("waiting for WAL from {pod}")),
            }
        }
    }
    let check_after = Duration::from_secs(10);
    if agent.streaming.not_streaming_for() < check_after || !agent.streaming.take_check_turn(check_after) {
        return Ok(());
    }
    let (server, theirs) = meet_primary(on, register, pod).await?;
    if may_follow(on, register, &theirs)? {
        ensure_slot(on, &server);
    }
    Ok(())
}

/// A copy that takes a while, during which the source must stay reachable.
pub(super) async fn copy(on: &Instance, server: &Postgres, millis: u64) -> Result<DataDir, Failed> {
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
        let (here, there) = (on.scope.node, server.scope.node);
        let lost = timeout(Duration::from_secs(5), on.world.net.travel(&on.world.random, there, here)).await.is_err();
        if lost || !server.answers() {
            return Err(Failed { why: "the copy broke off".to_owned(), soon: false });
        }
    }
    server.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("the source is gone"))
}

pub(super) async fn build_replica(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    on.agent.board.say(Phase::Cloning, format!("asking {pod} for a copy"));
    let (server, _) = meet_primary(on, register, pod).await?;
    ensure_slot(on, &server);
    on.volume.with(|content| *content = Content::Partial);
    let source = copy(on, &server, on.world.random.between(500, 4_000)).await?;
    on.volume.with(|content| *content = Content::Complete(DataDir::copied(&source, new_member(on))));
    on.agent.set_diverged(false);
    on.agent.streaming.note_streaming();
    Ok(())
}

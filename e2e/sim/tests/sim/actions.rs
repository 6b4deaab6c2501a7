//! The agent's steps over the simulated server, in the order in which `pgherd_agent::actions` takes them. Renewals, tenure,
//! the progress of the synchronous settings and what is shown are the agent's own; only processes, files and SQL differ.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use pgherd_agent::{
    actions::{follow::locate, primary, stop},
    clock::Boottime,
    layout::slot_name,
    lease::{self, Tenure},
    local_state::LocalState,
    machine::LocalAction,
    postgres::{config::Role, probe::Sample, wal_dir::is_diverged},
};
use pgherd_core::{
    instance::{Phase, SealReport},
    quorum::synchronous_standby_names,
    register::{MemberId, Register, Term},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    data::{Content, DataDir},
    instance::Instance,
    postgres::Postgres,
    trace::note,
    world::SYSTEM_ID,
};

/// A step that did not work; it is decided again.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

fn failed(error: impl std::fmt::Display) -> Failed {
    Failed(error.to_string())
}

pub(crate) async fn execute(on: &Instance, register: &Register, action: LocalAction) -> Result<(), Failed> {
    let agent = &on.agent;
    match action {
        LocalAction::Wait(why) => {
            stop::show_waiting(agent, &why);
            Ok(())
        }
        LocalAction::Fail(why) => {
            agent.board.say(Phase::Failed, why);
            Ok(())
        }
        LocalAction::StopNow(why) => {
            stop_now(on, &why);
            Ok(())
        }
        LocalAction::Release(why) => {
            stop_now(on, &why);
            lease::release(agent, register.term).await.map_err(failed)?;
            agent.board.say(Phase::Stopped, format!("{why}: the primary role is given back"));
            Ok(())
        }
        LocalAction::Bootstrap => bootstrap(on, register).await,
        LocalAction::StartPrimary => start_primary(on, register).await,
        LocalAction::KeepPrimary => keep_primary(on, register).await,
        LocalAction::Promote => promote(on, register).await,
        LocalAction::StartStandby { upstream } => start_standby(on, register, upstream.as_deref()).await,
        LocalAction::SetUpstream { upstream } => set_upstream(on, register, upstream.as_deref()).await,
        LocalAction::KeepReplica { upstream } => keep_replica(on, register, &upstream).await,
        LocalAction::BuildReplica { upstream } => build_replica(on, register, &upstream).await,
        LocalAction::Rejoin { upstream } => rejoin(on, register, &upstream).await,
        LocalAction::Seal => {
            promise(on, register.seal_term);
            Ok(())
        }
    }
}

/// As if the machine had lost power.
pub(crate) fn stop_now(on: &Instance, why: &str) {
    note(format!("{} stops at once: {why}", on.pod));
    stop_server(on);
    stop::end_tenure(&on.agent);
    on.agent.board.say(Phase::Stopped, why);
}

fn stop_server(on: &Instance) {
    if let Some(server) = on.server.lock().unwrap().take() {
        server.kill();
    }
    forget_samples(on);
}

/// What was said by a server that is gone counts no more: the real one counts starts.
fn forget_samples(on: &Instance) {
    if let Some(sample) = on.agent.sample() {
        on.agent.publish_sample(Sample { generation: u64::MAX, ..sample });
    }
}

fn start_server(on: &Instance, standby: bool, upstream: Option<String>, names: &str) {
    stop_server(on);
    let server = Postgres::start(&on.world, &on.pod, &on.scope, &on.volume, standby, upstream, names);
    *on.server.lock().unwrap() = Some(server);
}

fn local(on: &Instance) -> Result<LocalState, Failed> {
    on.volume.local().ok_or_else(|| failed("there is no data directory"))
}

fn new_member(on: &Instance) -> LocalState {
    LocalState { member: MemberId(format!("member-{}", on.world.next_number())), ..LocalState::new_member() }
}

async fn bootstrap(on: &Instance, register: &Register) -> Result<(), Failed> {
    lease::renew(&on.agent, register.term).await.map_err(failed)?;
    let excused_until = Boottime(u64::MAX);
    on.agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until }));
    on.volume.with(|content| *content = Content::Partial);
    on.agent.board.say(Phase::Initializing, "initdb");
    sleep(Duration::from_millis(on.world.random.between(500, 2_500))).await;
    let local = LocalState { term: register.term, was_primary: true, promoted_term: register.term, ..new_member(on) };
    on.volume.with(|content| *content = Content::Complete(DataDir::initdb(local, SYSTEM_ID)));
    Ok(())
}

async fn start_primary(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    lease::renew(agent, register.term).await.map_err(failed)?;
    let excused_until = primary::recovery_excuse(agent);
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until }));
    primary::note_quorum(agent, register);
    start_server(on, false, None, &synchronous_standby_names(register.quorum_to_apply()));
    agent.set_role(Some(primary::primary_role(register)));
    agent.board.say(Phase::Starting, "PostgreSQL starts as primary");
    Ok(())
}

async fn keep_primary(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    if agent.led_term() != Some(register.term) {
        lease::renew(agent, register.term).await.map_err(failed)?;
        agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    }
    let Some(server) = on.server() else { return Ok(()) };
    let wanted = register.quorum_to_apply();
    let (known, names) = (agent.quorum(), synchronous_standby_names(wanted));
    let members: BTreeSet<&MemberId> = wanted.voters.iter().map(|voter| &voter.member).collect();
    let same = known.acks == wanted.acks
        && known.members.iter().collect::<BTreeSet<_>>() == members
        && known.since > Boottime(0);
    if server.names() != names {
        server.configure(None, &names);
        agent.set_role(Some(primary::primary_role(register)));
    }
    if !same {
        primary::note_quorum(agent, register);
    }
    let Some(sample) = agent.sample().filter(|sample| !sample.in_recovery) else {
        let excused = agent.tenure.borrow().map(|tenure| tenure.excused_until);
        if agent.board.status().phase == Phase::Starting && excused.is_some_and(|until| until < Boottime::now()) {
            stop_now(on, "crash recovery takes too long");
            return lease::release(agent, register.term).await.map_err(failed);
        }
        let phase = if agent.board.status().phase == Phase::Primary { Phase::Primary } else { Phase::Starting };
        agent.board.say(phase, "PostgreSQL does not answer");
        return Ok(());
    };
    agent.end_excuse();
    primary::pass_barrier(agent, &sample);
    let (instances, prefix) = (agent.config().instances, format!("{}_", slot_name("shop")));
    on.volume.with(|content| {
        if let Some(data) = content.data_mut() {
            data.slots.retain(|name, _| {
                name.strip_prefix(&prefix).and_then(|o| o.parse::<u32>().ok()).is_none_or(|o| o < instances)
            });
        }
    });
    agent.board.say(Phase::Primary, "");
    Ok(())
}

async fn promote(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    agent.board.say(Phase::Promoting, format!("promotion in term {}", register.term));
    lease::renew(agent, register.term).await.map_err(failed)?;
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    let mut state = local(on)?;
    (state.term, state.was_primary) = (register.term, true);
    on.volume.put_local(&state);
    on.show_local(&state);
    let server = on.server().ok_or_else(|| failed("the server is gone"))?;
    let names = synchronous_standby_names(register.quorum_to_apply());
    server.configure(None, &names);
    let role = Role::Standby { upstream: None, member: state.member.0.clone(), synchronous_standby_names: names };
    agent.set_role(Some(role));
    sleep(Duration::from_millis(50)).await;
    if !server.promote().await {
        return Err(failed("the promotion failed"));
    }
    state.promoted_term = register.term;
    on.volume.put_local(&state);
    agent.set_role(Some(primary::primary_role(register)));
    primary::note_quorum(agent, register);
    on.sample_now().await;
    agent.board.say(Phase::Primary, "");
    Ok(())
}

/// The holder's server, if it takes writes, and a copy of what it holds.
async fn meet_primary(on: &Instance, register: &Register, pod: &str) -> Result<(Arc<Postgres>, DataDir), Failed> {
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

fn ensure_slot(on: &Instance, of: &Postgres) {
    of.volume.with(|content| {
        if let Some(data) = content.data_mut() {
            data.slots.insert(slot_name(&on.pod), true);
        }
    });
}

fn may_follow(on: &Instance, theirs: &DataDir) -> bool {
    let diverged = on.volume.with(|content| {
        content.data().is_some_and(|mine| is_diverged(&mine.history, mine.flushed_lsn(), &theirs.history))
    });
    if diverged {
        note(format!("{} is on a branch of its own", on.pod));
        on.agent.set_diverged(true);
        on.agent.wake.notify_one();
    }
    !diverged
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
    Ok(Role::Standby { upstream, member: local(on)?.member.0, synchronous_standby_names: String::new() })
}

fn start_as(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    start_server(on, true, upstream.map(str::to_owned), "");
    on.agent.set_role(Some(role));
    on.agent.board.say(Phase::Starting, "PostgreSQL starts as a standby");
    Ok(())
}

async fn start_standby(on: &Instance, register: &Register, upstream: Option<&str>) -> Result<(), Failed> {
    let Some(pod) = upstream else { return start_as(on, None) };
    match meet_primary(on, register, pod).await {
        Ok((server, theirs)) => {
            if !may_follow(on, &theirs) {
                return Ok(());
            }
            ensure_slot(on, &server);
            enter_term(on, register)?;
            start_as(on, upstream)
        }
        Err(_) => start_as(on, None),
    }
}

fn change_role(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    if let Some(server) = on.server() {
        server.configure(upstream.map(str::to_owned), "");
    }
    on.agent.set_role(Some(role));
    Ok(())
}

async fn set_upstream(on: &Instance, register: &Register, upstream: Option<&str>) -> Result<(), Failed> {
    let Some(pod) = upstream else { return change_role(on, None) };
    if matches!(on.agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
        change_role(on, None)?;
    }
    if on.agent.board.status().phase != Phase::Starting {
        on.agent.board.say(Phase::Replica, format!("waiting to follow {pod}"));
    }
    let (server, theirs) = meet_primary(on, register, pod).await?;
    if !may_follow(on, &theirs) {
        return Ok(());
    }
    ensure_slot(on, &server);
    enter_term(on, register)?;
    change_role(on, Some(pod))
}

async fn keep_replica(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    let agent = &on.agent;
    change_role(on, Some(pod))?;
    let sample = agent.sample();
    let streams = sample.as_ref().is_some_and(|sample| sample.receiver.as_ref().is_some_and(|r| r.streaming));
    if streams {
        agent.note_streaming();
        on.volume.with(|content| content.data_mut().map(|data| data.slots.clear()));
        agent.board.say(Phase::Replica, "");
        return Ok(());
    }
    agent.note_not_streaming();
    match sample {
        None => agent.board.say(Phase::Starting, "PostgreSQL starts as a standby"),
        Some(_) => agent.board.say(Phase::Replica, format!("waiting for WAL from {pod}")),
    }
    let check_after = Duration::from_secs(10);
    if agent.not_streaming_for() < check_after || !agent.take_check_turn(check_after) {
        return Ok(());
    }
    let (server, theirs) = meet_primary(on, register, pod).await?;
    if may_follow(on, &theirs) {
        ensure_slot(on, &server);
    }
    Ok(())
}

/// A copy that takes a while, during which the source must stay reachable.
async fn copy(on: &Instance, server: &Postgres, millis: u64) -> Result<DataDir, Failed> {
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
        let (here, there) = (on.scope.node, server.scope.node);
        let lost = timeout(Duration::from_secs(5), on.world.net.travel(&on.world.random, there, here)).await.is_err();
        if lost || !server.answers() {
            return Err(failed("the copy broke off"));
        }
    }
    server.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("the source is gone"))
}

async fn build_replica(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    on.agent.board.say(Phase::Cloning, format!("asking {pod} for a copy"));
    let (server, _) = meet_primary(on, register, pod).await?;
    ensure_slot(on, &server);
    on.volume.with(|content| *content = Content::Partial);
    let source = copy(on, &server, on.world.random.between(500, 4_000)).await?;
    on.volume.with(|content| *content = Content::Complete(DataDir::copied(&source, new_member(on))));
    on.agent.set_diverged(false);
    on.agent.note_streaming();
    Ok(())
}

async fn rejoin(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    on.agent.board.say(Phase::Rewinding, format!("comparing with {pod}"));
    let (server, theirs) = match meet_primary(on, register, pod).await {
        Ok(met) => met,
        Err(error) => {
            if on.server().is_none_or(|server| server.is_stopped()) {
                start_as(on, None)?;
            }
            return Err(error);
        }
    };
    ensure_slot(on, &server);
    stop_server(on);
    on.agent.set_role(None);
    let mine = on.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("nothing to rewind"))?;
    let same_number = mine.history.timeline == theirs.history.timeline;
    if same_number && (mine.history.ancestors != theirs.history.ancestors || mine.local.was_primary) {
        note(format!("{} moves its data directory aside", on.pod));
        on.volume.with(|content| *content = Content::Partial);
        on.agent.set_diverged(false);
        on.agent.note_streaming();
        return Ok(());
    }
    on.volume.with(|content| *content = Content::Partial);
    let source = copy(on, &server, on.world.random.between(300, 2_000)).await?;
    let state = LocalState { sealed_term: mine.local.sealed_term, ..new_member(on) };
    on.volume.with(|content| *content = Content::Complete(DataDir::copied(&source, state)));
    on.agent.set_diverged(false);
    Ok(())
}

fn promise(on: &Instance, term: Term) {
    let Some(mut state) = on.volume.local() else { return };
    if state.sealed_term < term {
        state.sealed_term = term;
        on.volume.put_local(&state);
        on.agent.board.update(|status| status.sealed_term = term);
    }
}

/// Answers `POST /v1/seal`: the report, or why there is none.
pub(crate) async fn seal(on: &Instance, term: Term) -> Result<SealReport, (u16, String)> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let busy = |_| (503, "the agent is busy".to_owned());
    let _acting = timeout(Duration::from_secs(3), on.agent.acting.lock()).await.map_err(busy)?;
    let known = on.volume.local().ok_or((503, "no data directory".to_owned()))?;
    if known.sealed_term > term || known.term >= term {
        return Err((409, format!("promised {} and followed {}", known.sealed_term, known.term)));
    }
    let unavailable = |error: Failed| (503, error.0);
    if on.world.mutant.seals() {
        if matches!(on.agent.role(), Some(Role::Primary { .. })) {
            stop_now(on, "a failover has begun");
        }
        promise(on, term);
        if on.server().is_some_and(|server| !server.is_stopped()) {
            change_role(on, None).map_err(unavailable)?;
        } else {
            start_as(on, None).map_err(unavailable)?;
        }
    }
    let mut before = None;
    while Instant::now() < deadline {
        if let Some(sample) = on.sample_now().await {
            let cut = sample.receiver.is_none() || !on.world.mutant.seals();
            let ended = sample.in_recovery && cut && sample.replayed >= sample.received;
            if ended && (before == Some(sample.replayed) || !on.world.mutant.seals()) {
                on.agent.board.say(Phase::Sealed, "sealed: waiting for the decision");
                let history = on.volume.with(|content| content.data().map(|data| data.history.clone()));
                let history = history.ok_or((503, "its timeline is not known".to_owned()))?;
                return Ok(SealReport {
                    member: known.member,
                    pod: on.pod.clone(),
                    sealed_term: term,
                    term: known.term,
                    history,
                    received_lsn: sample.received,
                    replayed_lsn: sample.replayed,
                });
            }
            before = ended.then_some(sample.replayed);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Err((503, "not sealed within 10 s".to_owned()))
}

/// The pod ends: a primary stops so that every replica has everything, then gives its role back.
pub(crate) async fn shut_down(on: &Instance) {
    let agent = &on.agent;
    let tenure = *agent.tenure.borrow();
    if let Some(tenure) = tenure {
        let excused_until = Boottime::now().plus_millis(30_000);
        agent.tenure.send_replace(Some(Tenure { excused_until, ..tenure }));
    }
    agent.board.say(Phase::Stopped, "shutting down");
    if let Some(server) = on.server() {
        server.shut_down(Duration::from_secs(25)).await;
    }
    *on.server.lock().unwrap() = None;
    stop::end_tenure(agent);
    if let Some(tenure) = tenure
        && let Err(error) = lease::release(agent, tenure.term).await
    {
        note(format!("{} could not release: {error}", on.pod));
    }
}

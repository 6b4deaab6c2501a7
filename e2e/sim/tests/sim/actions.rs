//! The agent's steps over the simulated server, in the order in which `pgherd_agent::actions` takes them. Renewals, tenure,
//! the progress of the synchronous settings and what is shown are the agent's own; only processes, files and SQL differ.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pgherd_agent::{
    actions::{
        branch::{OwnEnd, Standing, decide_standing},
        follow::{locate, may_be_namesake},
        primary,
        seal::{lift_if_released, respect_promise},
        stop,
    },
    clock::Boottime,
    layout::slot_name,
    lease::{self, Tenure},
    local_state::LocalState,
    machine::LocalAction,
    postgres::{config::Role, probe::Sample, wal_dir::is_diverged},
};
use pgherd_core::{
    admission::admits_at_once,
    instance::{Phase, SealReport},
    lsn::Lsn,
    quorum::{receiver_name, synchronous_standby_names},
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

/// A clean stop may take this long.
const CLEAN_STOP: Duration = Duration::from_secs(10);

/// A step that did not work; it is decided again.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) why: String,
    /// It waits for something that is about to happen.
    pub(crate) soon: bool,
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Failed {
    Failed { why: error.to_string(), soon: true }
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
        LocalAction::HandOver(why) => hand_over(on, register, &why).await,
        LocalAction::Bootstrap => bootstrap(on, register).await,
        LocalAction::Restore(_) => Err(failed("no simulated cluster asks for a restore")),
        LocalAction::StartPrimary => start_primary(on, register).await,
        LocalAction::KeepPrimary => keep_primary(on, register).await,
        LocalAction::Promote => promote(on, register).await,
        LocalAction::StartStandby { upstream } => start_standby(on, register, upstream.as_deref()).await,
        LocalAction::SetUpstream { upstream } => set_upstream(on, register, upstream.as_deref()).await,
        LocalAction::KeepReplica { upstream } => keep_replica(on, register, &upstream).await,
        LocalAction::BuildReplica { upstream } => build_replica(on, register, &upstream).await,
        LocalAction::Rejoin { upstream } => rejoin(on, register, &upstream).await,
        LocalAction::Seal => promise(on, register.seal_term),
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
    let server = on.server.lock().unwrap().take();
    if let Some(server) = server {
        server.kill();
        on.agent.server.count_foreign_change();
    }
}

fn start_server(on: &Instance, standby: bool, upstream: Option<String>, names: &str, admits: bool) {
    stop_server(on);
    on.died.store(false, Ordering::SeqCst);
    let server = Postgres::start(&on.world, &on.pod, &on.scope, &on.volume, standby, upstream, names);
    server.admits.store(admits, Ordering::SeqCst);
    *on.server.lock().unwrap() = Some(server);
    on.agent.server.count_foreign_change();
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
    let admits = admits_at_once(register) || !on.world.mutant.gates();
    start_server(on, false, None, &synchronous_standby_names(register.quorum_to_apply(), register.term), admits);
    agent.gate.begin(agent.server.generation(), register);
    agent.set_role(Some(primary::primary_role(register, admits)));
    agent.board.say(Phase::Starting, "PostgreSQL starts as primary");
    Ok(())
}

async fn keep_primary(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    if agent.led_term() != Some(register.term) {
        lease::renew(agent, register.term).await.map_err(failed)?;
        agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    }
    let generation = agent.server.generation();
    agent.gate.begin(generation, register);
    let admits = agent.gate.admits(generation);
    apply_settings(on, register, admits || !on.world.mutant.gates());
    if admits && agent.gate.note_open(generation) {
        primary::show_open(agent);
    }
    let Some(sample) = agent.sample().filter(|sample| !sample.in_recovery) else {
        return give_up_on_recovery(on, register).await;
    };
    primary::pass_barrier(agent, &sample);
    let (instances, prefix) = (agent.config().instances, format!("{}_", slot_name("shop")));
    on.volume.with(|content| {
        if let Some(data) = content.data_mut() {
            data.slots.retain(|name, _| {
                name.strip_prefix(&prefix).and_then(|o| o.parse::<u32>().ok()).is_none_or(|o| o < instances)
            });
        }
    });
    if !agent.gate.is_open(generation) {
        primary::show_closed(agent);
        return Ok(());
    }
    primary::show_open(agent);
    primary::end_excuse(agent);
    Ok(())
}

async fn give_up_on_recovery(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    let excused = agent.tenure.borrow().map(|tenure| tenure.excused_until);
    if agent.board.status().phase == Phase::Starting && excused.is_some_and(|until| until < Boottime::now()) {
        stop_now(on, "crash recovery takes too long");
        return lease::release(agent, register.term).await.map_err(failed);
    }
    let (phase, message) = match agent.board.status().phase {
        Phase::Primary => (Phase::Primary, "PostgreSQL does not answer"),
        _ => (Phase::Starting, "PostgreSQL starts as primary"),
    };
    agent.board.say(phase, message);
    Ok(())
}

fn apply_settings(on: &Instance, register: &Register, admits: bool) {
    let (agent, role) = (&on.agent, primary::primary_role(register, admits));
    let wanted = register.quorum_to_apply();
    let known = agent.quorum();
    let members: BTreeSet<&MemberId> = wanted.voters.iter().map(|voter| &voter.member).collect();
    let same = known.acks == wanted.acks
        && known.members.iter().collect::<BTreeSet<_>>() == members
        && known.since > Boottime(0);
    if let Some(server) = on.server().filter(|_| agent.role().as_ref() != Some(&role)) {
        server.configure(None, &synchronous_standby_names(wanted, register.term), admits);
        agent.set_role(Some(role));
    }
    if !same {
        primary::note_quorum(agent, register);
    }
}

/// The role is to move: a checkpoint while it serves, a clean stop, then it is given back.
async fn hand_over(on: &Instance, register: &Register, why: &str) -> Result<(), Failed> {
    sleep(Duration::from_millis(on.world.random.between(30, 1_500))).await;
    let end = stop_cleanly(on, why).await;
    lease::release_at(&on.agent, register.term, end).await.map_err(failed)?;
    on.agent.board.say(Phase::Stopped, format!("{why}: the primary role is given back"));
    Ok(())
}

/// Stops so that whoever is connected has everything; the end of the WAL of a primary.
async fn stop_cleanly(on: &Instance, why: &str) -> Option<Lsn> {
    let agent = &on.agent;
    let tenure = *agent.tenure.borrow();
    if let Some(tenure) = tenure {
        let excused_until = Boottime::now().plus_millis(15_000);
        agent.tenure.send_replace(Some(Tenure { excused_until, ..tenure }));
    }
    agent.board.say(Phase::Stopped, why);
    if let Some(server) = on.server() {
        server.shut_down(CLEAN_STOP).await;
    }
    stop_server(on);
    stop::end_tenure(agent);
    tenure?;
    on.volume.with(|content| content.data().map(|data| data.shut_down_at.unwrap_or(data.flushed_lsn())))
}

async fn promote(on: &Instance, register: &Register) -> Result<(), Failed> {
    let agent = &on.agent;
    lease::renew(agent, register.term).await.map_err(failed)?;
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    let mut state = local(on)?;
    (state.term, state.was_primary) = (register.term, true);
    on.volume.put_local(&state);
    on.show_local(&state);
    let server = on.server().ok_or_else(|| failed("the server is gone"))?;
    let names = synchronous_standby_names(register.quorum_to_apply(), register.term);
    // Where it is about to be promoted it lets no more clients in.
    server.configure(None, &names, !on.world.mutant.gates());
    let role = Role::Standby { upstream: None, receiver_name: String::new(), promotion: Some(names) };
    agent.set_role(Some(role));
    sleep(Duration::from_millis(50)).await;
    agent.board.say(Phase::Promoting, format!("promotion in term {}", register.term));
    let generation = agent.server.generation();
    agent.gate.begin(generation, register);
    if !server.promote().await {
        return Err(failed("the promotion failed"));
    }
    state.promoted_term = register.term;
    on.volume.put_local(&state);
    let admits = agent.gate.admits(generation);
    let admitted = admits || !on.world.mutant.gates();
    server.configure(None, &synchronous_standby_names(register.quorum_to_apply(), register.term), admitted);
    agent.set_role(Some(primary::primary_role(register, admitted)));
    primary::note_quorum(agent, register);
    on.sample_now().await;
    if admits {
        agent.gate.note_open(generation);
        agent.board.say(Phase::Primary, "");
    } else {
        primary::show_closed(agent);
    }
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

fn start_as(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    start_server(on, true, upstream.map(str::to_owned), "", true);
    on.agent.set_role(Some(role));
    on.agent.board.say(Phase::Starting, "PostgreSQL starts as a standby");
    Ok(())
}

async fn start_standby(on: &Instance, register: &Register, upstream: Option<&str>) -> Result<(), Failed> {
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

fn change_role(on: &Instance, upstream: Option<&str>) -> Result<(), Failed> {
    let role = standby_role(on, upstream)?;
    if let Some(server) = on.server() {
        server.configure(upstream.map(str::to_owned), "", true);
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
async fn await_replay_end(on: &Instance, bound: Duration) -> Result<Sample, &'static str> {
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
fn resume(on: &Instance, register: &Register, server: &Postgres, pod: &str) -> Result<(), Failed> {
    ensure_slot(on, server);
    let state = LocalState { term: register.term, was_primary: false, ..local(on)? };
    on.volume.put_local(&state);
    on.agent.set_diverged(false);
    note(format!("{} follows {pod} as it is", on.pod));
    if runs(on) { change_role(on, Some(pod)) } else { start_as(on, Some(pod)) }
}

async fn keep_replica(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    let agent = &on.agent;
    change_role(on, Some(pod))?;
    let sample = agent.sample();
    let receiver = sample.as_ref().and_then(|sample| sample.receiver.as_ref().filter(|receiver| receiver.streaming));
    match receiver {
        Some(receiver) if agent.note_receiver(receiver.pid) => {
            agent.note_streaming();
            on.volume.with(|content| content.data_mut().map(|data| data.slots.clear()));
            agent.board.say(Phase::Replica, "");
            return Ok(());
        }
        Some(_) if agent.not_streaming_for().is_zero() => agent.board.say(Phase::Replica, ""),
        Some(_) => {}
        None => {
            agent.note_not_streaming();
            match &sample {
                None => agent.board.say(Phase::Starting, "PostgreSQL starts as a standby"),
                Some(_) => agent.board.say(Phase::Replica, format!("waiting for WAL from {pod}")),
            }
        }
    }
    let check_after = Duration::from_secs(10);
    if agent.not_streaming_for() < check_after || !agent.take_check_turn(check_after) {
        return Ok(());
    }
    let (server, theirs) = meet_primary(on, register, pod).await?;
    if may_follow(on, register, &theirs)? {
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
            return Err(Failed { why: "the copy broke off".to_owned(), soon: false });
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

fn runs(on: &Instance) -> bool {
    on.server().is_some_and(|server| !server.is_stopped())
}

/// The end of this data directory's WAL; where only a recovery can tell, a standby does it.
async fn observe_end(on: &Instance) -> Result<OwnEnd, Failed> {
    let segment_bytes = 1 << 24;
    let read = || on.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("nothing to rejoin with"));
    if runs(on) {
        if matches!(on.agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
            change_role(on, None)?;
        }
        let missing = |what| failed(format!("looking for the end of its WAL: {what}"));
        let lsn = await_replay_end(on, Duration::from_secs(3)).await.map_err(missing)?.replayed;
        return Ok(OwnEnd { history: read()?.history, lsn, known_to: lsn, segment_bytes });
    }
    let data = read()?;
    if let Some(checkpoint) = data.shut_down_at {
        return Ok(OwnEnd::after_clean_stop(data.history, checkpoint, segment_bytes));
    }
    start_as(on, None)?;
    Err(failed("looking for the end of its WAL"))
}

async fn rejoin(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    on.agent.board.say(Phase::Rewinding, format!("comparing with {pod}"));
    let (server, theirs) = match meet_primary(on, register, pod).await {
        Ok(met) => met,
        Err(error) => {
            if !runs(on) {
                start_as(on, None)?;
            }
            return Err(error);
        }
    };
    let own = observe_end(on).await?;
    let state = local(on)?;
    let led = state.was_primary && state.term < register.term;
    let standing = decide_standing(&own, &theirs.history, theirs.flushed_lsn(), led);
    let shared_to = match standing {
        Standing::OnHistory => own.known_to,
        Standing::Diverged { fork, .. } => fork,
    };
    if standing == Standing::OnHistory && own.known_to > theirs.flushed_lsn() {
        return Err(failed(format!("{pod} has not written as much as this instance yet")));
    }
    let mine = on.volume.with(|content| content.data().map(|data| data.page_before(shared_to))).unwrap_or_default();
    let same = mine == theirs.page_before(shared_to);
    note(format!("{} rejoins {pod}: {standing:?}, the same bytes before {shared_to}: {same}", on.pod));
    match (standing, same) {
        (Standing::OnHistory, true) => return resume(on, register, &server, pod),
        (Standing::Diverged { same_number: true, .. }, _) | (_, false) => {
            note(format!("{} moves its data directory aside", on.pod));
            stop_server(on);
            on.agent.set_role(None);
            on.volume.with(|content| *content = Content::Partial);
            on.agent.set_diverged(false);
            on.agent.note_streaming();
            return Ok(());
        }
        _ => {}
    }
    ensure_slot(on, &server);
    stop_server(on);
    on.agent.set_role(None);
    on.volume.with(|content| *content = Content::Partial);
    let source = copy(on, &server, on.world.random.between(300, 2_000)).await?;
    let state = LocalState { sealed_term: state.sealed_term, ..new_member(on) };
    on.volume.with(|content| *content = Content::Complete(DataDir::copied(&source, state)));
    on.agent.set_diverged(false);
    Ok(())
}

fn promise(on: &Instance, term: Term) -> Result<(), Failed> {
    let Some(mut state) = on.volume.local() else { return Ok(()) };
    if state.sealed_term < term {
        let vouches = &on.agent.vouches;
        if let Err(vouching) = vouches.begin_seal(term) {
            lift_if_released(&on.agent, vouching);
            let still = vouches.begin_seal(term);
            if on.world.mutant.keeps_promises() {
                still.map_err(failed)?;
            }
        }
        state.sealed_term = term;
        on.volume.put_local(&state);
        on.agent.board.update(|status| status.sealed_term = term);
    }
    Ok(())
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
    let unavailable = |error: Failed| (503, error.why);
    if on.world.mutant.seals() {
        let respected = respect_promise(&on.agent, term).await;
        if on.world.mutant.keeps_promises() {
            respected.map_err(|vouching| (409, vouching.to_string()))?;
        }
        if matches!(on.agent.role(), Some(Role::Primary { .. })) {
            stop_now(on, "a failover has begun");
        }
        promise(on, term).map_err(unavailable)?;
        if runs(on) {
            change_role(on, None).map_err(unavailable)?;
        } else {
            start_as(on, None).map_err(unavailable)?;
        }
    }
    let sample = await_replay_end(on, deadline.saturating_duration_since(Instant::now())).await;
    let sample = sample.map_err(|missing| (503, format!("not sealed within 10 s: {missing}")))?;
    on.agent.board.say(Phase::Sealed, "sealed: waiting for the decision");
    let history = on.volume.with(|content| content.data().map(|data| data.history.clone()));
    let history = history.ok_or((503, "its timeline is not known".to_owned()))?;
    Ok(SealReport {
        member: known.member,
        pod: on.pod.clone(),
        sealed_term: term,
        term: known.term,
        history,
        received_lsn: sample.received,
        replayed_lsn: sample.replayed,
    })
}

/// The pod ends: a primary stops so that every replica has everything, then gives its role back.
pub(crate) async fn shut_down(on: &Instance) {
    let tenure = *on.agent.tenure.borrow();
    if tenure.is_some() {
        sleep(Duration::from_millis(on.world.random.between(30, 1_500))).await;
    }
    let end = stop_cleanly(on, "shutting down").await;
    if let Some(tenure) = tenure
        && let Err(error) = lease::release_at(&on.agent, tenure.term, end).await
    {
        note(format!("{} could not release: {error}", on.pod));
    }
}

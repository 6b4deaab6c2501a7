//! Steps of whoever holds the primary's role.

use std::{collections::BTreeSet, time::Duration};

use pgherd_agent::{
    actions::primary,
    clock::Boottime,
    layout::slot_name,
    lease::{self, Tenure},
    local_state::LocalState,
    postgres::config::Role,
};
use pgherd_core::{
    admission::admits_at_once,
    instance::Phase,
    quorum::synchronous_standby_names,
    register::{MemberId, Register},
};

use tokio::time::sleep;

use super::{Failed, failed, local, new_member, start_server, stop_cleanly, stop_now};
use crate::{
    data::{Content, DataDir},
    instance::Instance,
    world::SYSTEM_ID,
};

pub(super) async fn bootstrap(on: &Instance, register: &Register) -> Result<(), Failed> {
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

pub(super) async fn start_primary(on: &Instance, register: &Register) -> Result<(), Failed> {
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

pub(super) async fn keep_primary(on: &Instance, register: &Register) -> Result<(), Failed> {
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
pub(super) async fn hand_over(on: &Instance, register: &Register, why: &str) -> Result<(), Failed> {
    sleep(Duration::from_millis(on.world.random.between(30, 1_500))).await;
    let end = stop_cleanly(on, why).await;
    lease::release_at(&on.agent, register.term, end).await.map_err(failed)?;
    on.agent.board.say(Phase::Stopped, format!("{why}: the primary role is given back"));
    Ok(())
}

pub(super) async fn promote(on: &Instance, register: &Register) -> Result<(), Failed> {
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

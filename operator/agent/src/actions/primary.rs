//! Being primary: starting again in the term that was already led, and keeping settings, roles, slots and the synchronous
//! standbys as the register and the configuration want them.

use std::{collections::BTreeSet, time::Duration};

use pgherd_core::{
    admission::admits_at_once,
    instance::{Phase, Standby},
    quorum::synchronous_standby_names,
    register::{MemberId, Register},
};

use super::{ActionError, render_options};
use crate::{
    agent::{Agent, QuorumProgress},
    clock::Boottime,
    layout::slot_name,
    lease::{self, Tenure},
    postgres::{
        binaries::Binaries,
        config::{Role, apply_config, apply_start_config},
        control::observe_control,
        probe::Sample,
        roles::{ensure_app, ensure_replication_role, read_app_credentials},
        sql::Session,
        wal_dir::list,
    },
};

/// How long crash recovery may take before somebody else is let in, when there is somebody else.
const RECOVERY_PATIENCE_MS: u64 = 60_000;
/// How long a change of the synchronous standbys is given to reach every process, before the barrier is taken.
const SETTLE: Duration = Duration::from_secs(1);
/// Making roles and a database may take longer than a probe.
const ROLES_PATIENCE: Duration = Duration::from_secs(20);

/// The renewals' excuse while the server starts: without other instances recovery may take as long as it does.
#[must_use]
pub fn recovery_excuse(agent: &Agent) -> Boottime {
    if agent.config().instances > 1 { Boottime::now().plus_millis(RECOVERY_PATIENCE_MS) } else { Boottime(u64::MAX) }
}

/// What the server is to be as primary under this register; `admits_clients` is what its gate says.
#[must_use]
pub fn primary_role(register: &Register, admits_clients: bool) -> Role {
    let names = synchronous_standby_names(register.quorum_to_apply(), register.term);
    Role::Primary { synchronous_standby_names: names, admits_clients }
}

/// Starts the server as primary of the term that this data directory was promoted in. The register is renewed first: the
/// compare-and-swap is what proves that nobody else was chosen meanwhile.
///
/// # Errors
/// [`ActionError`].
pub async fn start(agent: &Agent, register: &Register) -> Result<(), ActionError> {
    lease::renew(agent, register.term).await?;
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: recovery_excuse(agent) }));
    let role = primary_role(register, admits_at_once(register));
    apply_start_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)?;
    note_quorum(agent, register);
    let binaries = Binaries::observe()?;
    agent.server.start(&binaries, &observe_prepared(agent, &binaries).await?).await?;
    agent.gate.begin(agent.server.generation(), register);
    agent.set_role(Some(role));
    agent.board.say(Phase::Starting, "PostgreSQL starts as primary");
    Ok(())
}

/// What this start needs for transactions that are prepared, or may be in WAL that is yet to be replayed, where the configuration has less
/// than what they were prepared with (a recovered cluster without the setting, for one).
async fn observe_prepared(agent: &Agent, binaries: &Binaries) -> Result<Vec<String>, ActionError> {
    let pgdata = &agent.layout.pgdata;
    let control = observe_control(binaries, pgdata).await?;
    if control.shut_down && list(&pgdata.join("pg_twophase")).is_empty() {
        return Ok(Vec::new());
    }
    Ok(render_options(&control.floor.prepared_above_configured(&agent.config().parameters)))
}

/// Remembers which synchronous standbys are in the configuration from now on.
pub fn note_quorum(agent: &Agent, register: &Register) {
    let set = register.quorum_to_apply();
    let members: Vec<MemberId> = set.voters.iter().map(|voter| voter.member.clone()).collect();
    let names = synchronous_standby_names(set, register.term);
    agent.update_quorum(|progress| {
        *progress =
            QuorumProgress { names, members, acks: set.acks, since: Boottime::now(), barrier: None, passed: false };
    });
}

/// Keeps a running primary as it should be.
///
/// # Errors
/// [`ActionError`].
pub async fn keep(agent: &Agent, register: &Register) -> Result<(), ActionError> {
    if agent.led_term() != Some(register.term) {
        lease::renew(agent, register.term).await?;
        agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    }
    let generation = agent.server.generation();
    agent.gate.begin(generation, register);
    // Read once: a gate that passes right now is written at the next turn, which it has asked for.
    let admits = agent.gate.admits(generation);
    apply_settings(agent, register, admits).await?;
    if admits && agent.gate.note_open(generation) {
        // The roles were made before it was closed: nobody waits for another look at them.
        show_open(agent);
    }
    let Some(sample) = agent.sample().filter(|sample| !sample.in_recovery) else {
        return give_up_on_recovery(agent, register).await;
    };
    pass_barrier(agent, &sample);
    drop_slots_of_removed_pods(agent, &sample).await;
    if !agent.gate.is_open(generation) {
        show_closed(agent);
        return Ok(());
    }
    ensure_roles(agent).await?;
    show_open(agent);
    end_excuse(agent);
    Ok(())
}

/// It serves: from now on silence means that it hangs, however short ago it was started. Where nobody could take over, it
/// stays excused: to kill it would help nobody.
pub fn end_excuse(agent: &Agent) {
    if agent.config().instances < 2 {
        return;
    }
    agent.tenure.send_if_modified(|tenure| {
        if let Some(tenure) = tenure {
            tenure.excused_until = Boottime(0);
        }
        // Whoever renews reads it each time; it is no reason to renew at once.
        false
    });
}

/// It takes writes from clients.
pub fn show_open(agent: &Agent) {
    agent.board.update(|status| status.admits_clients = status.is_primary);
    agent.board.say(Phase::Primary, agent.going_on().unwrap_or_default());
}

/// It takes writes, but not from clients: not Primary yet.
pub fn show_closed(agent: &Agent) {
    let phase = match agent.board.status().phase {
        Phase::Promoting => Phase::Promoting,
        _ => Phase::Starting,
    };
    agent.board.say(phase, agent.gate.waits_for());
}

/// No answer yet. When recovery takes too long and others could serve, the role is offered while recovery goes on: the
/// renewals go on as well until a failover begins.
async fn give_up_on_recovery(agent: &Agent, register: &Register) -> Result<(), ActionError> {
    let excused = agent.tenure.borrow().map(|tenure| tenure.excused_until);
    if agent.board.status().phase == Phase::Starting && excused.is_some_and(|until| until < Boottime::now()) {
        return super::stop::release(agent, register.term, "crash recovery takes too long").await;
    }
    let (phase, message) = match agent.board.status().phase {
        Phase::Primary => (Phase::Primary, "PostgreSQL does not answer"),
        _ => (Phase::Starting, "PostgreSQL starts as primary"),
    };
    agent.board.say(phase, message);
    Ok(())
}

/// Renders the configuration and lets the server read it if it changed.
async fn apply_settings(agent: &Agent, register: &Register, admits_clients: bool) -> Result<(), ActionError> {
    let role = primary_role(register, admits_clients);
    let wanted = register.quorum_to_apply();
    let known = agent.quorum();
    let members: BTreeSet<&MemberId> = wanted.voters.iter().map(|voter| &voter.member).collect();
    let same = known.acks == wanted.acks
        && known.members.iter().collect::<BTreeSet<_>>() == members
        && known.since > Boottime(0);
    if apply_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)? {
        agent.server.reload().await;
        agent.set_role(Some(role));
    }
    if !same {
        note_quorum(agent, register);
    }
    Ok(())
}

/// Takes the barrier once the setting is in effect, and sees whether enough voters have flushed it. In effect means: a
/// session sees it, every process had time to read it, and the checkpointer, which publishes to all backends whether
/// commits wait at all, was seen idle after that.
pub fn pass_barrier(agent: &Agent, sample: &Sample) {
    let term = agent.led_term();
    agent.update_quorum(|progress| {
        let in_effect = sample.synchronous_standby_names == progress.names && sample.checkpointer_idle;
        if progress.barrier.is_none() && in_effect && sample.at.since(progress.since) >= SETTLE {
            progress.barrier = Some(sample.received);
        }
        let Some(barrier) = progress.barrier else { return };
        let counts = |standby: &&Standby| progress.members.contains(&standby.member) && standby.term == term;
        let flushed = sample.standbys.iter().filter(|standby| counts(standby) && standby.flush_lsn >= barrier);
        let members: BTreeSet<&MemberId> = flushed.map(|standby| &standby.member).collect();
        progress.passed |= members.len() >= progress.acks as usize;
    });
}

/// Makes the roles once per start of the server and whenever the Secret changed.
async fn ensure_roles(agent: &Agent) -> Result<(), ActionError> {
    let app = read_app_credentials(&agent.layout.app)?;
    let generation = agent.server.generation();
    if agent.roles_are_applied(generation, &app) {
        return Ok(());
    }
    let session =
        Session::connect(&agent.layout.socket_dir, agent.layout.postgres_port, "postgres", ROLES_PATIENCE).await?;
    ensure_replication_role(&session).await?;
    ensure_app(&session, &app).await?;
    agent.note_roles(generation, app);
    Ok(())
}

/// A slot of a pod that is gone for good would keep WAL for ever. Only names of ordinals above the number of instances.
async fn drop_slots_of_removed_pods(agent: &Agent, sample: &Sample) {
    let config = agent.config();
    let prefix = format!("{}_", slot_name(&config.cluster));
    let removed = sample.slots.iter().filter(|(name, active)| {
        let ordinal = name.strip_prefix(&prefix).and_then(|ordinal| ordinal.parse::<u32>().ok());
        !active && ordinal.is_some_and(|ordinal| ordinal >= config.instances)
    });
    for (name, _) in removed {
        tracing::info!(slot = %name, "dropping the slot of a pod that is gone for good");
        if let Ok(session) = crate::postgres::probe::connect(&agent.layout).await {
            let _ = session.query("SELECT pg_drop_replication_slot($1)", &[name]).await;
        }
    }
}

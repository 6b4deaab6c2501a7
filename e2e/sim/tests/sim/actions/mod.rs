//! The agent's steps over the simulated server, in the order in which `pgherd_agent::actions` takes them. Renewals, tenure,
//! the progress of the synchronous settings and what is shown are the agent's own; only processes, files and SQL differ.

mod primary;
mod rejoin;
mod seal;
mod standby;

use std::{sync::atomic::Ordering, time::Duration};

use pgherd_agent::{
    actions::stop,
    clock::Boottime,
    lease::{self, Tenure},
    local_state::LocalState,
    machine::LocalAction,
};
use pgherd_core::{
    instance::Phase,
    lsn::Lsn,
    register::{MemberId, Register},
};
use tokio::time::sleep;

use crate::{instance::Instance, postgres::Postgres, trace::note};
use primary::{bootstrap, hand_over, keep_primary, promote, start_primary};
use rejoin::rejoin;
use seal::promise;
pub(crate) use seal::seal;
use standby::{build_replica, keep_replica, set_upstream, start_standby};

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

fn runs(on: &Instance) -> bool {
    on.server().is_some_and(|server| !server.is_stopped())
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

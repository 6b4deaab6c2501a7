//! The gate in front of a primary that was started again or promoted: closed until W voters have what it had when its
//! recovery ended. This watches and says when; pg_hba.conf is written by whoever keeps the primary.
//!
//! A gate that is open stays open until the server is started anew.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use pgherd_core::{
    admission::{admits_at_once, decide_admission},
    lsn::Lsn,
    register::Register,
};
use tokio::{sync::watch, time::sleep};

use crate::{
    agent::Agent,
    clock::Boottime,
    postgres::{
        probe::{self, Admittance},
        sql::{Session, SqlError},
    },
};

/// While closed, the standbys are looked at this often: it is a part of the write gap of a failover.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Nobody can be that quick when the server does not answer, or the voters have been missing for long.
const LOOK_LATER: Duration = Duration::from_millis(200);
/// Closed for longer than this is long.
const LONG: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    /// Enough voters have everything; the configuration is to be written.
    Passed,
    Open,
}

/// Of one start of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    generation: u64,
    stage: Stage,
    since: Boottime,
    waits_for: String,
}

/// Whether clients are let in.
#[derive(Debug)]
pub struct Gate {
    entry: watch::Sender<Option<Entry>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { entry: watch::Sender::new(None) }
    }
}

impl Gate {
    /// Puts the gate in front of this start of the server, open where nothing is to be waited for. Changes nothing when
    /// it stands already.
    pub fn begin(&self, generation: u64, register: &Register) {
        let stage = if admits_at_once(register) { Stage::Open } else { Stage::Closed };
        let waits_for = "clients are let in once PostgreSQL has ended its recovery".to_owned();
        self.entry.send_if_modified(|entry| {
            let new = entry.as_ref().is_none_or(|entry| entry.generation != generation);
            if new {
                *entry = Some(Entry { generation, stage, since: Boottime::now(), waits_for });
            }
            new
        });
    }

    fn stage(&self, generation: u64) -> Stage {
        let entry = self.entry.borrow();
        entry.as_ref().filter(|entry| entry.generation == generation).map_or(Stage::Closed, |entry| entry.stage)
    }

    /// Clients may be let in: pg_hba.conf is to be written in full.
    #[must_use]
    pub fn admits(&self, generation: u64) -> bool {
        self.stage(generation) != Stage::Closed
    }

    /// Clients are let in.
    #[must_use]
    pub fn is_open(&self, generation: u64) -> bool {
        self.stage(generation) == Stage::Open
    }

    /// Returns once no gate is closed, or there is none.
    pub async fn await_passed(&self) {
        let passed = |entry: &Option<Entry>| entry.as_ref().is_none_or(|entry| entry.stage != Stage::Closed);
        // The sender is this gate's.
        let _ = self.entry.subscribe().wait_for(passed).await;
    }

    /// What is waited for, for people.
    #[must_use]
    pub fn waits_for(&self) -> String {
        self.entry.borrow().as_ref().map(|entry| entry.waits_for.clone()).unwrap_or_default()
    }

    /// The configuration that lets clients in is in force; true when the gate was not open before.
    pub fn note_open(&self, generation: u64) -> bool {
        self.advance(generation, Stage::Passed, Stage::Open)
    }

    fn advance(&self, generation: u64, from: Stage, to: Stage) -> bool {
        self.entry.send_if_modified(|entry| match entry {
            Some(entry) if entry.generation == generation && entry.stage == from => {
                entry.stage = to;
                true
            }
            _ => false,
        })
    }

    /// Clients are not let in through a gate that nobody remembers.
    fn forget(&self, generation: u64) {
        self.entry.send_if_modified(|entry| {
            let outdated = entry.as_ref().is_some_and(|e| e.generation == generation && e.stage == Stage::Closed);
            if outdated {
                *entry = None;
            }
            outdated
        });
    }

    fn note_waiting(&self, generation: u64, why: String) {
        self.entry.send_if_modified(|entry| {
            if let Some(entry) = entry.as_mut().filter(|entry| entry.generation == generation) {
                entry.waits_for = why;
            }
            // Nobody waits for a text.
            false
        });
    }
}

/// How the gate looks at one start of the server. The simulation has servers of its own; decisions stay here.
pub trait Lookout: Send {
    /// What the primary has flushed and how far its standbys are; None while it recovers.
    fn look<'a>(&'a mut self, agent: &'a Agent) -> BoxFuture<'a, Result<Option<Admittance>, SqlError>>;
}

/// Over a session of its own, which is opened again after an error.
#[derive(Default)]
struct OwnSession(Option<Session>);

impl Lookout for OwnSession {
    fn look<'a>(&'a mut self, agent: &'a Agent) -> BoxFuture<'a, Result<Option<Admittance>, SqlError>> {
        async move {
            let session = match self.0.take() {
                Some(session) => session,
                None => probe::connect(&agent.layout).await?,
            };
            let seen = probe::observe_admittance(&session).await?;
            self.0 = Some(session);
            Ok(seen)
        }
        .boxed()
    }
}

/// Watches the voters while the gate is closed; never ends.
pub async fn keep_gate(agent: Arc<Agent>) {
    keep_gate_through(agent, OwnSession::default).await;
}

/// [`keep_gate`] with another way to look at the server, made anew for each start of it.
pub async fn keep_gate_through<L: Lookout>(agent: Arc<Agent>, lookout: impl Fn() -> L + Send + Sync) {
    let mut entries = agent.gate.entry.subscribe();
    loop {
        let closed = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.stage == Stage::Closed);
        let entry = match entries.wait_for(closed).await {
            Ok(entry) => entry.clone(),
            Err(_) => return,
        };
        if let Some(entry) = entry {
            watch_voters(&agent, &entry, &mut lookout()).await;
        }
    }
}

/// Until the gate of this start passes, or another start has begun.
async fn watch_voters(agent: &Agent, entry: &Entry, lookout: &mut impl Lookout) {
    let generation = entry.generation;
    let mut ended_at: Option<Lsn> = None;
    while agent.gate.stage(generation) == Stage::Closed && agent.server.generation() == generation {
        let looked = lookout.look(agent).await;
        if let Ok(Some(seen)) = &looked {
            // Taken at the first look after the recovery: nobody but pgherd has been let in since.
            ended_at.get_or_insert(seen.flushed);
        }
        let waited = Boottime::now().since(entry.since);
        let pause = match looked {
            Ok(Some(seen)) => match decide(agent, &seen, ended_at) {
                Ok(()) => {
                    tracing::info!(
                        at = ended_at.map(|lsn| lsn.to_string()),
                        closed_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                        "enough voters have what this primary started with: clients are let in"
                    );
                    agent.gate.advance(generation, Stage::Closed, Stage::Passed);
                    agent.wake.notify_one();
                    return;
                }
                Err(why) => {
                    agent.gate.note_waiting(generation, why);
                    if waited > LONG { LOOK_LATER } else { LOOK_EVERY }
                }
            },
            Ok(None) => LOOK_EVERY,
            Err(_) => LOOK_LATER,
        };
        sleep(pause).await;
    }
    // The process that this gate was for is gone; whoever starts the next one begins anew.
    agent.gate.forget(generation);
}

fn decide(agent: &Agent, seen: &Admittance, ended_at: Option<Lsn>) -> Result<(), String> {
    let register = agent.register.borrow().as_ref().map(|known| known.lease.register.clone());
    let (Some(register), Some(at)) = (register, ended_at) else {
        return Err("clients are let in once the register is known".to_owned());
    };
    decide_admission(&register, &seen.standbys, at).map_err(|closed| closed.to_string())
}

//! The writer itself: one row a transaction, each outcome entered in the ledger as acknowledged, failed or unknown; and a
//! reader that notes which rows it saw.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pgherd_e2e::{
    Result,
    appends::Outcome,
    ledger::{Ledger, LedgerReport, Verification},
};
use tokio_postgres::Statement;

use crate::{
    lists::Lists,
    session::{Connector, Session},
};

/// How long a client tries to connect before it begins anew.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often a client tries again; the gap that is measured can't be finer than this.
pub(crate) const RETRY: Duration = Duration::from_millis(20);
/// How often the reader reads.
const READ_EVERY: Duration = Duration::from_millis(200);
/// How far back the reader looks each time: more rows than come between two reads.
const READ_BACK: i64 = 100;

/// Inserts rows and remembers what became of each.
pub(crate) struct Writer {
    connector: Connector,
    state: Mutex<State>,
    pub(crate) lists: Lists,
}

struct State {
    next: i64,
    ledger: Ledger,
    cancelled: u64,
    last_ack: Instant,
    longest_gap: Duration,
    last_error: String,
    paused: bool,
}

impl Writer {
    pub(crate) fn new(connector: Connector) -> Self {
        let state = State {
            next: 1,
            ledger: Ledger::default(),
            cancelled: 0,
            last_ack: Instant::now(),
            longest_gap: Duration::ZERO,
            last_error: String::new(),
            paused: false,
        };
        Self { connector, state: Mutex::new(state), lists: Lists::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another task must not hide what was acknowledged before it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self) -> LedgerReport {
        let appends = self.lists.acknowledged();
        let state = self.state();
        let since = if state.paused { Duration::ZERO } else { state.last_ack.elapsed() };
        LedgerReport {
            acknowledged: state.ledger.acknowledged.len() as u64,
            unknown: state.ledger.unknown.len() as u64,
            failed: state.ledger.failed.len() as u64,
            longest_gap_ms: millis(state.longest_gap.max(since)),
            since_last_ack_ms: millis(since),
            last_error: state.last_error.clone(),
            cancelled: state.cancelled + self.lists.cancelled(),
            appends,
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state().paused
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let mut state = self.state();
        state.paused = paused;
        state.last_ack = Instant::now();
    }

    pub(crate) fn reset_gap(&self) {
        let mut state = self.state();
        state.longest_gap = Duration::ZERO;
    }

    pub(crate) async fn verify(&self) -> Result<Verification> {
        let session = self.connect().await?;
        // What was promised is copied first: a row written meanwhile can then only be in the table, never missing.
        let (ledger, sent) = {
            let state = self.state();
            (state.ledger.clone(), state.next)
        };
        let rows = session.client.query("SELECT id FROM ledger", &[]).await?;
        let present = rows.iter().map(|row| row.get(0)).collect();
        let sent = sent.max(self.state().next);
        let lists = self.lists.check(&session).await?;
        Ok(Verification { lists, ..ledger.check(&present, sent) })
    }

    pub(crate) async fn connect(&self) -> Result<Session> {
        self.connector.connect(CONNECT_PATIENCE).await
    }

    async fn insert_until_error(&self, interval_ms: u64) -> Result<()> {
        let session = self.connect().await?;
        session
            .client
            .batch_execute(
                "SET lock_timeout = '2s'; CREATE TABLE IF NOT EXISTS ledger \
                 (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await?;
        let statement = session.client.prepare("INSERT INTO ledger (id) VALUES ($1)").await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(interval_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.is_paused() {
                self.insert_one(&session, &statement).await?;
            }
        }
    }

    async fn insert_one(&self, session: &Session, statement: &Statement) -> Result<()> {
        let id = {
            let mut state = self.state();
            let id = state.next;
            state.next += 1;
            id
        };
        let attempt = session.attempt(statement, &[&id]).await;
        let mut state = self.state();
        state.cancelled += u64::from(attempt.cancelled);
        match attempt.outcome {
            Outcome::Acknowledged => {
                state.longest_gap = state.longest_gap.max(state.last_ack.elapsed());
                state.last_ack = Instant::now();
                state.ledger.acknowledged.insert(id);
            }
            Outcome::Failed => drop(state.ledger.failed.insert(id)),
            Outcome::Unknown => drop(state.ledger.unknown.insert(id)),
        }
        attempt.error.map_or(Ok(()), Err)
    }

    async fn read_until_error(&self) -> Result<()> {
        let session = self.connect().await?;
        let rows = session.client.prepare("SELECT id FROM ledger WHERE id > $1").await?;
        let mut newest = 0_i64;
        loop {
            let since = newest - READ_BACK;
            let read = async { session.client.query(&rows, &[&since]).await };
            let ids: Vec<i64> =
                tokio::time::timeout(CONNECT_PATIENCE, read).await??.iter().map(|row| row.get(0)).collect();
            newest = ids.iter().copied().max().unwrap_or(newest);
            self.state().ledger.seen.extend(ids);
            self.lists.read(&session).await?;
            tokio::time::sleep(READ_EVERY).await;
        }
    }

    pub(crate) fn note_error(&self, error: &pgherd_e2e::Error) {
        self.state().last_error = error.to_string();
    }
}

/// Writes for ever; every error is kept for the report and followed by a new connection.
pub(crate) async fn run(writer: Arc<Writer>, interval_ms: u64) {
    loop {
        if let Err(error) = writer.insert_until_error(interval_ms).await {
            writer.note_error(&error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads for ever.
pub(crate) async fn run_reader(writer: Arc<Writer>) {
    loop {
        // Writers report what is wrong; a reader that fails has only seen less.
        drop(writer.read_until_error().await);
        tokio::time::sleep(RETRY).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! The appending clients: each appends values to a few lists, and remembers what became of each append. Lists are text,
//! `,1,5,9`, so that a lost or repeated update of a row shows as a wrong list and not as a missing row only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use pgherd_e2e::{
    Result,
    appends::{Append, ListReport, Outcome, Seen, check},
};
use tokio_postgres::Statement;

use crate::{
    insert::{RETRY, Writer},
    session::Session,
};

/// Lists that are appended to at a time.
const OPEN_LISTS: i64 = 4;
/// Appends to a group of lists before the next group is begun; rewriting a long text would cost more than it shows.
const GROUP: i64 = 400;
/// Between two appends of a client.
const INTERVAL: Duration = Duration::from_millis(20);

/// The state of all appending clients.
#[derive(Default)]
pub(crate) struct Lists {
    next: AtomicI64,
    tick: AtomicU64,
    cancelled: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    history: Vec<Append>,
    seen: Seen,
}

impl Lists {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another task must not hide what was acknowledged before it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> u64 {
        self.tick.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.state().history.iter().filter(|append| append.outcome == Outcome::Acknowledged).count() as u64
    }

    pub(crate) fn cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::SeqCst)
    }

    async fn append(&self, session: &Session, statement: &Statement) -> Result<()> {
        let value = self.next.fetch_add(1, Ordering::SeqCst) + 1;
        let key = key_of(value);
        let invoked = self.tick();
        let attempt = session.attempt(statement, &[&key, &value.to_string()]).await;
        let completed = self.tick();
        self.cancelled.fetch_add(u64::from(attempt.cancelled), Ordering::SeqCst);
        self.state().history.push(Append { key, value, invoked, completed, outcome: attempt.outcome });
        attempt.error.map_or(Ok(()), Err)
    }

    /// Notes what the newest lists look like.
    pub(crate) async fn read(&self, session: &Session) -> Result<()> {
        let newest = self.next.load(Ordering::SeqCst) / GROUP * OPEN_LISTS;
        let sql = "SELECT to_regclass('lists') IS NOT NULL";
        if !session.client.query_one(sql, &[]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        let read = observe(session, newest - OPEN_LISTS).await?;
        let mut state = self.state();
        for (key, list) in read {
            state.seen.note(key, list);
        }
        Ok(())
    }

    /// Holds what is known by now against the table. What is entered while the table is read may be in it or not.
    pub(crate) async fn check(&self, session: &Session) -> Result<ListReport> {
        let exists = session.client.query_one("SELECT to_regclass('lists') IS NOT NULL", &[]).await?;
        let (seen, mut history) = {
            let state = self.state();
            (state.seen.clone(), state.history.clone())
        };
        let last = if exists.get(0) { observe(session, i64::MIN).await? } else { BTreeMap::new() };
        let entered: BTreeSet<i64> = history.iter().map(|append| append.value).collect();
        for value in 1..=self.next.load(Ordering::SeqCst) {
            if !entered.contains(&value) {
                // Sent, but without an answer by now: nothing is known that would hold against its place.
                let outcome = Outcome::Unknown;
                history.push(Append { key: key_of(value), value, invoked: 0, completed: u64::MAX, outcome });
            }
        }
        Ok(check(&history, &seen, &last))
    }
}

/// The list that a value belongs to.
fn key_of(value: i64) -> i64 {
    value / GROUP * OPEN_LISTS + value % OPEN_LISTS
}

/// The lists from a key on.
async fn observe(session: &Session, from: i64) -> Result<BTreeMap<i64, Vec<i64>>> {
    let rows = async { session.client.query("SELECT key, items FROM lists WHERE key >= $1", &[&from]).await };
    let mut lists = BTreeMap::new();
    for row in tokio::time::timeout(Duration::from_secs(30), rows).await?? {
        let items: String = row.get(1);
        let values: std::result::Result<Vec<i64>, _> =
            items.split(',').filter(|item| !item.is_empty()).map(str::parse).collect();
        lists.insert(row.get(0), values?);
    }
    Ok(lists)
}

async fn append_until_error(writer: &Writer) -> Result<()> {
    let session = writer.connect().await?;
    let schema =
        "SET lock_timeout = '2s'; CREATE TABLE IF NOT EXISTS lists (key bigint PRIMARY KEY, items text NOT NULL)";
    session.client.batch_execute(schema).await?;
    let append =
        "INSERT INTO lists VALUES ($1, ',' || $2) ON CONFLICT (key) DO UPDATE SET items = lists.items || ',' || $2";
    let statement = session.client.prepare(append).await?;
    loop {
        if !writer.is_paused() {
            writer.lists.append(&session, &statement).await?;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Appends for ever.
pub(crate) async fn run(writer: Arc<Writer>) {
    loop {
        if let Err(error) = append_until_error(&writer).await {
            writer.note_error(&error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

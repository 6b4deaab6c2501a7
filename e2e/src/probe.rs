//! `pgherd-e2e probe`: asks one pod over and over whether it takes writes, and prints each answer as a line of JSON.
//!
//! It is run inside the pod's own network namespace, so that no partition keeps it from asking. Each row that is
//! acknowledged has a number and counts as a promise like any other.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgherd_e2e::{
    Result,
    appends::Outcome,
    overlap::{Answer, Look},
};
use tokio_postgres::{Statement, error::SqlState};

use crate::session::{Connector, Session};

/// How often the pod is asked.
const EVERY: Duration = Duration::from_millis(100);
/// How long an answer may take. Longer than a commit on a busy machine, shorter than any failover.
const PATIENCE: Duration = Duration::from_millis(1_000);

struct Open {
    session: Session,
    statement: Option<Statement>,
    in_recovery: bool,
}

/// Asks for ever. `name` tells the rows of this pod from those of others.
pub(crate) async fn run(connector: Connector, name: String) -> Result<()> {
    let mut open: Option<Open> = None;
    let mut row = 0_i64;
    loop {
        let (begun, at_ms) = (Instant::now(), unix_ms());
        row += 1;
        let answer = ask(&connector, &mut open, &name, row).await;
        let look = Look {
            at_ms,
            took_ms: i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX),
            answer,
            row: (answer == Answer::Acknowledged).then_some(row),
            in_recovery: open.as_ref().map(|open| open.in_recovery),
        };
        println!("{}", serde_json::to_string(&look)?);
        // A session that waits is left behind as it is: to cancel it would acknowledge its commit.
        if !matches!(answer, Answer::Acknowledged | Answer::Cancelled | Answer::ReadOnly) {
            open = None;
        }
        tokio::time::sleep(EVERY.saturating_sub(begun.elapsed())).await;
    }
}

async fn ask(connector: &Connector, open: &mut Option<Open>, name: &str, row: i64) -> Answer {
    if open.is_none() {
        match tokio::time::timeout(PATIENCE, connect(connector)).await {
            Ok(Ok(session)) => *open = Some(session),
            Ok(Err(_)) => return Answer::Refused,
            Err(_) => return Answer::Silent,
        }
    }
    let Some(session) = open else { return Answer::Refused };
    match tokio::time::timeout(PATIENCE, session.write(name, row)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Silent,
    }
}

async fn connect(connector: &Connector) -> Result<Open> {
    let session = connector.connect(PATIENCE).await?;
    let in_recovery = session.client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0);
    Ok(Open { session, statement: None, in_recovery })
}

impl Open {
    async fn write(&mut self, name: &str, row: i64) -> Answer {
        if self.statement.is_none() {
            // The table is there once the harness has made it; a replica gets it from its primary.
            match self.session.client.prepare("INSERT INTO probe (pod, row) VALUES ($1, $2)").await {
                Ok(statement) => self.statement = Some(statement),
                Err(_) => return Answer::Refused,
            }
        }
        let Some(statement) = &self.statement else { return Answer::Refused };
        let attempt = self.session.attempt_within(PATIENCE, statement, &[&name, &row]).await;
        let read_only = attempt.error.as_ref().is_some_and(is_read_only);
        match attempt.outcome {
            Outcome::Acknowledged => Answer::Acknowledged,
            Outcome::Unknown if attempt.cancelled => Answer::Cancelled,
            Outcome::Failed if read_only => Answer::ReadOnly,
            Outcome::Failed => Answer::Refused,
            Outcome::Unknown if self.session.client.is_closed() => Answer::Refused,
            Outcome::Unknown => Answer::Silent,
        }
    }
}

fn is_read_only(error: &pgherd_e2e::Error) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    code == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

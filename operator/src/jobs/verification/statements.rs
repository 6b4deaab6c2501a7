//! The user's statements: each must return a single true. They run as a role that is made for them, which reads all data and
//! may do nothing else: whoever can write a schedule must not thereby reach the files of the Job's pod.

use std::time::Duration;

use pgherd_core::pg::quote::quote_identifier;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use uuid::Uuid;

use super::{Trial, VerifyError, server::ScratchServer};

/// The database that pgherd makes for the application.
const APP: &str = "app";
const POSTGRES: &str = "postgres";
/// A statement is told by its beginning.
const MAX_CHARS: usize = 200;
const CONNECT: Duration = Duration::from_secs(30);

/// Runs all statements, up to the first that does not hold.
pub(super) async fn check_statements(trial: &Trial, server: &ScratchServer) -> Result<(), VerifyError> {
    if trial.statements.is_empty() {
        return Ok(());
    }
    let database = decide_database(trial, server).await?;
    let role = make_reader(server, &database).await?;
    let (sockets, port) = server.endpoint();
    let mut config = tokio_postgres::Config::new();
    config.host_path(sockets).port(port).user(&role).dbname(&database).application_name("pgherd-verification");
    config.options("-cdefault_transaction_read_only=on").connect_timeout(CONNECT);
    let refused = |error: tokio_postgres::Error| VerifyError::Statement {
        statement: "connecting as the role for the statements".to_owned(),
        problem: format!("failed: {}", describe(&error)),
    };
    let (client, connection) = config.connect(NoTls).await.map_err(refused)?;
    let driving = tokio::spawn(async move { drop(connection.await) });
    let mut outcome = Ok(());
    for statement in &trial.statements {
        let answer = client.simple_query(statement).await;
        let problem = match &answer {
            Ok(messages) => judge(messages).err(),
            Err(error) => Some(format!("failed: {}", describe(error))),
        };
        if let Some(problem) = problem {
            let statement = statement.trim().chars().take(MAX_CHARS).collect();
            outcome = Err(VerifyError::Statement { statement, problem });
            break;
        }
    }
    driving.abort();
    outcome
}

async fn decide_database(trial: &Trial, server: &ScratchServer) -> Result<String, VerifyError> {
    let session = server.session().await?;
    let wanted = trial.database.as_deref().unwrap_or(APP);
    let rows = session.query("SELECT 1 FROM pg_database WHERE datname = $1 AND datallowconn", &[&wanted]).await?;
    match (rows.is_empty(), &trial.database) {
        (false, _) => Ok(wanted.to_owned()),
        (true, None) => Ok(POSTGRES.to_owned()),
        (true, Some(named)) => Err(VerifyError::NoDatabase(named.clone())),
    }
}

async fn make_reader(server: &ScratchServer, database: &str) -> Result<String, VerifyError> {
    let role = format!("pgherd_verification_{}", Uuid::new_v4().simple());
    let session = server.session().await?;
    let (quoted, database) = (quote_identifier(&role), quote_identifier(database));
    session.execute(&format!("CREATE ROLE {quoted} LOGIN BYPASSRLS IN ROLE pg_read_all_data")).await?;
    session.execute(&format!("GRANT CONNECT ON DATABASE {database} TO {quoted}")).await?;
    Ok(role)
}

/// One row with one column that is true, and nothing else.
fn judge(messages: &[SimpleQueryMessage]) -> Result<(), String> {
    let rows: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect();
    match rows.as_slice() {
        [row] if row.len() == 1 => match row.try_get(0) {
            Ok(Some("t")) => Ok(()),
            Ok(Some("f")) => Err("returned false".to_owned()),
            Ok(None) => Err("returned NULL".to_owned()),
            _ => Err("returned something that is neither true nor false".to_owned()),
        },
        [row] => Err(format!("returned {} columns instead of a single true", row.len())),
        rows => Err(format!("returned {} rows instead of a single true", rows.len())),
    }
}

/// tokio-postgres prints only "db error"; the server's own words are in the source.
fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned())
}

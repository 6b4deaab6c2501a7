//! Whether text still sorts as it did when the databases' indexes were built: an image with another glibc or ICU, or data from elsewhere, can
//! change that, and PostgreSQL only warns. The primary compares the versions from time to time and shows what differs; it changes nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    agent::Agent,
    postgres::sql::{Session, SqlError},
};

/// The versions are compared this often at most: somebody may have mended it.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Whether it is time for a look is asked this often.
const TICK: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
/// The default collations, which nearly all indexes have. Those that a column names are in each database's own `pg_collation`.
const STALE: &str = "SELECT datname::text, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
    WHERE datcollversion <> pg_database_collation_actual_version(oid) ORDER BY 1";

/// Keeps the status current; never ends.
pub async fn keep_collations(agent: Arc<Agent>) {
    let mut looked: Option<(u64, Instant)> = None;
    loop {
        sleep(TICK).await;
        let status = agent.board.status();
        if !status.is_primary || !status.postgres_up {
            if status.stale_collations.is_some() {
                agent.board.update(|status| status.stale_collations = None);
            }
            looked = None;
            continue;
        }
        let generation = agent.server.generation();
        if looked.is_some_and(|(of, at)| of == generation && at.elapsed() < LOOK_EVERY) {
            continue;
        }
        looked = Some((generation, Instant::now()));
        match observe_stale(&agent).await {
            Ok(stale) => agent.board.update(|status| status.stale_collations = Some(stale)),
            Err(error) => tracing::warn!(error = %error, "whether collations changed is not known"),
        }
    }
}

/// Databases that another version sorted, with both versions.
///
/// # Errors
/// [`SqlError`].
pub async fn observe_stale(agent: &Agent) -> Result<Vec<String>, SqlError> {
    let layout = &agent.layout;
    let session = Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", PATIENCE).await?;
    let rows = session.query(STALE, &[]).await?;
    let render = |row: &tokio_postgres::Row| {
        let (database, made, now): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        format!("{database} (made with {made}, now {now})")
    };
    Ok(rows.iter().map(render).collect())
}

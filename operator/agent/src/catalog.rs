//! What the primary's catalogs hold that somebody should know of, looked at from time to time; it changes nothing.
//!
//! - Whether text still sorts as it did when the databases' indexes were built: an image with another glibc or ICU, or data from
//!   elsewhere, can change that, and PostgreSQL only warns.
//! - Which roles and databases have a `synchronous_commit` of their own that waits for no replica's disk: what they commit is not
//!   under the cluster's promise.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

use crate::{
    agent::Agent,
    postgres::sql::{Session, SqlError},
};

/// The catalogs are looked at this often at most: somebody may have mended or changed something.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Whether it is time for a look is asked this often.
const TICK: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
/// The default collations, which nearly all indexes have. Those that a column names are in each database's own `pg_collation`.
const STALE: &str = "SELECT datname::text, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
    WHERE datcollversion <> pg_database_collation_actual_version(oid) ORDER BY 1";

/// Settings of roles and databases; only `on` and `remote_apply`, and what PostgreSQL takes for the former, wait for a replica's disk.
const WEAK: &str = "SELECT r.rolname::text, d.datname::text, setting FROM pg_db_role_setting s \
    CROSS JOIN unnest(s.setconfig) setting LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase \
    WHERE setting ~* '^synchronous_commit=' AND setting !~* '=(on|remote_apply|true|yes|1)$' ORDER BY 1 NULLS FIRST, 2 NULLS FIRST";

/// Keeps the status current; never ends.
pub async fn keep_looking(agent: Arc<Agent>) {
    let mut looked: Option<(u64, Instant)> = None;
    loop {
        sleep(TICK).await;
        let status = agent.board.status();
        if !status.is_primary || !status.postgres_up {
            if status.stale_collations.is_some() || status.weak_commits.is_some() {
                agent.board.update(|status| (status.stale_collations, status.weak_commits) = (None, None));
            }
            looked = None;
            continue;
        }
        let generation = agent.server.generation();
        if looked.is_some_and(|(of, at)| of == generation && at.elapsed() < LOOK_EVERY) {
            continue;
        }
        looked = Some((generation, Instant::now()));
        match observe(&agent).await {
            Ok(Found { stale_collations, weak_commits }) => agent.board.update(|status| {
                (status.stale_collations, status.weak_commits) = (Some(stale_collations), Some(weak_commits));
            }),
            Err(error) => {
                tracing::warn!(error = %error, "what the catalogs say of collations and commits is not known")
            }
        }
    }
}

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Databases that another version sorted, with both versions.
    pub stale_collations: Vec<String>,
    /// Roles and databases whose commits wait for no replica's disk, with their setting.
    pub weak_commits: Vec<String>,
}

/// Looks.
///
/// # Errors
/// [`SqlError`].
pub async fn observe(agent: &Agent) -> Result<Found, SqlError> {
    let layout = &agent.layout;
    let session = Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", PATIENCE).await?;
    let stale_collations = session.query(STALE, &[]).await?.iter().map(render_stale).collect();
    let weak_commits = session.query(WEAK, &[]).await?.iter().map(render_weak).collect();
    Ok(Found { stale_collations, weak_commits })
}

fn render_stale(row: &Row) -> String {
    let (database, made, now): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    format!("{database} (made with {made}, now {now})")
}

fn render_weak(row: &Row) -> String {
    let (role, database, setting): (Option<String>, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
    let whom = match (role, database) {
        (Some(role), Some(database)) => format!("role {role} in database {database}"),
        (Some(role), None) => format!("role {role}"),
        (None, Some(database)) => format!("database {database}"),
        (None, None) => "all roles".to_owned(),
    };
    format!("{whom}: {setting}")
}

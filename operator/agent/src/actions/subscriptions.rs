//! Logical subscriptions in the copy of another cluster: they belong to that one, and so do the replication slots at their publishers.
//! Disabled while no worker may start, and left so; whoever wants the copy to receive gives it slots of its own.

use std::time::Duration;

use pgherd_core::pg::quote::quote_identifier;

use crate::{
    layout::Layout,
    postgres::sql::{Session, SqlError},
};

/// How long a session and each statement may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many are named.
const NAMED: usize = 10;
/// In a database that takes no sessions no worker runs either.
const ENABLED: &str = "SELECT d.datname::text, s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
    WHERE s.subenabled AND d.datallowconn ORDER BY 1, 2";

/// Disables all subscriptions of all databases; which ones, as `database.name`.
///
/// # Errors
/// [`SqlError`].
pub(super) async fn disable_subscriptions(layout: &Layout) -> Result<Vec<String>, SqlError> {
    let connect =
        async |database: &str| Session::connect(&layout.socket_dir, layout.postgres_port, database, PATIENCE).await;
    let rows = connect("postgres").await?.query(ENABLED, &[]).await?;
    let mut disabled = Vec::new();
    for row in rows {
        let (database, name): (String, String) = (row.get(0), row.get(1));
        let statement = format!("ALTER SUBSCRIPTION {} DISABLE", quote_identifier(&name));
        connect(&database).await?.execute(&statement).await?;
        disabled.push(format!("{database}.{name}"));
    }
    Ok(disabled)
}

/// What is added to the words of where the data came from.
pub(super) fn render_disabled(disabled: &[String]) -> String {
    if disabled.is_empty() {
        return String::new();
    }
    let more = if disabled.len() > NAMED { ", …" } else { "" };
    let named = disabled.get(..NAMED).unwrap_or(disabled).join(", ");
    format!("; its {} enabled subscriptions are disabled: {named}{more}", disabled.len())
}

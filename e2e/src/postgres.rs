//! SQL through the psql in an instance's pod, and which PostgreSQL the tests are about.

use crate::{Result, kubectl::kubectl};

/// The major version that the clusters of tests run, as `make` passes it on: 17 unless `PGHERD_E2E_POSTGRES` says otherwise. What
/// is no version the API server refuses.
#[must_use]
pub fn major() -> String {
    std::env::var("PGHERD_E2E_POSTGRES").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "17".to_owned())
}

/// Runs SQL as the superuser in a pod and returns unaligned rows without headers.
///
/// # Errors
/// kubectl or psql failed.
pub async fn psql(namespace: &str, pod: &str, database: &str, sql: &str) -> Result<String> {
    let arguments = [
        "exec",
        pod,
        "-c",
        "postgres",
        "--",
        "psql",
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "postgres",
        "-d",
        database,
        "-c",
        sql,
    ];
    Ok(kubectl(namespace, &arguments).await?.trim().to_string())
}

/// Cuts a replica off from the WAL, so that it falls behind while its agent still answers: what an operator of a
/// database would do by hand, and what the agent undoes at the next change of roles.
///
/// # Errors
/// As [`psql`].
pub async fn stop_receiving(namespace: &str, pod: &str) -> Result<()> {
    for setting in ["primary_conninfo", "restore_command"] {
        psql(namespace, pod, "postgres", &format!("ALTER SYSTEM SET {setting} = ''")).await?;
    }
    psql(namespace, pod, "postgres", "SELECT pg_reload_conf()").await?;
    Ok(())
}

/// A replica's received or replayed position, or the primary's flushed one, whichever is furthest.
///
/// # Errors
/// As [`psql`].
pub async fn position(namespace: &str, pod: &str) -> Result<pgherd_core::lsn::Lsn> {
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
               ELSE pg_current_wal_flush_lsn() END";
    Ok(psql(namespace, pod, "postgres", sql).await?.parse()?)
}

//! The roles and the database that every cluster has: replication, and the application's own from its Secret. Works on
//! the primary over the agent's session, and waits for no standby: a new cluster has none yet.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pgherd_core::{
    instance::REPLICATION_ROLE,
    pg::quote::{quote_identifier, quote_literal},
};

use super::sql::{Session, SqlError};

/// The application's credentials. No `Debug`: it holds a password.
#[derive(Clone, PartialEq, Eq)]
pub struct AppCredentials {
    username: String,
    password: String,
    dbname: String,
}

/// Why the roles are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// A file of the Secret can't be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The Secret names a role or database that is not the application's to own.
    #[error("the application's Secret names \"{0}\", which PostgreSQL or pgherd keeps for itself")]
    Reserved(String),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// Reads the Secret's files.
///
/// # Errors
/// [`RolesError::Read`] or [`RolesError::Reserved`].
pub fn read_app_credentials(folder: &Path) -> Result<AppCredentials, RolesError> {
    let read = |name: &str| {
        let path = folder.join(name);
        let text = fs::read_to_string(&path).map_err(|source| RolesError::Read { path, source })?;
        Ok::<_, RolesError>(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    let credentials =
        AppCredentials { username: read("username")?, password: read("password")?, dbname: read("dbname")? };
    let role_reserved = credentials.username == "postgres"
        || credentials.username == REPLICATION_ROLE
        || credentials.username.starts_with("pg_");
    if role_reserved || credentials.username.is_empty() {
        return Err(RolesError::Reserved(credentials.username));
    }
    if ["template0", "template1", "postgres", ""].contains(&credentials.dbname.as_str()) {
        return Err(RolesError::Reserved(credentials.dbname));
    }
    Ok(credentials)
}

/// Makes the replication role, if it is not there, with what pg_rewind needs besides:
/// <https://www.postgresql.org/docs/current/app-pgrewind.html>.
///
/// # Errors
/// [`RolesError::Sql`].
pub async fn ensure_replication_role(session: &Session) -> Result<(), RolesError> {
    let role = quote_identifier(REPLICATION_ROLE);
    let create = if exists(session, "SELECT 1 FROM pg_roles WHERE rolname = $1", REPLICATION_ROLE).await? {
        "ALTER"
    } else {
        "CREATE"
    };
    let mut statements = format!("SET synchronous_commit = local; {create} ROLE {role} LOGIN REPLICATION NOSUPERUSER;");
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        statements.push_str(&format!(" GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};"));
    }
    // From PostgreSQL 15 on; so that a rewind can have the new timeline written into the source's control file first.
    if exists(session, "SELECT 1 FROM pg_roles WHERE rolname = $1", "pg_checkpoint").await? {
        statements.push_str(&format!(" GRANT pg_checkpoint TO {role};"));
    }
    Ok(session.execute(&statements).await?)
}

/// Makes the application's role and database if they are not there and sets the password by a verifier that is computed
/// here, so that no log, statistic or trace of the server ever holds the password.
///
/// # Errors
/// [`RolesError::Sql`].
pub async fn ensure_app(session: &Session, app: &AppCredentials) -> Result<(), RolesError> {
    let role = quote_identifier(&app.username);
    let verifier = postgres_protocol::password::scram_sha_256(app.password.as_bytes());
    let verb = if exists(session, "SELECT 1 FROM pg_roles WHERE rolname = $1", &app.username).await? {
        "ALTER"
    } else {
        "CREATE"
    };
    session.execute("SET synchronous_commit = local").await?;
    session.execute(&format!("{verb} ROLE {role} LOGIN PASSWORD {}", quote_literal(&verifier))).await?;
    if !exists(session, "SELECT 1 FROM pg_database WHERE datname = $1", &app.dbname).await? {
        session.execute(&format!("CREATE DATABASE {} OWNER {role}", quote_identifier(&app.dbname))).await?;
    }
    Ok(())
}

async fn exists(session: &Session, query: &str, name: &str) -> Result<bool, SqlError> {
    Ok(!session.query(query, &[&name]).await?.is_empty())
}

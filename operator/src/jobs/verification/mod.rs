//! Verification by restore: a backup comes back into scratch space, every file is checked, by pgherd and by pg_verifybackup, PostgreSQL
//! starts on it without a network, replays the archive's WAL until it is consistent, and then pg_amcheck and the user's statements look at it.
//!
//! It reads the store and never writes to it but for the lock that every reader takes; the server that it starts archives
//! nothing and listens on a unix socket alone.

pub mod config;
pub mod failure;
mod files;
pub mod job;
pub mod outcome;
mod server;
mod statements;
mod wal;

use std::{
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use pgherd_agent::postgres::{
    binaries::{Binaries, ProgramError},
    sql::SqlError,
};
use pgherd_core::{
    backup::{BackupLocation, BackupRecord},
    lsn::Lsn,
};
use pgherd_stream::{
    restore::{RestoreError, RestoreProgress, RestoreSettings, TablespacePlaces, restore_backup_with},
    store::ObjectStore,
    wal::WalError,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    files::check_files,
    server::{ScratchServer, start_server, validate_version},
    statements::check_statements,
    wal::fetch_wal,
};

/// What is verified, with what, and where.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The backup, resolved.
    pub location: BackupLocation,
    /// An empty or absent folder on a file system with room for the backup. It stays.
    pub data: PathBuf,
    /// A folder for the unix socket, short enough for one.
    pub sockets: PathBuf,
    /// PostgreSQL's programs, of the backup's major version.
    pub binaries: Binaries,
    /// `shared_preload_libraries`, if the cluster has any: replaying may need them.
    pub preload: Option<String>,
    /// Where the statements run; none: `app` if there is one, else `postgres`.
    pub database: Option<String>,
    /// Statements that must each return a single true.
    pub statements: Vec<String>,
}

/// A backup that was restored, started and found good.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What was verified.
    pub record: BackupRecord,
    /// Files that were checked.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// WAL was replayed up to here.
    pub replayed: Lsn,
    /// What pg_amcheck said.
    pub amcheck: Amcheck,
    /// Seconds that all of it took.
    pub seconds: f64,
}

/// What pg_amcheck said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amcheck {
    /// Nothing is wrong with tables and indexes.
    Passed,
    /// It could not be run, for this reason; that says nothing of the backup.
    NotRun(String),
}

/// Why a backup was not found good. [`failure::describe_failure`] tells what the backup is to blame for.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It does not come back, or not whole.
    #[error("restoring")]
    Restore(#[from] RestoreError),
    /// WAL that it needs is not in the archive.
    #[error("the archive lacks {}", .0.join(", "))]
    MissingWal(Vec<String>),
    /// WAL that it needs is in the archive and cannot be used.
    #[error("the archive's {name} cannot be used")]
    Wal {
        /// The file's name.
        name: String,
        /// Why.
        #[source]
        source: Box<WalError>,
    },
    /// The archive could not be read.
    #[error("looking at the archive")]
    Archive(#[source] Box<WalError>),
    /// pg_verifybackup found something.
    #[error("pg_verifybackup: {0}")]
    Files(String),
    /// PostgreSQL ended while it started, or before it was consistent.
    #[error("PostgreSQL does not start on it: {0}")]
    Start(String),
    /// PostgreSQL runs on it, and lets nobody in.
    #[error("PostgreSQL refuses the superuser's session")]
    Refused(#[source] SqlError),
    /// Recovery ended before the backup was consistent, although PostgreSQL did not complain.
    #[error("PostgreSQL replayed WAL up to {replayed} only, the backup ends at {stop}")]
    Short {
        /// Up to where it came.
        replayed: Lsn,
        /// The backup's end.
        stop: Lsn,
    },
    /// The image has another version of PostgreSQL than the backup.
    #[error("the programs of PostgreSQL are of version {found}, the backup is of {expected}")]
    Version {
        /// The backup's major version.
        expected: u32,
        /// What the program said of itself.
        found: String,
    },
    /// A program of PostgreSQL could not be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// pg_amcheck found something.
    #[error("pg_amcheck: {0}")]
    Amcheck(String),
    /// A question of pgherd's own was not answered.
    #[error("asking PostgreSQL")]
    Sql(#[from] SqlError),
    /// There is no such database.
    #[error("the backup has no database \"{0}\"")]
    NoDatabase(String),
    /// A statement of the user does not hold.
    #[error("\"{statement}\" {problem}")]
    Statement {
        /// Its beginning.
        statement: String,
        /// What it returned instead of a single true.
        problem: String,
    },
    /// A local file.
    #[error("{what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The process was told to end.
    #[error("the verification was cancelled")]
    Cancelled,
}

impl VerifyError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// Restores, starts, checks, stops.
///
/// # Errors
/// [`VerifyError`] names the first object, file, WAL segment or statement that is not good.
pub async fn verify_by_restore(
    store: &ObjectStore,
    trial: &Trial,
    cancel: CancellationToken,
) -> Result<Verified, VerifyError> {
    let began = Instant::now();
    let (progress, _receiver) = watch::channel(RestoreProgress::default());
    let combine = Some(trial.binaries.program("pg_combinebackup"));
    let settings = RestoreSettings { places: TablespacePlaces::InPlace, combine };
    let restored =
        restore_backup_with(store, &trial.location, &trial.data, &settings, progress, cancel.clone()).await?;
    let record = restored.record;
    let checks = async {
        fetch_wal(store, &trial.location.cluster, &record, &trial.data).await?;
        validate_version(&trial.binaries, &record).await?;
        check_files(trial).await?;
        let server = start_server(trial).await?;
        let outcome = look_at(trial, &server, &record).await;
        server.stop().await;
        outcome
    };
    let (replayed, amcheck) = tokio::select! {
        () = cancel.cancelled() => return Err(VerifyError::Cancelled),
        checked = checks => checked?,
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Verified { record, files: restored.files, bytes: restored.bytes, replayed, amcheck, seconds })
}

/// What is looked at once the server is up.
async fn look_at(trial: &Trial, server: &ScratchServer, record: &BackupRecord) -> Result<(Lsn, Amcheck), VerifyError> {
    let replayed = server.observe_replayed().await?;
    if replayed < record.stop_lsn {
        return Err(VerifyError::Short { replayed, stop: record.stop_lsn });
    }
    let amcheck = server.check_relations().await?;
    check_statements(trial, server).await?;
    Ok((replayed, amcheck))
}

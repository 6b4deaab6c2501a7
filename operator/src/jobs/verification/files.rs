//! PostgreSQL's own look at a restored backup: pg_verifybackup compares every file with the manifest, and reads the WAL from the
//! backup's start to its end, record by record.

use std::ffi::OsStr;

use pgherd_agent::postgres::binaries::ProgramError;

use super::{Trial, VerifyError, server::first_words};

const PROGRAM: &str = "pg_verifybackup";

/// Only before the server is configured: a configuration of its own is not what the manifest has.
pub(super) async fn check_files(trial: &Trial) -> Result<(), VerifyError> {
    if !trial.binaries.program(PROGRAM).is_file() {
        tracing::warn!("the image has no pg_verifybackup");
        return Ok(());
    }
    // A restore into one place takes the map away, since the server would follow it.
    let mut args = vec![OsStr::new("--quiet"), OsStr::new("--ignore=tablespace_map")];
    // It has that read the WAL, and fails without it.
    if !trial.binaries.program("pg_waldump").is_file() {
        tracing::warn!("the image has no pg_waldump: the archive's WAL is read by its recovery alone");
        args.push(OsStr::new("--no-parse-wal"));
    }
    args.push(trial.data.as_os_str());
    let output = trial.binaries.output(PROGRAM, &args, &[]).await?;
    match (output.status.success(), output.status.code()) {
        (true, _) => Ok(()),
        // Killed: that says nothing of the backup.
        (false, None) => {
            Err(ProgramError::Failed { program: PROGRAM.to_owned(), output: output.status.to_string() }.into())
        }
        (false, Some(_)) => Err(VerifyError::Files(first_words(output))),
    }
}

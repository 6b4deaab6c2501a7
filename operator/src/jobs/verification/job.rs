//! `pgherd verify --config FILE`: one verification in a Job's pod. It ends with its outcome in the termination message, and
//! talks to the store alone: it needs no right in Kubernetes.

use std::{error::Error, path::Path, process::ExitCode};

use pgherd_agent::postgres::binaries::Binaries;
use pgherd_stream::{
    process::build_runtime,
    restore::RestoreError,
    store::{LONG_PATIENCE, ObjectStore},
};
use tokio_util::sync::CancellationToken;

use super::{
    Amcheck, Trial, Verified, VerifyError,
    config::VerifyJobConfig,
    failure::describe_failure,
    outcome::{VerifyFailure, VerifyJobOutcome, VerifySummary, render_outcome},
    verify_by_restore,
};
use crate::{
    jobs::{
        backup::{cancel_on_signal, config::read_config, millis},
        termination::write_message,
    },
    telemetry::{error_chain, logs},
};

/// Runs to the end; the exit code says whether the backup is good.
///
/// # Errors
/// If the configuration can't be read or no runtime can be made.
pub fn run(config_file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    logs::start();
    let config: VerifyJobConfig = match read_config(config_file) {
        Ok(config) => config,
        Err(error) => {
            write_message(&render_outcome(&VerifyJobOutcome::Failed(VerifyFailure {
                reason: "BadConfig".to_owned(),
                error: error_chain(&error),
                blames_backup: false,
                unusable: false,
            })));
            return Err(error.into());
        }
    };
    let runtime = build_runtime()?;
    let outcome = runtime.block_on(perform(config));
    // A file that is still being written must not delay the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    let (outcome, code) = match outcome {
        Ok(summary) => {
            tracing::info!(id = summary.id, replayed_lsn = summary.replayed_lsn, amcheck = summary.amcheck, "verified");
            (VerifyJobOutcome::Completed(summary), ExitCode::SUCCESS)
        }
        Err(error) => {
            let failure = describe_failure(&error);
            tracing::error!(reason = failure.reason, error = failure.error, "not verified");
            (VerifyJobOutcome::Failed(failure), ExitCode::FAILURE)
        }
    };
    write_message(&render_outcome(&outcome));
    Ok(code)
}

async fn perform(config: VerifyJobConfig) -> Result<VerifySummary, VerifyError> {
    let cancel = CancellationToken::new();
    cancel_on_signal(&cancel);
    let store = ObjectStore::connect(&config.location.cluster.store).await.map_err(RestoreError::Store)?;
    store.probe().await.map_err(RestoreError::Store)?;
    let store = store.with_long_patience(LONG_PATIENCE, &cancel);
    let trial = Trial {
        location: config.location,
        data: config.data,
        sockets: config.sockets,
        binaries: Binaries::observe()?,
        preload: config.preload,
        database: config.database,
        statements: config.statements,
    };
    let verified = look_twice(&trial.data, async || verify_by_restore(&store, &trial, cancel.clone()).await).await?;
    Ok(summarize(&verified, trial.statements.len()))
}

/// Looks, and once more where the backup did not come back into `data`: a verdict on it is not to hang on one read, which a disk, a memory
/// or a network in between can spoil. The second look counts.
async fn look_twice<T>(data: &Path, mut look: impl AsyncFnMut() -> Result<T, VerifyError>) -> Result<T, VerifyError> {
    let error = match look().await {
        Err(error) if describe_failure(&error).unusable => error,
        looked => return looked,
    };
    tracing::warn!(error = error_chain(&error), "the backup does not come back; it is read once more");
    match tokio::fs::remove_dir_all(data).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(VerifyError::file("removing", data)(source))
        }
        _ => look().await,
    }
}

/// What is told of a good backup.
#[must_use]
pub fn summarize(verified: &Verified, statements: usize) -> VerifySummary {
    let took = std::time::Duration::try_from_secs_f64(verified.seconds).unwrap_or_default();
    VerifySummary {
        id: verified.record.id.clone(),
        files: verified.files,
        bytes: verified.bytes,
        replayed_lsn: verified.replayed.to_string(),
        amcheck: match &verified.amcheck {
            Amcheck::Passed => "Passed".to_owned(),
            Amcheck::NotRun(why) => format!("NotRun: {why}"),
        },
        statements: statements as u64,
        took_ms: millis(took),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::*;

    /// Looks of which the first end with these errors; whether it was found good, and how many there were.
    async fn look(errors: Vec<VerifyError>) -> (bool, usize) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let (mut errors, mut count) = (errors.into_iter(), 0);
        let looked = look_twice(&data, async || {
            count += 1;
            fs::create_dir(&data).unwrap();
            fs::write(data.join("left"), "of the last look").unwrap();
            errors.next().map_or(Ok(()), Err)
        });
        let good = looked.await.is_ok();
        (good, count)
    }

    #[tokio::test]
    async fn one_damaged_read_condemns_no_backup_and_two_do() {
        let damaged =
            || VerifyError::Restore(RestoreError::Damaged { path: "base/1".to_owned(), expected: 1, found: 2 });
        assert_eq!(look(vec![damaged()]).await, (true, 2));
        assert_eq!(look(vec![damaged(), damaged()]).await, (false, 2));
        assert_eq!(look(vec![]).await, (true, 1));
        let full = VerifyError::file("writing", Path::new("x"))(io::ErrorKind::StorageFull.into());
        assert_eq!(look(vec![full]).await, (false, 1), "what says nothing of the backup is tried again by another Job");
    }
}

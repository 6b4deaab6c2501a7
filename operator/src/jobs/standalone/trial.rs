//! `pgherd verify --start DIR`: verification by restore, by hand.

use std::path::Path;

use pgherd_agent::postgres::binaries::Binaries;
use pgherd_core::backup::BackupLocation;
use pgherd_stream::{
    catalogue::resolve,
    process::build_runtime,
    store::{LONG_PATIENCE, ObjectStore},
};
use tokio_util::sync::CancellationToken;

use super::{Outcome, VerifyArgs, print};
use crate::jobs::{
    backup::cancel_on_signal,
    verification::{Trial, job::summarize, verify_by_restore},
};

/// Name of the folder for the unix socket, in the temporary folder: the path of a socket must be short.
const SOCKETS: &str = "pgherd-verify";

/// Restores into `data` and starts PostgreSQL there.
pub(super) fn verify_by_start(args: &VerifyArgs, location: &BackupLocation, data: &Path) -> Outcome {
    let sockets = std::env::temp_dir().join(format!("{SOCKETS}-{}", std::process::id()));
    let outcome = build_runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        cancel_on_signal(&cancel);
        let store = ObjectStore::connect(&location.cluster.store).await?;
        let (location, _) = resolve(&store, location).await?;
        let store = store.with_long_patience(LONG_PATIENCE, &cancel);
        let trial = Trial {
            location,
            data: data.to_owned(),
            sockets: sockets.clone(),
            binaries: Binaries::observe()?,
            preload: args.preload.clone(),
            database: args.database.clone(),
            statements: args.sql.clone(),
        };
        let verified = verify_by_restore(&store, &trial, cancel).await?;
        Ok::<_, Box<dyn std::error::Error>>(summarize(&verified, trial.statements.len()))
    });
    // It is empty once the server has ended; what is left of it hurts nobody.
    let _ = std::fs::remove_dir(&sockets);
    print(&serde_json::to_value(outcome?)?)
}

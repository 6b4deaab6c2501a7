//! `pgherd list-backups`: what is in a store, of one database system or of all that there are. Whatever can be read is listed.

use std::{error::Error, io::Write, process::ExitCode};

use pgherd_core::backup::{BackupRecord, ClusterLocation};
use pgherd_stream::{
    catalogue::{CatalogueError, find_systems, list_readable},
    process::build_runtime,
    store::ObjectStore,
};
use serde_json::{Value, json};

use super::{LocationArgs, Outcome};

/// `pgherd list-backups`: one JSON object a line, of each database system the newest last. What cannot be read is named on standard error;
/// it is a failure only if nothing could be read.
///
/// # Errors
/// What failed, for standard error.
pub fn list(args: &LocationArgs) -> Outcome {
    let location = args.read_open()?.cluster;
    build_runtime()?.block_on(async {
        let store = ObjectStore::connect(&location.store).await?;
        let listed = list_into(&store, &location, &mut std::io::stdout(), &mut std::io::stderr()).await?;
        Ok(if listed.backups > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// How much was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Backups that were listed.
    pub backups: usize,
    /// Backups that were named as unreadable.
    pub unreadable: usize,
}

/// Lists the backups of all that the location leaves open: an empty cluster stands for any, and so does an empty system id.
///
/// # Errors
/// When the store or a stream fails, or when there is no backup at all.
pub async fn list_into(
    store: &ObjectStore,
    location: &ClusterLocation,
    out: &mut impl Write,
    problems: &mut impl Write,
) -> Result<Listed, Box<dyn Error>> {
    let mut listed = Listed::default();
    for system in find_systems(store, location).await? {
        let found = list_readable(store, &system).await?;
        for record in &found.backups {
            writeln!(out, "{}", render(record, &system))?;
        }
        for unreadable in &found.unreadable {
            writeln!(problems, "pgherd: {}", unreadable.to_error())?;
        }
        if found.backups.is_empty() && found.unreadable.is_empty() {
            writeln!(problems, "pgherd: {} holds no complete backup", system.root())?;
        }
        listed.backups += found.backups.len();
        listed.unreadable += found.unreadable.len();
    }
    if listed == Listed::default() {
        let root = format!("s3://{}/{}", location.store.bucket, location.store.prefix);
        return Err(CatalogueError::NoBackup { root, id: String::new() }.into());
    }
    Ok(listed)
}

fn render(record: &BackupRecord, system: &ClusterLocation) -> Value {
    json!({
        "cluster": system.cluster,
        "systemId": record.system_id,
        "id": record.id,
        "kind": if record.parent.is_some() { "Incremental" } else { "Full" },
        "parent": record.parent.as_ref().map(|parent| &parent.id),
        "method": record.method.as_deref().unwrap_or("stream"),
        "stoppedAt": record.stopped_at,
        "serverVersion": record.server_version,
        "timeline": record.timeline,
        "startLsn": record.start_lsn,
        "stopLsn": record.stop_lsn,
        "tarBytes": record.tar_bytes,
        "storedBytes": record.stored_bytes,
        "recipients": record.encryption.as_ref().map(|encryption| &encryption.recipients),
    })
}

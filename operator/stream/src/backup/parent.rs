//! The parent of an incremental backup: chosen from the catalogue, kept from deletion while the backup runs, and its manifest
//! proven before the server is told it. Whatever stands in the way makes a full backup and says why.
//!
//! The manifest (about 140 bytes per file) is in memory until the server has it, before any data flows; while the backup's own
//! manifest is collected it is gone.

use pgherd_core::{
    backup::{BackupLocation, BackupRecord, ClusterLocation, ParentRecord},
    chain::{KindDecision, KindQuestion, ParentChoice, decide_backup_kind},
};

use super::{BackupError, finish::BackupIdentity};
use crate::{
    catalogue::{CatalogueError, list_backups, read_record},
    encryption::Keys,
    restore::{RestoreError, RestoreLock, read_manifest},
    store::ObjectStore,
};

/// That an incremental backup is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncrementalOptions {
    /// What it is to hold the changes since.
    pub parent: ParentChoice,
    /// Backups of a chain at most, with the full one.
    pub max_chain: u32,
    /// Ids of backups that were found unusable: nothing is built on them.
    pub damaged: Vec<String>,
}

/// What kind of backup it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupKind {
    /// A full one; where an incremental one was wanted, why not.
    Full(Option<String>),
    /// An incremental one.
    Incremental {
        /// Id of the parent.
        parent: String,
        /// Backups of the chain, with the full one and this one.
        chain_length: u32,
    },
}

/// A parent that nobody deletes while this is held.
pub(super) struct Parent {
    pub(super) record: ParentRecord,
    pub(super) chain_length: u32,
    pub(super) lock: RestoreLock,
}

impl Parent {
    pub(super) fn kind(&self) -> BackupKind {
        BackupKind::Incremental { parent: self.record.id.clone(), chain_length: self.chain_length }
    }
}

/// The parent with its manifest, or the sentence that says why the backup is a full one.
pub(super) async fn find_parent(
    store: &ObjectStore,
    keys: &Keys,
    location: &ClusterLocation,
    identity: &BackupIdentity,
    options: &IncrementalOptions,
) -> Result<(Parent, Vec<u8>), String> {
    let backups = list_backups(store, location).await.map_err(|error| describe(&error))?;
    let question = KindQuestion {
        backups: &backups,
        parent: &options.parent,
        damaged: &options.damaged,
        system_id: &identity.system_id,
        server_version: identity.server_version,
        timeline: identity.timeline,
        max_chain: options.max_chain,
        has_identity: keys.has_identity(),
    };
    let (record, chain_length) = match decide_backup_kind(&question) {
        KindDecision::Full(reason) => return Err(reason),
        KindDecision::Incremental { parent, length } => (parent, length),
    };
    let at = BackupLocation { cluster: location.clone(), backup_id: record.id.clone() };
    // As for a reader: whoever deletes backups looks for it after having said so. What the parent needs stays with it.
    let lock = RestoreLock::take(store, &at).await.map_err(|error| describe(&error))?;
    let manifest = tokio::select! {
        manifest = read_manifest(store, &at, record) => manifest,
        never = lock.renew() => match never {},
    };
    match manifest {
        Ok(manifest) => Ok((Parent { record: name(record), chain_length, lock }, manifest)),
        Err(error) => {
            lock.release().await;
            Err(explain(record, &error))
        }
    }
}

/// What is deleted in spite of the lock (by hand, by a retention that could not see it) makes the backup worthless: it must not appear.
pub(super) async fn validate_parent(
    store: &ObjectStore,
    location: &ClusterLocation,
    parent: Option<&ParentRecord>,
) -> Result<(), BackupError> {
    let Some(parent) = parent else { return Ok(()) };
    let problem = match read_record(store, location, &parent.id).await {
        Ok(found) => compare_parent(parent, found.as_ref()),
        Err(CatalogueError::Store(error)) => return Err(error.into()),
        Err(error) => Some(describe(&error)),
    };
    problem.map_or(Ok(()), |problem| Err(BackupError::ParentLost { id: parent.id.clone(), problem }))
}

/// What is wrong with what is there now.
fn compare_parent(named: &ParentRecord, found: Option<&BackupRecord>) -> Option<String> {
    match found {
        None => Some("it is not in the object store any more".to_owned()),
        Some(found) if found.manifest_sha256 != named.manifest_sha256 => Some("it is another one now".to_owned()),
        Some(_) => None,
    }
}

fn name(record: &BackupRecord) -> ParentRecord {
    ParentRecord { id: record.id.clone(), manifest_sha256: record.manifest_sha256.clone() }
}

fn explain(record: &BackupRecord, error: &RestoreError) -> String {
    format!("the manifest of the backup {} cannot be used: {}", record.id, describe(error))
}

/// An error with its causes, as one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_went_or_changed_meanwhile_is_told() {
        let record: BackupRecord = serde_json::from_str(
            r#"{"format":1,"id":"a","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"0/1",
                "stopLsn":"0/2","startedAt":"","stoppedAt":"","archives":[],"manifestSha256":"00","tarBytes":0,"storedBytes":0,
                "walSegmentBytes":16777216}"#,
        )
        .unwrap();
        let named = name(&record);
        assert_eq!(compare_parent(&named, Some(&record)), None);
        assert!(compare_parent(&named, None).unwrap().contains("any more"));
        let other = BackupRecord { manifest_sha256: "11".to_owned(), ..record };
        assert!(compare_parent(&named, Some(&other)).unwrap().contains("another one"));
    }
}

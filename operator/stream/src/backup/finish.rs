//! The end of a backup: prove it by the manifest, then write what belongs to it. Nothing here makes it visible.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use pgherd_core::{
    backup::{
        AGE_SUFFIX, ArchiveRecord, BackupRecord, EncryptionRecord, FULL_FORMAT, INCREMENTAL_FORMAT, ParentRecord,
    },
    lsn::Lsn,
    timeline::TimelineId,
};
use sha2::{Digest, Sha256};

use super::{
    BackupError,
    source::{ScannedArchive, ScannedBackup},
    upload::StoredArchive,
};
use crate::{
    age::{Recipient, seal},
    index::{ArchiveIndex, BackupIndex, INDEX_FORMAT, IndexEntry},
    manifest::{Manifest, SeenFile, render_hex},
    store::ObjectStore,
    tar::TarKind,
    wal::segment_names,
};

/// Name of the index object.
pub(crate) const INDEX_NAME: &str = "index.json.zst";
/// Name of the manifest object, and of its file in a data directory.
pub(crate) const MANIFEST_NAME: &str = "backup_manifest";

/// What is known of a backup before its first byte.
#[derive(Clone, Debug)]
pub(super) struct BackupIdentity {
    pub(super) id: String,
    pub(super) cluster: String,
    pub(super) system_id: String,
    pub(super) server_version: u32,
    pub(super) timeline: TimelineId,
    pub(super) start_lsn: Lsn,
    pub(super) started_at: String,
    pub(super) wal_segment_bytes: u64,
    pub(super) parent: Option<ParentRecord>,
    pub(super) method: Option<String>,
}

/// Name of an object as it is stored.
pub(crate) fn render_stored_name(name: &str, sealed: bool) -> String {
    format!("{name}{}", if sealed { AGE_SUFFIX } else { "" })
}

/// Path of a file below the data directory.
pub(crate) fn render_data_path(archive: &str, path: &str) -> String {
    if archive == "base" { path.to_owned() } else { format!("pg_tblspc/{archive}/{path}") }
}

/// Compares what passed with the manifest, and checks that the WAL from start to stop is among it.
pub(super) fn validate_backup(identity: &BackupIdentity, scanned: &ScannedBackup) -> Result<(), BackupError> {
    if scanned.stop_timeline != identity.timeline {
        return Err(BackupError::TimelineChanged { start: identity.timeline, stop: scanned.stop_timeline });
    }
    let manifest = Manifest::parse(&scanned.manifest)?;
    if manifest.system_id.is_some_and(|id| id.to_string() != identity.system_id) {
        return Err(BackupError::WrongSystem {
            expected: identity.system_id.clone(),
            found: manifest.system_id.unwrap_or_default().to_string(),
        });
    }
    let mut seen = HashMap::new();
    for archive in &scanned.archives {
        let files = archive.entries.iter().filter(|entry| entry.kind == TarKind::File);
        seen.extend(files.map(|entry| {
            let file = SeenFile { size: entry.size, crc32c: entry.crc32c };
            (render_data_path(&archive.name, &entry.path), file)
        }));
    }
    manifest.compare(&seen)?;
    manifest.validate_wal(identity.timeline, identity.start_lsn, scanned.stop_lsn)?;
    validate_wal_files(&scanned.archives, identity, scanned.stop_lsn)
}

fn validate_wal_files(
    archives: &[ScannedArchive],
    identity: &BackupIdentity,
    stop_lsn: Lsn,
) -> Result<(), BackupError> {
    let base = archives.iter().filter(|archive| archive.name == "base").flat_map(|archive| &archive.entries);
    let whole = |entry: &&IndexEntry| entry.size == identity.wal_segment_bytes;
    let present: HashSet<&str> = base.filter(whole).filter_map(|entry| entry.path.strip_prefix("pg_wal/")).collect();
    let mut needed = segment_names(identity.timeline, identity.start_lsn, stop_lsn, identity.wal_segment_bytes);
    match needed.find(|name| !present.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => Err(BackupError::MissingWal(name)),
    }
}

/// Builds the index and the record.
pub(super) fn build_record(
    identity: BackupIdentity,
    scanned: ScannedBackup,
    stored: Vec<StoredArchive>,
    stopped_at: String,
    encryption: Option<EncryptionRecord>,
) -> Result<(BackupRecord, BackupIndex, Vec<u8>), BackupError> {
    let ScannedBackup { archives, manifest, stop_lsn, .. } = scanned;
    if archives.len() != stored.len() {
        return Err(BackupError::Interrupted);
    }
    let mut record = BackupRecord {
        format: if identity.parent.is_some() { INCREMENTAL_FORMAT } else { FULL_FORMAT },
        id: identity.id,
        cluster: identity.cluster,
        system_id: identity.system_id,
        server_version: identity.server_version,
        timeline: identity.timeline,
        start_lsn: identity.start_lsn,
        stop_lsn,
        started_at: identity.started_at,
        stopped_at,
        archives: Vec::new(),
        manifest_sha256: render_hex(&Sha256::digest(&manifest)),
        tar_bytes: 0,
        stored_bytes: 0,
        wal_segment_bytes: identity.wal_segment_bytes,
        index_sha256: None,
        encryption,
        parent: identity.parent,
        method: identity.method,
        checksum: None,
    };
    let mut index = BackupIndex { format: INDEX_FORMAT, archives: Vec::new() };
    for (ScannedArchive { name, path, entries, tar_bytes }, StoredArchive { segments, sizes }) in
        archives.into_iter().zip(stored)
    {
        let decoded: u64 = segments.iter().flatten().map(|(_, decoded)| u64::from(*decoded)).sum();
        if decoded != tar_bytes {
            return Err(BackupError::Interrupted);
        }
        record.tar_bytes += tar_bytes;
        record.stored_bytes += sizes.iter().sum::<u64>();
        record.archives.push(ArchiveRecord { name: name.clone(), tablespace_path: path, segments: sizes, tar_bytes });
        index.archives.push(ArchiveIndex { name, segments, entries });
    }
    Ok((record, index, manifest))
}

/// Writes index and manifest, encrypted for the recipients if there are any; returns the SHA-256 of the plain index.
pub(super) async fn write_companions(
    store: &ObjectStore,
    prefix: &str,
    recipients: Vec<Recipient>,
    index: BackupIndex,
    manifest: Vec<u8>,
) -> Result<String, BackupError> {
    let sealed = !recipients.is_empty();
    let encode = move || {
        let encoded = index.encode()?;
        drop(index);
        let sha256 = render_hex(&Sha256::digest(&encoded));
        if !sealed {
            return Ok((sha256, encoded, manifest));
        }
        Ok::<_, BackupError>((sha256, seal(&recipients, &encoded)?, seal(&recipients, &manifest)?))
    };
    let (sha256, index, manifest) = tokio::task::spawn_blocking(encode).await.map_err(BackupError::Task)??;
    let key = |name: &str| format!("{prefix}{}", render_stored_name(name, sealed));
    store.put(&key(INDEX_NAME), Bytes::from(index)).await?;
    store.put(&key(MANIFEST_NAME), Bytes::from(manifest)).await?;
    Ok(sha256)
}

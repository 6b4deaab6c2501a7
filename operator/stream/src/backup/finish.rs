//! The end of a backup: prove it by the manifest, then write what belongs to it. Nothing here makes it visible.

use std::{
    collections::{HashMap, HashSet},
    io::{BufReader, Read},
};

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
    object::ObjectWriter,
    source::{ScannedArchive, ScannedBackup},
    upload::StoredArchive,
};
use crate::{
    index::{EncodedArchive, INDEX_FORMAT, IndexEntry, IndexError, encode_index},
    manifest::{FilesSummary, Manifest, ManifestFile, SeenFile, render_hex},
    spool::Spool,
    tar::TarKind,
    wal::segment_names,
};

/// Name of the index object.
pub(crate) const INDEX_NAME: &str = "index.json.zst";
/// Name of the manifest object, and of its file in a data directory.
pub(crate) const MANIFEST_NAME: &str = "backup_manifest";

/// The manifest is decoded in pieces of this size.
const COPY_BYTES: usize = 64 << 10;

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
    let text = scanned.manifest.clone().decode().map_err(BackupError::Spool)?;
    let manifest = Manifest::<FilesSummary>::read(text)?;
    if manifest.system_id.is_some_and(|id| id.to_string() != identity.system_id) {
        return Err(BackupError::WrongSystem {
            expected: identity.system_id.clone(),
            found: manifest.system_id.unwrap_or_default().to_string(),
        });
    }
    if !manifest.files.fits(&scanned.files) {
        compare_each(scanned)?;
    }
    manifest.validate_wal(identity.timeline, identity.start_lsn, scanned.stop_lsn)?;
    validate_wal_files(&scanned.files.wal, identity, scanned.stop_lsn)
}

/// As the server sends them, the files come in the manifest's order, and nothing needs to be looked up. In another order, or where
/// something differs and has to be named, all of them come into memory.
fn compare_each(scanned: &ScannedBackup) -> Result<(), BackupError> {
    let mut seen = HashMap::new();
    for archive in &scanned.archives {
        let entries = archive.entries.clone().decode().map_err(BackupError::Spool)?;
        let entries: Vec<IndexEntry> = serde_json::from_reader(BufReader::new(entries)).map_err(IndexError::Json)?;
        let files = entries.into_iter().filter(|entry| entry.kind == TarKind::File);
        seen.extend(files.map(|entry| {
            let file = SeenFile { size: entry.size, crc32c: entry.crc32c };
            (render_data_path(&archive.name, &entry.path), file)
        }));
    }
    let text = scanned.manifest.clone().decode().map_err(BackupError::Spool)?;
    let manifest: Manifest = Manifest::read(text)?;
    Ok(manifest.compare(&seen)?)
}

fn validate_wal_files(wal: &[ManifestFile], identity: &BackupIdentity, stop_lsn: Lsn) -> Result<(), BackupError> {
    let whole = wal.iter().filter(|file| file.size == identity.wal_segment_bytes);
    let present: HashSet<&str> = whole.filter_map(|file| file.path.strip_prefix("pg_wal/")).collect();
    let mut needed = segment_names(identity.timeline, identity.start_lsn, stop_lsn, identity.wal_segment_bytes);
    match needed.find(|name| !present.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => Err(BackupError::MissingWal(name)),
    }
}

/// Builds the record and the index.
pub(super) fn build_record(
    identity: BackupIdentity,
    scanned: ScannedBackup,
    stored: Vec<StoredArchive>,
    stopped_at: String,
    encryption: Option<EncryptionRecord>,
) -> Result<(BackupRecord, Spool), BackupError> {
    let ScannedBackup { archives, manifest_sha256, stop_lsn, .. } = scanned;
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
        manifest_sha256,
        tar_bytes: 0,
        stored_bytes: 0,
        wal_segment_bytes: identity.wal_segment_bytes,
        index_sha256: None,
        encryption,
        parent: identity.parent,
        method: identity.method,
        checksum: None,
    };
    let mut encoded = Vec::new();
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
        encoded.push(EncodedArchive { name, segments, entries });
    }
    Ok((record, encode_index(INDEX_FORMAT, encoded)?))
}

/// Writes index and manifest; returns the SHA-256 of the index as it is before it is encrypted.
pub(super) async fn write_companions(
    objects: &mut ObjectWriter,
    prefix: &str,
    index: Spool,
    manifest: Spool,
) -> Result<String, BackupError> {
    let sealed = objects.is_sealing();
    let key = |name: &str| format!("{prefix}{}", render_stored_name(name, sealed));
    let mut sum = Sha256::new();
    objects.begin(key(INDEX_NAME)).await?;
    for piece in index.into_pieces() {
        sum.update(&piece);
        objects.write(&piece).await?;
    }
    objects.finish().await?;
    objects.begin(key(MANIFEST_NAME)).await?;
    let mut text = manifest.decode().map_err(BackupError::Spool)?;
    let mut piece = vec![0; COPY_BYTES];
    loop {
        let read = text.read(&mut piece).map_err(BackupError::Spool)?;
        if read == 0 {
            break;
        }
        objects.write(piece.get(..read).unwrap_or_default()).await?;
    }
    objects.finish().await?;
    Ok(render_hex(&sum.finalize()))
}

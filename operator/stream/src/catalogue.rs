//! What lies in a store: clusters and their backups. Only `backup.json` makes a backup visible.

use std::ops::RangeInclusive;

use futures::{StreamExt, stream};
use pgherd_core::backup::{
    AGE_METHOD, BackupLocation, BackupRecord, ClusterLocation, FULL_FORMAT, INCREMENTAL_FORMAT, is_backup_id,
};

use sha2::{Digest, Sha256};

use crate::{
    manifest::render_hex,
    store::{ObjectStore, StoreError},
};

/// Name of the object that makes a backup visible.
pub const RECORD_NAME: &str = "backup.json";
/// A longer record is refused: it names 100,000 objects in a tenth of this.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// What a WAL segment can have.
const WAL_SEGMENT_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 30;
/// No backup is larger: of thousands of them the sum is still a number.
const MAX_TAR_BYTES: u64 = 1 << 50;
/// Records read at the same time.
const CONCURRENT_READS: usize = 8;

/// A cluster in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCluster {
    /// Its name.
    pub name: String,
    /// The database systems that were backed up under this name.
    pub system_ids: Vec<String>,
}

/// Why a backup could not be named.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The store failed.
    #[error("reading the object store")]
    Store(#[from] StoreError),
    /// No cluster of this name.
    #[error("the object store holds no cluster \"{0}\"")]
    UnknownCluster(String),
    /// Several database systems of one name.
    #[error("the object store holds several database systems named \"{cluster}\": {}; name one by systemId", system_ids.join(", "))]
    AmbiguousSystem {
        /// The cluster's name.
        cluster: String,
        /// What is there.
        system_ids: Vec<String>,
    },
    /// No backup of this id, or none at all.
    #[error("no {} in {root}", if id.is_empty() { "complete backup".to_owned() } else { format!("complete backup {id}") })]
    NoBackup {
        /// Key prefix of the cluster.
        root: String,
        /// The id; empty when any would do.
        id: String,
    },
    /// A `backup.json` is not what this version reads.
    #[error("{key} is not a backup record that this version reads: {problem}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// All complete backups of a database system, newest last.
///
/// # Errors
/// [`CatalogueError`]; also when one record of several is unreadable.
pub async fn list_backups(
    store: &ObjectStore,
    location: &ClusterLocation,
) -> Result<Vec<BackupRecord>, CatalogueError> {
    let found = list_readable(store, location).await?;
    match found.unreadable.first() {
        None => Ok(found.backups),
        Some(unreadable) => Err(unreadable.to_error()),
    }
}

/// What of a database system's backups this version can read, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadableBackups {
    /// Complete backups, newest last.
    pub backups: Vec<BackupRecord>,
    /// What has a record that is damaged, or of a later version.
    pub unreadable: Vec<UnreadableBackup>,
}

/// A backup of which nothing more is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableBackup {
    /// Its id, by the name of its folder.
    pub id: String,
    /// Key of its record.
    pub key: String,
    /// What is wrong with that.
    pub problem: String,
}

impl UnreadableBackup {
    /// What reading it ends with.
    #[must_use]
    pub fn to_error(&self) -> CatalogueError {
        CatalogueError::Record { key: self.key.clone(), problem: self.problem.clone() }
    }
}

impl ReadableBackups {
    /// Adds what a record turned out to be.
    fn add(&mut self, id: String, read: Result<Option<BackupRecord>, CatalogueError>) -> Result<(), CatalogueError> {
        match read {
            Ok(record) => self.backups.extend(record),
            Err(CatalogueError::Record { key, problem }) => self.unreadable.push(UnreadableBackup { id, key, problem }),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Refuses a backup that is there and cannot be read.
    ///
    /// # Errors
    /// [`CatalogueError::Record`] with the key.
    pub fn validate_readable(&self, id: &str) -> Result<(), CatalogueError> {
        self.unreadable.iter().find(|unreadable| unreadable.id == id).map_or(Ok(()), |found| Err(found.to_error()))
    }

    /// Leaves out what cannot be read, as long as something is left.
    ///
    /// # Errors
    /// [`CatalogueError::Record`] of the newest one, if nothing is.
    pub fn skip_unreadable(&self) -> Result<(), CatalogueError> {
        match self.unreadable.last().filter(|_| self.backups.is_empty()) {
            Some(newest) => Err(newest.to_error()),
            None => {
                for UnreadableBackup { key, problem, .. } in &self.unreadable {
                    tracing::warn!(key, problem, "a backup whose record cannot be read is left out");
                }
                Ok(())
            }
        }
    }
}

/// The backups of a database system, without giving up at a record that cannot be read. Who deletes wants [`list_backups`].
///
/// # Errors
/// [`CatalogueError`] of the store alone.
pub async fn list_readable(store: &ObjectStore, location: &ClusterLocation) -> Result<ReadableBackups, CatalogueError> {
    let mut ids = store.list_dirs(&format!("{}/base/", location.root())).await?;
    ids.sort();
    let reads = stream::iter(ids).map(|id| async move { (read_record(store, location, &id).await, id) });
    let mut reads = std::pin::pin!(reads.buffered(CONCURRENT_READS));
    let mut found = ReadableBackups::default();
    while let Some((read, id)) = reads.next().await {
        found.add(id, read)?;
    }
    found.backups.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(found)
}

/// The clusters below a prefix of the store (without slashes at its ends; may be empty).
///
/// # Errors
/// [`CatalogueError`].
pub async fn list_clusters(store: &ObjectStore, prefix: &str) -> Result<Vec<StoredCluster>, CatalogueError> {
    let prefix = prefix.trim_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let mut clusters = Vec::new();
    for name in store.list_dirs(&prefix).await? {
        let system_ids = list_systems(store, &format!("{prefix}{name}/")).await?;
        if !system_ids.is_empty() {
            clusters.push(StoredCluster { name, system_ids });
        }
    }
    Ok(clusters)
}

/// The database systems of a location that may leave the cluster open, its system id, or both.
///
/// # Errors
/// [`CatalogueError`]; [`CatalogueError::UnknownCluster`] for a named one that is not there.
pub async fn find_systems(
    store: &ObjectStore,
    location: &ClusterLocation,
) -> Result<Vec<ClusterLocation>, CatalogueError> {
    let id = &location.system_id;
    let clusters = match (location.cluster.is_empty(), id.is_empty()) {
        (true, _) => list_clusters(store, &location.store.prefix).await?,
        (false, false) => vec![StoredCluster { name: location.cluster.clone(), system_ids: vec![id.clone()] }],
        (false, true) => {
            // With an empty system id, the root ends with the slash after the cluster's name.
            let system_ids = list_systems(store, &location.root()).await?;
            vec![StoredCluster { name: location.cluster.clone(), system_ids }]
        }
    };
    let mut systems = Vec::new();
    for StoredCluster { name, system_ids } in clusters {
        let wanted = system_ids.into_iter().filter(|found| id.is_empty() || found == id);
        systems.extend(wanted.map(|system_id| ClusterLocation {
            cluster: name.clone(),
            system_id,
            store: location.store.clone(),
        }));
    }
    if systems.is_empty() && !location.cluster.is_empty() {
        return Err(CatalogueError::UnknownCluster(location.cluster.clone()));
    }
    Ok(systems)
}

/// Fills in an empty system id (there must be only one) and an empty backup id (the newest).
///
/// # Errors
/// [`CatalogueError`].
pub async fn resolve(
    store: &ObjectStore,
    location: &BackupLocation,
) -> Result<(BackupLocation, BackupRecord), CatalogueError> {
    let cluster = resolve_system(store, &location.cluster).await?;
    let mut resolved = BackupLocation { cluster, ..location.clone() };
    let record = if resolved.backup_id.is_empty() {
        let mut found = list_readable(store, &resolved.cluster).await?;
        found.skip_unreadable()?;
        found.backups.pop()
    } else {
        read_record(store, &resolved.cluster, &resolved.backup_id).await?
    };
    let root = resolved.cluster.root();
    let record = record.ok_or_else(|| CatalogueError::NoBackup { root, id: resolved.backup_id.clone() })?;
    resolved.backup_id.clone_from(&record.id);
    Ok((resolved, record))
}

/// Fills in an empty system id: there must be only one.
///
/// # Errors
/// [`CatalogueError`].
pub async fn resolve_system(
    store: &ObjectStore,
    location: &ClusterLocation,
) -> Result<ClusterLocation, CatalogueError> {
    let mut resolved = location.clone();
    if resolved.system_id.is_empty() {
        // With an empty system id, the root ends with the slash after the cluster's name.
        let mut system_ids = list_systems(store, &resolved.root()).await?;
        resolved.system_id = match (system_ids.pop(), system_ids.is_empty()) {
            (None, _) => return Err(CatalogueError::UnknownCluster(resolved.cluster)),
            (Some(only), true) => only,
            (Some(last), false) => {
                system_ids.push(last);
                return Err(CatalogueError::AmbiguousSystem { cluster: resolved.cluster, system_ids });
            }
        };
    }
    Ok(resolved)
}

/// Reads one `backup.json`; `None` when the store says that there is none.
///
/// # Errors
/// [`CatalogueError`].
pub async fn read_record(
    store: &ObjectStore,
    location: &ClusterLocation,
    id: &str,
) -> Result<Option<BackupRecord>, CatalogueError> {
    let key = format!("{}{RECORD_NAME}", location.backup_prefix(id));
    let Some(bytes) = store.get_at_most(&key, MAX_RECORD_BYTES).await? else { return Ok(None) };
    parse_record(&bytes, location, id).map(Some).map_err(|problem| CatalogueError::Record { key, problem })
}

#[derive(serde::Deserialize)]
struct FormatOnly {
    format: u32,
    #[serde(default)]
    encryption: Option<serde_json::Value>,
}

/// Reads the bytes of the `backup.json` of `id`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_record(bytes: &[u8], location: &ClusterLocation, id: &str) -> Result<BackupRecord, String> {
    // The format is read first, so that a record of a later version is named as such and not as malformed.
    let FormatOnly { format, encryption } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if ![FULL_FORMAT, INCREMENTAL_FORMAT].contains(&format) {
        return Err(format!("it has format {format}, known are {FULL_FORMAT} and {INCREMENTAL_FORMAT}"));
    }
    let method = encryption.as_ref().map(|encryption| encryption.get("method").and_then(|method| method.as_str()));
    if let Some(method) = method
        && method != Some(AGE_METHOD)
    {
        let method = method.unwrap_or("an unnamed method");
        return Err(format!("the backup is encrypted by {method}, which this version does not read"));
    }
    let record: BackupRecord = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let found = checksum_of(serde_json::from_slice(bytes).map_err(|error| error.to_string())?);
    // Every record that names its index's checksum has one of its own.
    let is_due = record.checksum.is_some() || record.index_sha256.is_some();
    if is_due && record.checksum.as_ref() != Some(&found) {
        return Err("it does not fit its own checksum".to_owned());
    }
    if record.parent.is_some() != (record.format == INCREMENTAL_FORMAT) {
        return Err(format!("a parent goes with format {INCREMENTAL_FORMAT}, and only with it"));
    }
    if record.id != id {
        return Err(format!("it says it is backup {}", record.id));
    }
    if record.system_id != location.system_id {
        return Err(format!("it belongs to the database system {}", record.system_id));
    }
    validate_values(&record)?;
    Ok(record)
}

/// A checksum is no defence against somebody who means it: what is counted with later must be such as a backup can have.
fn validate_values(record: &BackupRecord) -> Result<(), String> {
    let ids = [Some(&record.id), record.parent.as_ref().map(|parent| &parent.id)];
    if let Some(id) = ids.into_iter().flatten().find(|id| !is_backup_id(id)) {
        return Err(format!("\"{}\" is no backup's id", id.chars().take(80).collect::<String>()));
    }
    if !record.wal_segment_bytes.is_power_of_two() || !WAL_SEGMENT_BYTES.contains(&record.wal_segment_bytes) {
        return Err(format!("it has WAL segments of {} bytes", record.wal_segment_bytes));
    }
    if record.start_lsn > record.stop_lsn {
        return Err(format!("it begins at {}, after its end at {}", record.start_lsn, record.stop_lsn));
    }
    let bytes = record.archives.iter().try_fold(0u64, |sum, archive| sum.checked_add(archive.tar_bytes));
    if bytes == Some(record.tar_bytes) && record.tar_bytes <= MAX_TAR_BYTES {
        return Ok(());
    }
    Err(format!("its archives are not the {} bytes that it counts", record.tar_bytes))
}

/// What belongs into a record's `checksum`.
///
/// # Errors
/// When the record cannot be written as JSON.
pub fn render_checksum(record: &BackupRecord) -> Result<String, serde_json::Error> {
    serde_json::to_value(record).map(checksum_of)
}

/// Of the JSON and not of the fields that are known here: a later version may add some.
fn checksum_of(mut record: serde_json::Value) -> String {
    if let Some(fields) = record.as_object_mut() {
        fields.remove("checksum");
    }
    render_hex(&Sha256::digest(canonical(&record).as_bytes()))
}

/// Compact JSON with sorted keys, however the parser keeps them.
fn canonical(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields.iter().collect();
            let field = |(key, value): (&String, &serde_json::Value)| {
                format!("{}:{}", serde_json::Value::String(key.clone()), canonical(value))
            };
            format!("{{{}}}", sorted.into_iter().map(field).collect::<Vec<_>>().join(","))
        }
        serde_json::Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        plain => plain.to_string(),
    }
}

/// Names of digits only: the database systems of a cluster.
async fn list_systems(store: &ObjectStore, prefix: &str) -> Result<Vec<String>, CatalogueError> {
    let names = store.list_dirs(prefix).await?;
    Ok(names.into_iter().filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_core::backup::StoreConfig;
    use proptest::prelude::*;

    fn location() -> ClusterLocation {
        let store = StoreConfig {
            endpoint: String::new(),
            bucket: String::new(),
            prefix: String::new(),
            region: None,
            path_style: true,
            credentials_dir: String::new(),
            ca_file: None,
            encryption: None,
        };
        ClusterLocation { store, cluster: "c".into(), system_id: "7".into() }
    }

    #[test]
    fn a_record_of_a_later_format_or_another_system_is_refused_by_name() {
        let location = location();
        let parse = |text: &str| parse_record(text.as_bytes(), &location, "a").unwrap_err();
        assert!(parse(r#"{"format": 9, "chunks": []}"#).contains("format 9"));
        assert!(parse("{").contains("EOF"));
        assert!(parse(r#"{"format": 1, "encryption": {"method": "rot13"}}"#).contains("encrypted by rot13"));
        assert!(parse(r#"{"format": 1, "encryption": "x"}"#).contains("encrypted by an unnamed"));
        let record = r#"{"format":1,"id":"a","cluster":"c","systemId":"8","serverVersion":150013,"timeline":1,"startLsn":"0/1",
            "stopLsn":"0/2","startedAt":"","stoppedAt":"","archives":[],"manifestSha256":"","tarBytes":0,"storedBytes":0,
            "walSegmentBytes":16777216}"#;
        assert!(parse(record).contains("database system 8"));
        let unmarked = record.replacen(r#""format":1"#, r#""format":2"#, 1);
        assert!(parse(&unmarked).contains("a parent goes with format 2"));
        let parent = r#""parent":{"id":"z","manifestSha256":""},"format":1"#;
        assert!(parse(&record.replacen(r#""format":1"#, parent, 1)).contains("a parent goes with format 2"));
    }
    const RECORD: &str = r#"{"format":1,"id":"a","cluster":"c","systemId":"7","serverVersion":150013,"timeline":1,"startLsn":"0/1",
        "stopLsn":"0/2","startedAt":"","stoppedAt":"","archives":[{"name":"base","tablespacePath":"","segments":[7],"tarBytes":9}],
        "manifestSha256":"00","tarBytes":9,"storedBytes":7,"walSegmentBytes":16777216,"indexSha256":"11"}"#;

    fn render_good() -> String {
        let mut record: serde_json::Value = serde_json::from_str(RECORD).unwrap();
        let checksum = checksum_of(record.clone());
        record.as_object_mut().unwrap().insert("checksum".into(), checksum.into());
        serde_json::to_string_pretty(&record).unwrap()
    }

    #[test]
    fn no_bit_of_a_record_can_change_unseen() {
        let good = render_good();
        parse_record(good.as_bytes(), &location(), "a").unwrap();
        assert!(parse_record(RECORD.as_bytes(), &location(), "a").is_err(), "a checksum cannot be left out");
        for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = good.clone().into_bytes();
            flipped[at] ^= 1 << bit;
            assert!(parse_record(&flipped, &location(), "a").is_err(), "bit {bit} of byte {at}");
        }
    }

    #[test]
    fn one_record_that_cannot_be_read_hides_no_other_unless_it_is_asked_for_or_alone() {
        let record: BackupRecord = serde_json::from_str(RECORD).unwrap();
        let damaged = |id: &str| CatalogueError::Record { key: format!("{id}/backup.json"), problem: "x".to_owned() };
        let mut found = ReadableBackups::default();
        found.add("b".to_owned(), Err(damaged("b"))).unwrap();
        assert!(found.skip_unreadable().unwrap_err().to_string().contains("b/backup.json"));
        found.add("a".to_owned(), Ok(Some(record.clone()))).unwrap();
        found.add("c".to_owned(), Ok(None)).unwrap();
        found.skip_unreadable().unwrap();
        assert_eq!(found.backups, [record]);
        assert!(found.validate_readable("b").unwrap_err().to_string().contains("b/backup.json"));
        assert!(found.validate_readable("a").is_ok() && found.validate_readable("c").is_ok());
        let away = CatalogueError::Store(StoreError::NoSuchBucket("x".to_owned()));
        assert!(found.add("d".to_owned(), Err(away)).is_err(), "nothing is known of the others");
    }

    proptest! {
        #[test]
        fn arbitrary_and_changed_records_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let _ = parse_record(&bytes, &location(), "a");
            let mut changed = render_good().into_bytes();
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            if let Ok(record) = parse_record(&changed, &location(), "a") {
                prop_assert_eq!(record, parse_record(render_good().as_bytes(), &location(), "a").unwrap());
            }
        }
    }
}

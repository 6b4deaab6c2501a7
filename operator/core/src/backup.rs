//! What a backup in the object store is, and where its objects lie.
//!
//! ```text
//! <prefix>/<cluster>/<system id>/base/<id>/{base.tar.zst.0000…, <oid>.tar.zst.0000…, index.json.zst, backup_manifest, backup.json}
//! <prefix>/<cluster>/<system id>/wal/<tli>/<log>/<segment>.zst        and  wal/<tli>.history
//! ```
//! `backup.json` is written last: without it there is no backup. Where encryption is on, every object but it, the marker of a
//! running backup and `.history` files is an age file with `.age` at the end of its name.

use serde::{Deserialize, Serialize};

use crate::{
    lsn::Lsn,
    register::{MemberId, Term},
    timeline::TimelineId,
};

/// An S3-compatible store. Secrets are files: only their folder is named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreConfig {
    /// `https://host:port`.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// Prefix of every key, without slashes at its ends; may be empty.
    #[serde(default)]
    pub prefix: String,
    /// Region for signing; `us-east-1` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `https://host/bucket/key` instead of `https://bucket.host/key`.
    pub path_style: bool,
    /// Folder with `accessKeyId`, `secretAccessKey` and optionally `sessionToken`.
    pub credentials_dir: String,
    /// PEM bundle to trust instead of the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Whom what is written is encrypted for, and what opens it again; the store itself never has either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionConfig>,
}

/// Encryption on the client, by age. The secret half is a file: only its path is named here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionConfig {
    /// `age1…`: each of them can open what is written. With none, what is written is plain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// File with one or more lines `AGE-SECRET-KEY-1…`, needed where something encrypted is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<String>,
}

/// At the end of the name of every object that is an age file.
pub const AGE_SUFFIX: &str = ".age";
/// [`EncryptionRecord::method`] of backups that are encrypted here.
pub const AGE_METHOD: &str = "age";

/// One cluster's part of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLocation {
    /// The store.
    pub store: StoreConfig,
    /// The cluster's name in the store.
    pub cluster: String,
    /// The database system identifier.
    pub system_id: String,
}

/// One backup in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupLocation {
    /// The cluster's part of the store. An empty `systemId` is filled in by listing: it must be the only one there.
    #[serde(flatten)]
    pub cluster: ClusterLocation,
    /// The backup's id; empty for the newest one.
    #[serde(default)]
    pub backup_id: String,
}

impl ClusterLocation {
    /// `<prefix>/<cluster>/<system id>`.
    #[must_use]
    pub fn root(&self) -> String {
        let prefix = self.store.prefix.trim_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        format!("{prefix}{separator}{}/{}", self.cluster, self.system_id)
    }

    /// Key prefix of a backup's objects, with a slash at its end.
    #[must_use]
    pub fn backup_prefix(&self, id: &str) -> String {
        format!("{}/base/{id}/", self.root())
    }

    /// Key prefix, with a slash at its end, of the WAL that a former primary held beyond the history. It never mixes with
    /// the archive: its segments' names may be taken there.
    #[must_use]
    pub fn divergent_prefix(&self, term: Term, member: &MemberId) -> String {
        format!("{}/divergent/{term}-{member}/", self.root())
    }

    /// `s3://bucket/key/` of a backup's objects, for people.
    #[must_use]
    pub fn destination(&self, id: &str) -> String {
        format!("s3://{}/{}", self.store.bucket, self.backup_prefix(id))
    }

    /// Key of a WAL file that was archived plain: a segment (also `.partial` and `.backup`) or a `.history`.
    #[must_use]
    pub fn wal_key(&self, name: &str) -> String {
        match (name.strip_suffix(".history"), name.get(..8), name.get(8..16)) {
            (None, Some(timeline), Some(log)) => format!("{}/wal/{timeline}/{log}/{name}.zst", self.root()),
            _ => format!("{}/wal/{name}", self.root()),
        }
    }

    /// Key of a WAL file that was archived encrypted; none for a `.history`, which is always plain.
    #[must_use]
    pub fn sealed_wal_key(&self, name: &str) -> Option<String> {
        (!name.ends_with(".history")).then(|| format!("{}{AGE_SUFFIX}", self.wal_key(name)))
    }
}

/// How a backup is encrypted, as its `backup.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionRecord {
    /// [`AGE_METHOD`].
    pub method: String,
    /// `age1…`: any one of them opens it.
    pub recipients: Vec<String>,
}

/// [`BackupRecord::method`] of backups that were read from the files of a data directory, and not sent by the server.
pub const LOCAL_METHOD: &str = "local";

/// What an incremental backup holds the changes since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRecord {
    /// The parent's id.
    pub id: String,
    /// SHA-256 of the parent's `backup_manifest`, hexadecimal: another backup under its id is not the parent.
    pub manifest_sha256: String,
}

/// Whether a text has the form of a backup's id: it becomes part of keys, and is shown.
#[must_use]
pub fn is_backup_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// [`BackupRecord::format`] of a full backup.
pub const FULL_FORMAT: u32 = 1;
/// [`BackupRecord::format`] of an incremental one: a version that does not know parents must not take it for a full backup,
/// nor delete what it needs.
pub const INCREMENTAL_FORMAT: u32 = 2;

/// `backup.json`: what a backup holds. Its presence makes the backup exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupRecord {
    /// Version of this format: [`FULL_FORMAT`] or [`INCREMENTAL_FORMAT`].
    pub format: u32,
    /// The backup's id: `<UTC yyyymmddThhmmssZ>-<timeline>-<start LSN with a dash>`; the time is that of a
    /// node, and says nothing of which backup is the newer one: see [`BackupRecord::order`].
    pub id: String,
    /// The cluster's name when it was made.
    pub cluster: String,
    /// The database system identifier.
    pub system_id: String,
    /// `server_version_num`.
    pub server_version: u32,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// WAL is needed from here.
    pub start_lsn: Lsn,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub stopped_at: String,
    /// The archives in the order in which they were sent; `base` is last.
    pub archives: Vec<ArchiveRecord>,
    /// SHA-256 of `backup_manifest` (before it is encrypted), hexadecimal.
    pub manifest_sha256: String,
    /// Bytes of all tar archives.
    pub tar_bytes: u64,
    /// Bytes stored, compressed.
    pub stored_bytes: u64,
    /// WAL segment size in bytes.
    pub wal_segment_bytes: u64,
    /// SHA-256 of `index.json.zst` (before it is encrypted), hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_sha256: Option<String>,
    /// How the objects are encrypted; absent for a plain backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionRecord>,
    /// The backup that this one holds the changes since; absent for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRecord>,
    /// [`LOCAL_METHOD`]; absent where the server sent the backup. For information: what is stored is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// SHA-256 of this record as compact JSON with sorted keys and without this field, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

impl BackupRecord {
    /// Sorts the older of two backups of one database system first, whatever the clocks said of those who made them: timelines
    /// only grow, and on one of them positions do.
    #[must_use]
    pub fn order(&self) -> (TimelineId, Lsn, &str) {
        (self.timeline, self.stop_lsn, &self.id)
    }
}

/// One tar archive of a backup: the data directory (`base`) or a tablespace (its OID).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveRecord {
    /// `base`, or the tablespace's OID.
    pub name: String,
    /// Where the tablespace was; empty for `base`.
    #[serde(default)]
    pub tablespace_path: String,
    /// The objects `<name>.tar.zst.0000…` (`….0000.age` where encrypted) with their sizes in bytes as stored.
    pub segments: Vec<u64>,
    /// Bytes of the tar archive.
    pub tar_bytes: u64,
}

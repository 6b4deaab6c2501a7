//! `backup.json`: what the controller tells a backup Job, mounted from a ConfigMap. Names no secret, only the folders
//! that secrets are mounted at.

use std::path::{Path, PathBuf};

use pgherd_core::{
    backup::ClusterLocation,
    compression::{LevelBounds, LevelError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where the ConfigMap is mounted.
pub const CONFIG_DIR: &str = "/etc/pgherd/backup";
/// The file in it.
pub const CONFIG_FILE: &str = "backup.json";

/// What one attempt of a backup does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupJobConfig {
    /// The Backup's namespace.
    pub namespace: String,
    /// The Backup's name.
    pub backup: String,
    /// The Backup's UID: a Backup made again under the same name is another one and gets no status from this Job.
    pub backup_uid: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The instance that is read.
    pub source: SourceConfig,
    /// Where the backup goes.
    pub location: ClusterLocation,
    /// Within which levels it is compressed; those of the backup where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionConfig>,
    /// Kilobytes per second that are read at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
    /// An incremental backup is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<IncrementalConfig>,
    /// The agent beside the instance is to read its files, instead of this Job having them sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
}

impl BackupJobConfig {
    /// The levels of compression.
    ///
    /// # Errors
    /// [`LevelError`].
    pub fn levels(&self) -> Result<LevelBounds, LevelError> {
        self.compression
            .map_or(Ok(LevelBounds::default()), |levels| LevelBounds::of(levels.min_level, levels.max_level))
    }
}

/// The lowest and the highest level of zstd, as far as the user says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompressionConfig {
    /// The lowest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_level: Option<i32>,
    /// The highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_level: Option<i32>,
}

/// The agent that reads the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalConfig {
    /// Port of its API, at the source's host.
    pub agent_port: u16,
}

/// How an incremental backup is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncrementalConfig {
    /// Backups of a chain at most, with the full one.
    pub max_chain: u32,
    /// Ids of backups that were found unusable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

/// The instance that is read, over TLS with a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceConfig {
    /// The pod.
    pub pod: String,
    /// Its DNS name, which its certificate must carry.
    pub host: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Folder with `ca.crt`, `replication.crt` and `replication.key`.
    pub tls_dir: String,
}

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not the JSON that the controller writes.
    #[error("the configuration {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads the file of a Job.
///
/// # Errors
/// [`ConfigError`] names the file.
pub fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
}

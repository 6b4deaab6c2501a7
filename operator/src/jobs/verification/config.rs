//! What the controller tells a Job of verification. Names no secret, only the folders that secrets are mounted at.

use std::path::PathBuf;

use pgherd_core::backup::BackupLocation;
use serde::{Deserialize, Serialize};

/// What one run verifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyJobConfig {
    /// The backup, by its id.
    pub location: BackupLocation,
    /// The Backup's name.
    pub backup: String,
    /// Its UID: a Backup made again under the same name gets no status from this run.
    pub backup_uid: String,
    /// Where it is restored to.
    pub data: PathBuf,
    /// Where the server's unix socket goes.
    pub sockets: PathBuf,
    /// `shared_preload_libraries` of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<String>,
    /// Where the statements run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Statements that must each return a single true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<String>,
}

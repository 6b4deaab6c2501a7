//! What the agent is told from outside: who it is (environment) and how the cluster is configured (a file that may
//! change at any time). Reads only.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pgherd_core::instance::InstanceConfig;
use tokio::sync::watch;

use crate::{board::Board, layout::Layout, parameters::accept_parameters};

/// The configuration file is looked at this often. The kubelet needs up to a minute to bring a change anyway.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// Who this agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// Chosen at this start.
    pub boot_nonce: String,
    /// The pod's IP; None where the pod was made before it was told.
    pub address: Option<IpAddr>,
}

/// Why the agent does not know what it needs.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A variable of the environment is missing.
    #[error("the environment variable {0} is not set")]
    Environment(&'static str),
    /// The configuration file can't be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration file is not what it should be.
    #[error("failed to parse {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads `POD_NAME`, `POD_UID`, `POD_NAMESPACE` and `POD_IP`, and chooses a boot nonce.
///
/// # Errors
/// [`SettingsError::Environment`] names the variable that is missing; only `POD_IP` may be.
pub fn observe_identity() -> Result<Identity, SettingsError> {
    let variable =
        |name| std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or(SettingsError::Environment(name));
    let boot_nonce = uuid::Uuid::new_v4().to_string();
    Ok(Identity {
        pod: variable("POD_NAME")?,
        pod_uid: variable("POD_UID")?,
        namespace: variable("POD_NAMESPACE")?,
        boot_nonce,
        address: std::env::var("POD_IP").ok().and_then(|text| text.parse().ok()),
    })
}

/// Reads the configuration file.
///
/// # Errors
/// [`SettingsError`] when it can't be read or parsed.
pub fn read_config(path: &Path) -> Result<InstanceConfig, SettingsError> {
    let text = fs::read(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| SettingsError::Parse { path: path.to_owned(), source })
}

/// Publishes the configuration, with parameters that PostgreSQL takes, whenever the file differs from what was `read`; keeps the last
/// good one while the file is broken. Never ends.
pub async fn watch_config(
    layout: Layout,
    board: Board,
    mut read: InstanceConfig,
    sender: watch::Sender<Arc<InstanceConfig>>,
) {
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        match read_config(&layout.config) {
            Ok(config) if config == read => {}
            Ok(config) => {
                read = config.clone();
                sender.send_replace(Arc::new(accept_parameters(&layout, &board, config).await));
            }
            Err(error) => tracing::warn!(error = %error, "keeping the last configuration"),
        }
    }
}

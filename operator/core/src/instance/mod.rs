//! What the operator and the agents tell each other: the configuration of an instance and what it reports.

mod archive;
mod config;
pub mod paths;
mod promise;
mod restore;
mod status;

use serde::{Deserialize, Serialize};

pub use archive::{ArchiveBarrier, ArchiveStatus, EarlyBackup, RestorableWindow, WalSpan};
pub use config::{Bootstrap, HbaEntry, InstanceConfig, RecoveryTarget, ReplicaSourcePolicy, Timings};
pub use promise::{SealReport, SealRequest, Vouch, VouchRequest};
pub use restore::{RestoreAnswer, RestoreQuestion};
pub use status::{
    AppliedQuorum, CopyProgress, DivergentTail, InstanceStatus, Phase, Receiver, SourceReport, Standby, UpstreamSilence,
};

/// Port of the agent's HTTPS API (client certificate required).
pub const AGENT_PORT: u16 = 8443;
/// Port of the plain HTTP probes for the kubelet: `/livez`, `/readyz`, `/startupz`.
pub const PROBE_PORT: u16 = 8080;
/// Common name of the operator's client certificate: only it may seal.
pub const OPERATOR_CN: &str = "pgherd-operator";
/// Role and certificate common name for replication, pg_rewind and base backups.
pub const REPLICATION_ROLE: &str = "pgherd_replication";

/// The body of every error answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// What failed and why.
    pub error: String,
}

//! What the operator remembers of one cluster between reconciliations. Losing it costs time or a needless apply, never
//! safety.

use super::{apply::ApplyMemory, decide::Memory, secrets::SecretsMemory, validate::ValidatedCluster};

/// Everything remembered of one cluster.
#[derive(Debug, Default)]
pub struct ClusterMemory {
    /// Of failure detection and of a failover under way.
    pub decide: Memory,
    /// Of what was applied last.
    pub apply: ApplyMemory,
    /// Of the Secrets.
    pub secrets: SecretsMemory,
    /// The last spec that made sense: a mistake in a newer one must not end the watch over the primary.
    pub last_valid: Option<ValidatedCluster>,
    /// Reconciliations that failed in a row.
    pub failures: u32,
}

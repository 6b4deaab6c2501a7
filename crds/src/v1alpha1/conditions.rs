//! Condition types, after kstatus: `Ready` normal-true, `Reconciling` and `Stalled` abnormal-true.

/// The object is as its spec asks.
pub const READY: &str = "Ready";
/// Work towards the spec is under way.
pub const RECONCILING: &str = "Reconciling";
/// Work cannot go on until somebody changes something.
pub const STALLED: &str = "Stalled";
/// The holder of the current term takes writes.
pub const PRIMARY_AVAILABLE: &str = "PrimaryAvailable";
/// All replicas stream from the primary.
pub const REPLICAS_READY: &str = "ReplicasReady";
/// All instances run with the template and the parameters as they are now.
pub const INSTANCES_CURRENT: &str = "InstancesCurrent";
/// Text sorts as it did when the indexes were built. Only there while it is False.
pub const COLLATIONS_CURRENT: &str = "CollationsCurrent";
/// WAL reaches the object store.
pub const ARCHIVING: &str = "Archiving";
/// The last backup is restorable.
pub const BACKUP_HEALTHY: &str = "BackupHealthy";
/// `spec.suspend` is set.
pub const SUSPENDED: &str = "Suspended";
/// A failover cannot be decided; the message names who is missing.
pub const FAILOVER_BLOCKED: &str = "FailoverBlocked";
/// A backup reached a final, good state.
pub const COMPLETED: &str = "Completed";
/// Retention does its work.
pub const RETENTION_HEALTHY: &str = "RetentionHealthy";
/// The last backup that was restored for a trial is good.
pub const VERIFIED: &str = "Verified";

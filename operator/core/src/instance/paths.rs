//! Where things are in an instance's pod. The operator mounts them, the agent uses them.

/// Mount of the volume.
pub const VOLUME: &str = "/var/lib/pgherd/data";
/// The data directory on it.
pub const PGDATA: &str = "/var/lib/pgherd/data/pgdata";
/// An emptyDir: `bin/pgherd`, `passwd`, the agent's sockets.
pub const RUN: &str = "/run/pgherd";
/// PostgreSQL's unix socket directory (an emptyDir), where psql looks by default.
pub const POSTGRES_SOCKET: &str = "/var/run/postgresql";
/// The ConfigMap with [`super::InstanceConfig`] as `instance.json`.
pub const CONFIG: &str = "/etc/pgherd/config/instance.json";
/// `ca.crt`, `tls.crt`, `tls.key`, `replication.crt`, `replication.key`.
pub const TLS: &str = "/etc/pgherd/tls";
/// Secret `<cluster>-app`: `username`, `password`, `dbname`.
pub const APP: &str = "/etc/pgherd/app";
/// Object store credentials: `accessKeyId`, `secretAccessKey`, optionally `sessionToken`.
pub const STORE: &str = "/etc/pgherd/object-store";
/// CA bundle of the object store: `ca.crt`.
pub const STORE_CA: &str = "/etc/pgherd/object-store-ca";
/// The same two for the store that a new cluster is recovered from.
pub const RECOVERY_STORE: &str = "/etc/pgherd/recovery-store";
/// CA bundle of the recovery store.
pub const RECOVERY_STORE_CA: &str = "/etc/pgherd/recovery-store-ca";
/// Folder of what opens encrypted objects of the store: [`AGE_IDENTITY`].
pub const ENCRYPTION: &str = "/etc/pgherd/encryption";
/// The same for the recovery store.
pub const RECOVERY_ENCRYPTION: &str = "/etc/pgherd/recovery-encryption";
/// Key of the Secret, and file in the folder: lines `AGE-SECRET-KEY-1…`.
pub const AGE_IDENTITY: &str = "identity";

//! The begin of a backup: slot first, then the kind, then the command, up to the end of the checkpoint.

use jiff::Timestamp;
use pgherd_core::{backup::ClusterLocation, lsn::Lsn, timeline::TimelineId};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    BackupError, BackupOptions, BackupPhase, BackupProgress,
    finish::BackupIdentity,
    parent::{BackupKind, IncrementalOptions, Parent, find_parent},
    stream::Stream,
};
use crate::{
    base_backup::{BaseBackup, BaseBackupError, BaseBackupEvent, BaseBackupOptions, Tablespace, estimate_bytes},
    encryption::Keys,
    local::{LocalBackup, LocalBegun, LocalOptions, LocalStart},
    replication::{ReplicationClient, ReplicationError},
    store::ObjectStore,
};

/// A stream that is about to send its first byte, and what keeps its WAL and its parent.
pub(super) struct Source {
    pub(super) stream: Stream,
    pub(super) slot: ReplicationClient,
    pub(super) identity: BackupIdentity,
    pub(super) location: ClusterLocation,
    pub(super) archives: Vec<String>,
    pub(super) kind: BackupKind,
    pub(super) parent: Option<Parent>,
}

impl Source {
    /// Connects, reserves WAL, and has the server begin.
    pub(super) async fn begin(
        options: &BackupOptions,
        keys: &Keys,
        store: &ObjectStore,
        progress: &watch::Sender<BackupProgress>,
    ) -> Result<Self, BackupError> {
        let mut slot = ReplicationClient::connect(&options.connect).await?;
        let system = slot.identify_system().await?;
        let mut location = options.location.clone();
        if location.system_id.is_empty() {
            location.system_id.clone_from(&system.system_id);
        } else if location.system_id != system.system_id {
            return Err(BackupError::WrongSystem { expected: location.system_id, found: system.system_id });
        }
        let mut identity = BackupIdentity {
            id: String::new(),
            cluster: location.cluster.clone(),
            system_id: system.system_id,
            server_version: slot.server_version().await?,
            timeline: system.timeline,
            start_lsn: system.lsn,
            started_at: String::new(),
            wal_segment_bytes: slot.wal_segment_bytes().await?,
            parent: None,
            method: None,
        };
        // The slot is there before the backup begins and goes with its connection: no WAL can vanish meanwhile.
        let name = format!("pgherd_backup_{}", Uuid::new_v4().simple());
        slot.create_physical_slot(&name, true, true).await?;

        progress.send_modify(|progress| progress.phase = BackupPhase::Checkpoint);
        let full = BackupKind::Full(None);
        let (started, kind, parent) = match (&options.incremental, &options.local) {
            // Which blocks changed only the server knows.
            (Some(wanted), _) => begin_incremental(options, keys, store, &location, &identity, wanted).await?,
            (None, None) => (Started::full(options, &location).await?, full, None),
            (None, Some(local)) => {
                (Started::local(options, &location, local, &name, &identity.system_id).await?, full, None)
            }
        };
        let Started { stream, lsn, timeline, tablespaces } = started;
        let now = Timestamp::now();
        identity.id = render_id(now, timeline, lsn);
        (identity.timeline, identity.start_lsn, identity.started_at) = (timeline, lsn, now.to_string());
        identity.method = stream.method().map(str::to_owned);
        identity.parent = parent.as_ref().map(|parent| parent.record.clone());
        let name = |tablespace: &Tablespace| tablespace.oid.map_or_else(|| "base".to_owned(), |oid| oid.to_string());
        let sizes = estimate_bytes(&tablespaces);
        progress.send_modify(|progress| {
            progress.phase = BackupPhase::Streaming;
            progress.bytes_total = sizes;
            progress.backup_id = Some(identity.id.clone());
            progress.start_lsn = Some(lsn);
        });
        let archives = tablespaces.iter().map(name).collect();
        Ok(Self { stream, slot, identity, location, archives, kind, parent })
    }
}

/// A base backup whose checkpoint is done.
struct Started {
    stream: Stream,
    lsn: Lsn,
    timeline: TimelineId,
    tablespaces: Vec<Tablespace>,
}

impl Started {
    async fn full(options: &BackupOptions, location: &ClusterLocation) -> Result<Self, BackupError> {
        let client = ReplicationClient::connect(&options.connect).await?;
        Self::on(client, options, location, false).await
    }

    async fn incremental(
        options: &BackupOptions,
        location: &ClusterLocation,
        manifest: &[u8],
    ) -> Result<Self, BackupError> {
        let mut client = ReplicationClient::connect(&options.connect).await?;
        client.upload_manifest(manifest).await?;
        Self::on(client, options, location, true).await
    }

    async fn local(
        options: &BackupOptions,
        location: &ClusterLocation,
        local: &LocalOptions,
        slot: &str,
        system_id: &str,
    ) -> Result<Self, BackupError> {
        let start = LocalStart {
            connect: &options.connect,
            options: local,
            label: &render_label(location),
            fast_checkpoint: options.fast_checkpoint,
            max_rate: options.max_rate,
            slot,
            system_id,
        };
        let LocalBegun { backup, lsn, timeline, tablespaces } = LocalBackup::start(start).await?;
        Ok(Self { stream: Stream::Local(backup), lsn, timeline, tablespaces })
    }

    async fn on(
        client: ReplicationClient,
        options: &BackupOptions,
        location: &ClusterLocation,
        incremental: bool,
    ) -> Result<Self, BackupError> {
        let wire_options = BaseBackupOptions {
            label: render_label(location),
            fast_checkpoint: options.fast_checkpoint,
            max_rate: options.max_rate,
            manifest: true,
            incremental,
        };
        let mut backup = BaseBackup::start(client, &wire_options).await?;
        match backup.next().await? {
            BaseBackupEvent::Start { lsn, timeline, tablespaces } => {
                Ok(Self { stream: Stream::Wire(Box::new(backup)), lsn, timeline, tablespaces })
            }
            _ => Err(ReplicationError::Protocol("a base backup without a start".to_owned()).into()),
        }
    }
}

fn render_label(location: &ClusterLocation) -> String {
    format!("pgherd backup of {}", location.cluster)
}

/// An incremental backup, or a full one in the same run where the catalogue or the server says that it cannot be.
async fn begin_incremental(
    options: &BackupOptions,
    keys: &Keys,
    store: &ObjectStore,
    location: &ClusterLocation,
    identity: &BackupIdentity,
    wanted: &IncrementalOptions,
) -> Result<(Started, BackupKind, Option<Parent>), BackupError> {
    let reason = match find_parent(store, keys, location, identity, wanted).await {
        Err(reason) => reason,
        Ok((parent, manifest)) => match begin_on(&parent, options, location, &manifest).await {
            Ok(started) if started.timeline == identity.timeline && started.tablespaces.len() <= 1 => {
                return Ok((started, parent.kind(), Some(parent)));
            }
            started => {
                parent.lock.release().await;
                explain_full(started)?
            }
        },
    };
    tracing::info!(reason, "a full backup instead of an incremental one");
    Ok((Started::full(options, location).await?, BackupKind::Full(Some(reason)), None))
}

/// A checkpoint may take longer than a lock lasts.
async fn begin_on(
    parent: &Parent,
    options: &BackupOptions,
    location: &ClusterLocation,
    manifest: &[u8],
) -> Result<Started, BackupError> {
    tokio::select! {
        started = Started::incremental(options, location, manifest) => started,
        never = parent.lock.renew() => match never {},
    }
}

/// Why what was begun as an incremental backup has to be a full one. What the server refuses before it has sent anything (no
/// summaries of the WAL since the parent, a standby without a checkpoint since) stands in the way of this kind alone; if it
/// does not, the full backup fails with it too. A lost connection is no such thing.
fn explain_full(started: Result<Started, BackupError>) -> Result<String, BackupError> {
    match started {
        Ok(started) if started.tablespaces.len() > 1 => Ok("the source has tablespaces".to_owned()),
        Ok(started) => Ok(format!("the source went to timeline {}", started.timeline.0)),
        Err(
            BackupError::Replication(ReplicationError::Server(error))
            | BackupError::BaseBackup(BaseBackupError::Replication(ReplicationError::Server(error))),
        ) if error.severity == "ERROR" => Ok(format!("the server says: {}", error.message)),
        Err(error) => Err(error),
    }
}

/// `<UTC yyyymmddThhmmssZ>-<timeline>-<start LSN with a dash>`.
fn render_id(started: Timestamp, timeline: TimelineId, lsn: Lsn) -> String {
    let lsn = lsn.to_string().replace('/', "-");
    format!("{}-{timeline}-{lsn}", started.strftime("%Y%m%dT%H%M%SZ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_when_and_from_where() {
        let started: Timestamp = "2026-11-22T02:03:04.567Z".parse().unwrap();
        assert_eq!(render_id(started, TimelineId(18), Lsn(0x16_B374_D848)), "20261122T020304Z-00000012-16-B374D848");
    }

    #[test]
    fn only_what_the_server_refuses_makes_a_full_backup_of_it() {
        let server = |severity: &str| crate::replication::ServerError {
            severity: severity.to_owned(),
            code: "55000".to_owned(),
            message: "WAL summaries are required".to_owned(),
            detail: None,
            hint: None,
        };
        let refused = BackupError::Replication(server("ERROR").into());
        assert_eq!(explain_full(Err(refused)).unwrap(), "the server says: WAL summaries are required");
        let refused = BackupError::BaseBackup(BaseBackupError::Replication(server("ERROR").into()));
        assert!(explain_full(Err(refused)).is_ok());
        assert!(explain_full(Err(BackupError::Replication(server("FATAL").into()))).is_err(), "it shuts down");
        let lost = BackupError::Replication(ReplicationError::UnexpectedEnd("a base backup"));
        assert!(explain_full(Err(lost)).is_err());
    }
}

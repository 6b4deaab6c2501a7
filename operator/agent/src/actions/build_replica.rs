//! A new replica's data directory: from a backup where its WAL reaches the primary's slot without a hole, else from the
//! primary. The slot comes first, so that nothing is removed while the copy runs. The choice and its numbers are shown.

use std::time::Duration;

use pgherd_core::{
    backup::{BackupLocation, BackupRecord, ClusterLocation},
    instance::{CopyProgress, Phase, REPLICATION_ROLE, ReplicaSourcePolicy, SourceReport},
    lsn::Lsn,
    register::Register,
    replica_source::{CostLimits, Source, SourceQuestion, choose_backup, confirm_archive},
};
use pgherd_stream::{
    catalogue::list_readable,
    clone::clone_from_instance,
    replication::ConnectOptions,
    restore::{BackupHold, RestoreProgress, RestoreSettings, restore_backup_with},
    store::ObjectStore,
    tls::PostgresTls,
    wal::missing_segments,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    ActionError,
    data_dir::{self, Purpose},
    describe_chain, follow,
};
use crate::{
    agent::Agent,
    layout::slot_name,
    local_state::LocalState,
    postgres::{
        binaries::{Binaries, ProgramError},
        upstream::{Upstream, UpstreamState},
    },
};

/// A restore waits for so long for a store that is away: then an instance is copied.
const STORE_PATIENCE: Duration = Duration::from_secs(120);

/// Fills the data directory to follow `pod`.
///
/// # Errors
/// [`ActionError`]; what was copied is then thrown away at the next try.
pub async fn build(agent: &Agent, register: &Register, pod: &str) -> Result<(), ActionError> {
    agent.board.say(Phase::Cloning, format!("asking {pod} for a copy"));
    let upstream = follow::locate(agent, pod);
    let (session, theirs) = follow::meet_primary(agent, register, &upstream).await?;
    let slot_lsn = session.ensure_slot(&slot_name(&agent.identity.pod)).await?;
    let again = data_dir::observe_reason(&agent.layout);
    data_dir::clear(&agent.layout)?;
    data_dir::mark_because(&agent.layout, Purpose::Copy, again.clone())?;
    let started = Instant::now();
    let mut report = match choose_source(agent, &theirs, slot_lsn).await {
        Ok(chosen) => restore_or_fall_back(agent, &upstream, chosen).await?,
        Err(reason) => copy_instance(agent, &upstream, reason).await?,
    };
    if let Some(again) = again {
        report.reason = format!("{again}; {}", report.reason);
    }
    report.took_ms = u64::try_from(started.elapsed().as_millis()).ok();
    tracing::info!(source = %report.source, from = %report.from, reason = %report.reason, "the data directory was made");
    data_dir::complete(agent, &LocalState::new_member(), &theirs.system_id)?;
    agent.set_diverged(false);
    agent.streaming.note_streaming();
    agent.board.update(|status| {
        status.source = Some(report);
        status.progress = None;
    });
    Ok(())
}

/// A backup that was chosen.
struct Chosen {
    store: ObjectStore,
    location: BackupLocation,
    report: SourceReport,
}

/// A usable backup, or the sentence that says why an instance is copied.
async fn choose_source(agent: &Agent, theirs: &UpstreamState, slot_lsn: Lsn) -> Result<Chosen, String> {
    let config = agent.config();
    let Some(store_config) = &config.store else { return Err("no object store is configured".to_owned()) };
    if config.replica_source == ReplicaSourcePolicy::Instance {
        return Err("replicaSource is Instance".to_owned());
    }
    let location = ClusterLocation {
        store: store_config.clone(),
        cluster: config.cluster.clone(),
        system_id: theirs.system_id.clone(),
    };
    let store = ObjectStore::connect(store_config).await.map_err(|error| describe_chain(&error))?;
    // An instance can be copied as well: nobody waits for a store that is away.
    let asked = store.with_short_patience();
    let found = list_readable(&asked, &location).await.map_err(|error| describe_chain(&error))?;
    found.skip_unreadable().map_err(|error| describe_chain(&error))?;
    let question = SourceQuestion {
        backups: &found.backups,
        system_id: &theirs.system_id,
        server_version: theirs.server_version,
        history: &theirs.history,
        primary_lsn: theirs.lsn,
        policy: config.replica_source,
        limits: CostLimits::default(),
    };
    let chosen = confirm(&asked, &location, &question, slot_lsn).await?;
    match chosen {
        Source::Instance { reason } => Err(reason),
        Source::Backup { id, reason, wal_bytes, copy_bytes } => {
            let report = SourceReport {
                source: "backup".to_owned(),
                from: id.clone(),
                reason,
                wal_bytes: Some(wal_bytes),
                copy_bytes: Some(copy_bytes),
                ..SourceReport::default()
            };
            Ok(Chosen { store, location: BackupLocation { cluster: location, backup_id: id }, report })
        }
    }
}

/// Proves that the archive reaches from the backup's start to the slot.
async fn confirm(
    store: &ObjectStore,
    location: &ClusterLocation,
    question: &SourceQuestion<'_>,
    slot_lsn: Lsn,
) -> Result<Source, String> {
    let chosen = choose_backup(question);
    let Source::Backup { id, .. } = &chosen else { return Ok(chosen) };
    let find = |record: &&BackupRecord| record.id == *id;
    let record = question.backups.iter().find(find).ok_or_else(|| format!("backup {id} is gone"))?;
    // The upstream keeps the slot's whole segment, so that one is streamed; the archive need not have it yet.
    let kept_from = Lsn(slot_lsn.0 - slot_lsn.0.checked_rem(record.wal_segment_bytes).unwrap_or_default());
    let missing =
        missing_segments(store, location, question.history, record.start_lsn, kept_from, record.wal_segment_bytes)
            .await;
    Ok(confirm_archive(chosen, &missing.map_err(|error| describe_chain(&error))?))
}

async fn restore_or_fall_back(agent: &Agent, upstream: &Upstream, chosen: Chosen) -> Result<SourceReport, ActionError> {
    let Chosen { store, location, report } = chosen;
    agent.board.say(Phase::Restoring, format!("restoring backup {}: {}", report.from, report.reason));
    let (sender, cancel) = (watch_progress(agent), CancellationToken::new());
    let _cancelled_when_dropped = cancel.clone().drop_guard();
    let settings = build_restore_settings()?;
    let store = store.with_long_patience(STORE_PATIENCE, &cancel);
    // Retention leaves it, and the WAL between it and the slot, until this replica streams. Without it that may be gone before it is
    // replayed; it need not be.
    let hold = BackupHold::take(&store, &location).await;
    let hold = hold.inspect_err(|error| tracing::warn!(error = %describe_chain(error), "the backup is not held")).ok();
    match restore_backup_with(&store, &location, &agent.layout.pgdata, &settings, sender, cancel).await {
        Ok(_) => {
            agent.hold_backup(hold);
            Ok(report)
        }
        Err(error) => {
            let why = describe_chain(&error);
            tracing::warn!(why, backup = %report.from, "the backup could not be restored; copying an instance instead");
            data_dir::clear(&agent.layout)?;
            copy_instance(agent, upstream, format!("backup {} could not be restored: {why}", report.from)).await
        }
    }
}

/// How an instance restores: a chain of incremental backups by the program of its own image.
///
/// # Errors
/// When the image has no PostgreSQL.
pub fn build_restore_settings() -> Result<RestoreSettings, ProgramError> {
    let combine = Some(Binaries::observe()?.program("pg_combinebackup"));
    Ok(RestoreSettings { combine, ..RestoreSettings::default() })
}

async fn copy_instance(agent: &Agent, upstream: &Upstream, reason: String) -> Result<SourceReport, ActionError> {
    agent.board.say(Phase::Cloning, format!("copying {}: {reason}", upstream.pod));
    let (sender, cancel) = (watch_progress(agent), CancellationToken::new());
    let _cancelled_when_dropped = cancel.clone().drop_guard();
    let outcome =
        clone_from_instance(build_connect_options(agent, upstream), &agent.layout.pgdata, sender, cancel).await;
    let outcome = outcome
        .map_err(|error| ActionError::Copy { what: "failed to copy the primary", why: describe_chain(&error) })?;
    Ok(SourceReport {
        source: "instance".to_owned(),
        from: upstream.pod.clone(),
        reason,
        copy_bytes: Some(outcome.bytes),
        ..SourceReport::default()
    })
}

fn build_connect_options(agent: &Agent, upstream: &Upstream) -> ConnectOptions {
    let tls = agent.layout.tls();
    ConnectOptions {
        host: upstream.host.clone(),
        port: upstream.port,
        server_name: upstream.host.clone(),
        user: REPLICATION_ROLE.to_owned(),
        database: None,
        tls: Some(PostgresTls {
            ca_file: tls.join("ca.crt"),
            cert_file: Some(tls.join("replication.crt")),
            key_file: Some(tls.join("replication.key")),
        }),
        password_file: None,
        application_name: format!("pgherd_clone_{}", agent.identity.pod),
        connect_timeout: Duration::from_secs(5),
    }
}

/// Shows a copy's progress for as long as the sender lives.
pub fn watch_progress(agent: &Agent) -> watch::Sender<RestoreProgress> {
    let (sender, mut receiver) = watch::channel(RestoreProgress::default());
    let board = agent.board.clone();
    drop(tokio::spawn(async move {
        while receiver.changed().await.is_ok() {
            let progress = receiver.borrow_and_update().clone();
            board.update(|status| {
                status.progress =
                    Some(CopyProgress { bytes_done: progress.bytes_done, bytes_total: progress.bytes_total });
            });
        }
        board.update(|status| status.progress = None);
    }));
    sender
}

//! The data directory that a term begins with: by initdb, or by a restored backup that is recovered to its target. Runs only
//! while the register says that this pod has to make one, and proves that by a compare-and-swap before it touches the
//! volume.

use std::{ffi::OsStr, time::Duration};

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupLocation, BackupRecord, StoreConfig},
    instance::{Bootstrap, Phase, RecoveryTarget, SourceReport},
    register::Register,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    catalogue::resolve,
    import::import_archive,
    proof::{ProofError, plan_recovery, read_history},
    restore::{BackupHold, restore_backup_with},
    store::{LONG_PATIENCE, ObjectStore},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ActionError, build_replica,
    data_dir::{self, Purpose},
    describe_chain, last_words, render_options, restore,
    subscriptions::{disable_subscriptions, render_disabled},
};
use crate::{
    agent::{Agent, RecoverySource},
    clock::Boottime,
    lease::{self, Tenure},
    local_state::LocalState,
    postgres::{
        binaries::Binaries,
        config::{Role, apply_start_config},
        control::observe_control,
        process::{ProcessState, StopMode},
        sql::{SUPERUSER, SqlError},
    },
};

/// A standby that is in the way is stopped cleanly within this time, or killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the data directory. The renewals go on meanwhile, with the disk's proof alone.
///
/// # Errors
/// [`ActionError`]; the next try starts over.
pub async fn bootstrap(agent: &Agent, register: &Register, source: Bootstrap) -> Result<(), ActionError> {
    lease::renew(agent, register.term).await?;
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(u64::MAX) }));
    agent.server.stop(StopMode::Fast, STOP_PATIENCE).await;
    agent.set_role(None);
    data_dir::clear(&agent.layout)?;
    data_dir::mark(&agent.layout, Purpose::Bootstrap)?;
    let started = Instant::now();
    let timeline = register.restore_of_term().map(|order| order.timeline);
    let mut report = match source {
        Bootstrap::Initdb => initdb(agent).await?,
        Bootstrap::Import { store, key, target } => {
            let outcome = import(agent, &store, &key, target).await;
            agent.set_role(None);
            outcome?
        }
        Bootstrap::Recovery { from, target } => {
            let outcome = recover(agent, &from, target, timeline).await;
            agent.set_recovery_source(None);
            agent.set_role(None);
            outcome?
        }
    };
    report.took_ms = u64::try_from(started.elapsed().as_millis()).ok();
    let control = observe_control(&Binaries::observe()?, &agent.layout.pgdata).await?;
    let local =
        LocalState { term: register.term, was_primary: true, promoted_term: register.term, ..LocalState::new_member() };
    data_dir::complete(agent, &local, &control.system_id)?;
    agent.board.update(|status| status.source = Some(report));
    Ok(())
}

async fn initdb(agent: &Agent) -> Result<SourceReport, ActionError> {
    agent.board.say(Phase::Initializing, "initdb");
    let pgdata = format!("--pgdata={}", agent.layout.pgdata.display());
    let args = [
        pgdata.as_str(),
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
        "--auth-local=peer",
        "--auth-host=reject",
    ];
    Binaries::observe()?.run("initdb", &args.map(OsStr::new), &[]).await?;
    let reason = "a new cluster begins empty".to_owned();
    Ok(SourceReport { source: "initdb".to_owned(), from: String::new(), reason, ..SourceReport::default() })
}

async fn recover(
    agent: &Agent,
    from: &BackupLocation,
    target: RecoveryTarget,
    timeline: Option<TimelineId>,
) -> Result<SourceReport, ActionError> {
    agent.board.say(Phase::Restoring, "looking for the backup");
    let unplanned = |what| move |why: String| ActionError::Plan { what, why };
    let failed = |what| move |why: String| ActionError::Bootstrap { what, why };
    let store = ObjectStore::connect(&from.cluster.store)
        .await
        .map_err(|error| unplanned("failed to reach the object store")(describe_chain(&error)))?;
    let (location, record, history) = plan(&store, from, &target, timeline)
        .await
        .map_err(|error| unplanned("this recovery is not possible")(describe_chain(&error)))?;
    let follow = history.as_ref().map(|history| history.timeline);
    agent.board.say(Phase::Restoring, format!("restoring backup {}", record.id));
    let cancel = CancellationToken::new();
    let _cancelled_when_dropped = cancel.clone().drop_guard();
    let store = store.with_long_patience(LONG_PATIENCE, &cancel);
    let (settings, progress) = (build_replica::build_restore_settings()?, build_replica::watch_progress(agent));
    // The WAL behind the backup is read after the backup: retention leaves both for as long as this is held.
    let hold = BackupHold::take(&store, &location).await;
    let hold = hold.map_err(|error| failed("failed to restore the backup")(describe_chain(&error)))?;
    let outcome = restore_backup_with(&store, &location, &agent.layout.pgdata, &settings, progress, cancel).await;
    let outcome = outcome.map_err(|error| failed("failed to restore the backup")(describe_chain(&error)))?;
    agent.set_recovery_source(Some(RecoverySource { location: location.cluster.clone(), history }));
    let reason =
        format!("recovery of {} from backup {} to {}", location.cluster.cluster, record.id, name_target(&target));
    let is_copy = timeline.is_none();
    let disabled = run_recovery(agent, Role::Recovery { target, archived: true, timeline: follow }, is_copy).await?;
    hold.release().await;
    if timeline.is_some() {
        restore::forget_partial(&agent.layout.pgdata.join("pg_wal"));
    }
    Ok(SourceReport {
        source: "recovery".to_owned(),
        from: record.id,
        reason: reason + &render_disabled(&disabled),
        copy_bytes: Some(outcome.bytes),
        last_transaction: agent.server.log().last_transaction(),
        ..SourceReport::default()
    })
}

/// With what it begins, and along which history; None up to the end of the backup. A restore in place, which is told its timeline, was
/// looked at before the primary stopped for it.
async fn plan(
    store: &ObjectStore,
    from: &BackupLocation,
    target: &RecoveryTarget,
    timeline: Option<TimelineId>,
) -> Result<(BackupLocation, BackupRecord, Option<TimelineHistory>), ProofError> {
    let Some(timeline) = timeline else {
        return plan_recovery(store, from, target, false, Timestamp::now()).await;
    };
    let (location, record) = resolve(store, from).await?;
    let history = read_history(store, &location.cluster, timeline).await?;
    Ok((location, record, Some(history)))
}

async fn import(
    agent: &Agent,
    store: &StoreConfig,
    key: &str,
    target: RecoveryTarget,
) -> Result<SourceReport, ActionError> {
    agent.board.say(Phase::Restoring, format!("importing {key}"));
    let failed = |why: String| ActionError::Bootstrap { what: "failed to import the archive", why };
    let store = ObjectStore::connect(store).await.map_err(|error| failed(describe_chain(&error)))?;
    let cancel = CancellationToken::new();
    let _cancelled_when_dropped = cancel.clone().drop_guard();
    let store = store.with_long_patience(LONG_PATIENCE, &cancel);
    let progress = build_replica::watch_progress(agent);
    let outcome = import_archive(&store, key, &agent.layout.pgdata, progress, cancel).await;
    let outcome = outcome.map_err(|error| failed(describe_chain(&error)))?;
    validate_version(agent).await?;
    let disabled = run_recovery(agent, Role::Recovery { target, archived: false, timeline: None }, true).await?;
    let checked = if outcome.verified { "checked against its manifest" } else { "without a manifest to check against" };
    Ok(SourceReport {
        source: "import".to_owned(),
        from: key.to_owned(),
        reason: format!("import of the archive {key}, {checked}{}", render_disabled(&disabled)),
        copy_bytes: Some(outcome.bytes),
        last_transaction: agent.server.log().last_transaction(),
        ..SourceReport::default()
    })
}

/// The data must be of the major version that the image runs.
async fn validate_version(agent: &Agent) -> Result<(), ActionError> {
    let path = agent.layout.pgdata.join("PG_VERSION");
    let failed = |why: String| ActionError::Bootstrap { what: "failed to import the archive", why };
    let data = std::fs::read_to_string(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let server = Binaries::observe()?.run("postgres", &[OsStr::new("--version")], &[]).await?;
    let runs = server.split_whitespace().nth(2).and_then(|version| version.split('.').next()).unwrap_or_default();
    if data.trim() == runs {
        return Ok(());
    }
    Err(failed(format!(
        "it is of PostgreSQL {}, and the image runs {runs}: set spec.version to {}",
        data.trim(),
        data.trim()
    )))
}

fn name_target(target: &RecoveryTarget) -> String {
    match target {
        RecoveryTarget::Latest => "the end of the archive".to_owned(),
        RecoveryTarget::Immediate => "the end of the backup".to_owned(),
        RecoveryTarget::Time(time) => time.clone(),
        RecoveryTarget::Lsn(lsn) => lsn.to_string(),
        RecoveryTarget::Name(name) => format!("the restore point \"{name}\""),
    }
}

/// Runs the server until it has promoted itself at the target, then stops it. Nobody can connect from outside.
///
/// A server that ends is started once more: where an unlogged index was built while the backup was made, its files are in the copy
/// but not the fork that they are reset from, which comes by WAL, and PostgreSQL ends at the end of recovery because the files are there
/// ("File exists"). When it starts again it removes them first (`ResetUnloggedRelations`).
///
/// No subscription runs meanwhile. Those of a copy, which its source goes on to use, are disabled, and their names returned.
async fn run_recovery(agent: &Agent, role: Role, is_copy: bool) -> Result<Vec<String>, ActionError> {
    apply_start_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)?;
    agent.set_role(Some(role));
    agent.board.say(Phase::Starting, "replaying WAL");
    if let Err(first) = replay(agent).await {
        tracing::warn!(error = %first, "started once more");
        replay(agent).await?;
    }
    let disabled = if is_copy { disable_subscriptions(&agent.layout).await } else { Ok(Vec::new()) };
    agent.server.stop(StopMode::Fast, Duration::from_secs(60)).await;
    Ok(disabled?)
}

/// With hot_standby off no parameter of the source's primary stops the replay, but a transaction that was prepared needs its place. The WAL
/// may raise what pg_control says: then the second start has it.
async fn replay(agent: &Agent) -> Result<(), ActionError> {
    let binaries = Binaries::observe()?;
    let floor = observe_control(&binaries, &agent.layout.pgdata).await?.floor;
    let mut options = render_options(&floor.above_configured(&agent.config().parameters));
    options.extend(["listen_addresses=", "hot_standby=off"].map(str::to_owned));
    agent.server.start(&binaries, &options).await?;
    loop {
        if let ProcessState::Died(status) = agent.server.state().await {
            agent.server.acknowledge_death().await;
            let said = last_words(&agent.server);
            let why = format!("PostgreSQL ended ({status}): {said}");
            return Err(ActionError::Bootstrap { what: "recovery failed", why });
        }
        match agent.sample_now().await {
            Ok(sample) if !sample.in_recovery => return Ok(()),
            Ok(_) => {}
            Err(error) => refuse_refusal(agent, &error).await?,
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// A session that the server refuses while it recovers is waited for; one that it refuses for what its data is never comes.
async fn refuse_refusal(agent: &Agent, error: &SqlError) -> Result<(), ActionError> {
    let Some(said) = error.refusal() else { return Ok(()) };
    agent.server.stop(StopMode::Fast, Duration::from_secs(60)).await;
    let why =
        format!("PostgreSQL lets the user {SUPERUSER} not into the database postgres, which pgherd needs: {said}");
    Err(ActionError::Bootstrap { what: "recovery failed", why })
}

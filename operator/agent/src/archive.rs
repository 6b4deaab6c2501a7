//! The WAL archive's local end: a unix socket on which archive_command and restore_command ask the agent, which alone has
//! the store's credentials. Only a primary archives; a standby never does.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pgherd_core::{
    backup::{ClusterLocation, StoreConfig},
    lsn::Lsn,
    timeline::TimelineId,
};
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, FetchOutcome},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    actions::describe_chain,
    agent::Agent,
    postgres::{config::Role, process::ARCHIVER_GRACE, wal_dir::parse_segment_name},
};

/// One file must be through in this time; PostgreSQL asks again.
const PATIENCE: Duration = Duration::from_secs(120);
/// A standby that found the store failing leaves it alone for so long: it asks for several files in a row at its start.
const STANDBY_PAUSE: Duration = Duration::from_secs(10);
/// PostgreSQL would look into the archive before it streams. The primary has what a replica lacks in nearly every case, and
/// commits may wait for that replica.
const STREAM_FIRST: Duration = Duration::from_secs(3);
/// A request is one short line.
const MAX_REQUEST: u64 = 4096;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Archive a file of pg_wal.
    Archive {
        /// Its path, relative to PGDATA (`%p`).
        path: String,
        /// Its name (`%f`).
        name: String,
    },
    /// Fetch a file of the archive.
    Restore {
        /// Its name (`%f`).
        name: String,
        /// Where to put it, relative to PGDATA (`%p`).
        path: String,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Done,
    /// The archive surely has no such file.
    Absent,
    /// It is not known, or did not work; try again later.
    Failed(String),
    /// The server stops and does not wait for this: do not try again.
    Stopping,
}

/// The store's client, kept as long as its configuration stands.
type Cached = Mutex<Option<(StoreConfig, Arc<ObjectStore>)>>;

/// What the conversations share.
#[derive(Default)]
struct Shared {
    cached: Cached,
    /// When a standby last found the store failing.
    failed_at: Mutex<Option<Instant>>,
}

/// Brings the history of the primary's timeline into the archive, again and again until it is there: PostgreSQL archives
/// it once, and not at all where the store was configured later. Never ends.
pub async fn keep_history(agent: Arc<Agent>) {
    let cached: Cached = Mutex::new(None);
    let mut archived = None;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let status = agent.board.status();
        let Some(timeline) = status.history.filter(|_| status.is_primary).map(|history| history.timeline) else {
            continue;
        };
        let name = format!("{timeline}.history");
        if timeline.0 < 2 || archived.as_ref() == Some(&name) || agent.config().store.is_none() {
            continue;
        }
        match Box::pin(archive(&agent, &cached, &format!("pg_wal/{name}"), &name)).await {
            Answer::Failed(error) => {
                tracing::warn!(file = %name, error = %error, "the timeline's history is not in the archive yet")
            }
            _ => archived = Some(name),
        }
    }
}

/// Serves the socket; never ends.
pub async fn serve(agent: Arc<Agent>) {
    remove_partial(&agent.layout.pgdata.join("pg_wal"));
    let shared = Arc::new(Shared::default());
    loop {
        match listen(&agent.layout.agent_socket()) {
            Ok(listener) => accept(&agent, &shared, &listener).await,
            Err(error) => tracing::error!(error = %error, "the archive socket can't be opened"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What an earlier process was fetching when it died.
fn remove_partial(pg_wal: &Path) {
    let files = fs::read_dir(pg_wal).into_iter().flatten().flatten();
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(wal::PARTIAL_PREFIX)) {
        if let Err(error) = fs::remove_file(file.path()) {
            tracing::warn!(file = %file.path().display(), error = %error, "what is left of a fetch can't be removed");
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

async fn accept(agent: &Arc<Agent>, shared: &Arc<Shared>, listener: &UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let (agent, shared) = (Arc::clone(agent), Arc::clone(shared));
        drop(tokio::spawn(async move {
            if let Err(error) = converse(&agent, &shared, stream).await {
                tracing::debug!(error = %error, "an archive client went away");
            }
        }));
    }
}

async fn converse(agent: &Agent, shared: &Shared, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    tokio::io::AsyncReadExt::take(BufReader::new(read), MAX_REQUEST).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let archives = matches!(request, Request::Archive { .. });
            tokio::select! {
                done = timeout(PATIENCE, Box::pin(handle(agent, shared, request))) => {
                    done.unwrap_or_else(|_| Answer::Failed("the object store did not answer in time".to_owned()))
                }
                () = await_stopping(agent), if archives => Answer::Stopping,
            }
        }
        Err(error) => Answer::Failed(format!("malformed request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Returns once a clean stop has waited long enough for the archive.
async fn await_stopping(agent: &Agent) {
    let mut stopping = agent.stopping.subscribe();
    loop {
        let since = *stopping.borrow_and_update();
        let grace = async {
            match since {
                Some(since) => tokio::time::sleep_until(since + ARCHIVER_GRACE).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = grace => return,
            changed = stopping.changed() => if changed.is_err() { return },
        }
    }
}

async fn handle(agent: &Agent, shared: &Shared, request: Request) -> Answer {
    match request {
        Request::Archive { path, name } => {
            let answer = archive(agent, &shared.cached, &path, &name).await;
            note(agent, &name, &answer);
            answer
        }
        Request::Restore { name, path } => {
            let Some(dest) = resolve(agent, &path) else { return Answer::Failed(format!("{path} is not in pg_wal")) };
            match agent.recovery_source() {
                Some(source) => fetch(&source, &shared.cached, &dest, &name, ObjectStore::clone).await,
                None => tokio::select! {
                    answer = fetch_for_standby(agent, shared, &name, &dest) => answer,
                    // Nobody's WAL is wanted any more, and an election waits for this server to replay what it has.
                    () = agent.await_detached() => Answer::Failed("this standby follows nobody at present".to_owned()),
                },
            }
        }
    }
}

/// A standby has another source of WAL, the primary, to which PostgreSQL goes on as soon as this one has failed.
async fn fetch_for_standby(agent: &Agent, shared: &Shared, name: &str, dest: &Path) -> Answer {
    if is_from_the_future(agent, name) {
        return Answer::Absent;
    }
    if agent.has_joined_within(STREAM_FIRST) {
        return Answer::Failed("the primary is asked first".to_owned());
    }
    let Some(location) = own_location(agent) else {
        return Answer::Failed("no object store is configured, or the system identifier is not known yet".to_owned());
    };
    let failed_before = shared.failed_at.lock().await.is_some_and(|at| at.elapsed() < STANDBY_PAUSE);
    if failed_before {
        return Answer::Failed("the object store failed a moment ago".to_owned());
    }
    let answer = fetch(&location, &shared.cached, dest, name, ObjectStore::with_short_patience).await;
    *shared.failed_at.lock().await = matches!(answer, Answer::Failed(_)).then(Instant::now);
    answer
}

/// Where a segment ends; none for other files.
fn segment_end(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let (_, number) = parse_segment_name(name, segment_bytes)?;
    number.checked_add(1)?.checked_mul(segment_bytes).map(Lsn)
}

/// Shows how the archiver fares.
fn note(agent: &Agent, name: &str, answer: &Answer) {
    let end = agent.sample().and_then(|sample| segment_end(name, sample.segment_bytes));
    agent.board.update(|status| match answer {
        Answer::Done => {
            status.archive.last_archived = Some(name.to_owned());
            status.archive.last_archived_lsn = end.or(status.archive.last_archived_lsn);
            status.archive.last_archived_at_ms = Some(jiff::Timestamp::now().as_millisecond());
            status.archive.last_error = None;
        }
        Answer::Failed(error) => {
            status.archive.last_error = Some(error.clone());
            status.archive.last_failed_at_ms = Some(jiff::Timestamp::now().as_millisecond());
        }
        Answer::Absent | Answer::Stopping => {}
    });
}

async fn archive(agent: &Agent, cached: &Cached, path: &str, name: &str) -> Answer {
    // A standby that is being promoted leads its term already, and its first file is the new timeline's history.
    let serves = matches!(agent.role(), Some(Role::Primary { .. } | Role::Standby { .. }));
    if !serves || agent.led_term().is_none() {
        return Answer::Failed("only the primary archives".to_owned());
    }
    let prepared = match own_location(agent) {
        Some(location) => connect(cached, &location.store).await.map(|store| (store, location)),
        None => Err("no object store is configured, or the system identifier is not known yet".to_owned()),
    };
    let (store, location) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Answer::Failed(error),
    };
    let Some(file) = resolve(agent, path) else { return Answer::Failed(format!("{path} is not in pg_wal")) };
    match wal::push(&store, &location, &file, name).await {
        Ok(_) => Answer::Done,
        Err(error) => {
            let text = describe_chain(&error);
            tracing::warn!(file = name, error = %text, "archiving failed; PostgreSQL tries again");
            // The next try reads the credentials anew.
            *cached.lock().await = None;
            Answer::Failed(text)
        }
    }
}

async fn fetch(
    location: &ClusterLocation,
    cached: &Cached,
    dest: &Path,
    name: &str,
    patience: fn(&ObjectStore) -> ObjectStore,
) -> Answer {
    let store = match connect(cached, &location.store).await {
        Ok(store) => patience(&store),
        Err(error) => return Answer::Failed(error),
    };
    match wal::fetch(&store, location, name, dest).await {
        Ok(FetchOutcome::Fetched) => Answer::Done,
        Ok(FetchOutcome::Absent) => Answer::Absent,
        Err(error) => {
            *cached.lock().await = None;
            Answer::Failed(describe_chain(&error))
        }
    }
}

/// A history above the register's timeline is from a promotion that the register does not know (of another cluster in the
/// same place, or of one that was undone): a standby that followed it would leave the cluster.
fn is_from_the_future(agent: &Agent, name: &str) -> bool {
    let known = agent.register.borrow().as_ref().and_then(|seen| seen.lease.register.timeline);
    let named =
        name.strip_suffix(".history").and_then(|timeline| u32::from_str_radix(timeline, 16).ok()).map(TimelineId);
    matches!((named, known), (Some(named), Some(known)) if named > known)
}

/// Where this cluster's own archive is.
#[must_use]
pub fn own_location(agent: &Agent) -> Option<ClusterLocation> {
    let config = agent.config();
    let of_register = agent.register.borrow().as_ref().and_then(|seen| seen.lease.register.system_id.clone());
    let system_id = of_register.or_else(|| agent.board.status().system_id)?;
    Some(ClusterLocation { store: config.store.clone()?, cluster: config.cluster.clone(), system_id })
}

async fn connect(cached: &Cached, config: &StoreConfig) -> Result<Arc<ObjectStore>, String> {
    let mut cached = cached.lock().await;
    if let Some((of, store)) = cached.as_ref()
        && of == config
    {
        return Ok(Arc::clone(store));
    }
    let store = Arc::new(ObjectStore::connect(config).await.map_err(|error| describe_chain(&error))?);
    *cached = Some((config.clone(), Arc::clone(&store)));
    Ok(store)
}

/// The absolute path of a file of pg_wal; None for anything that leads elsewhere.
fn resolve(agent: &Agent, path: &str) -> Option<PathBuf> {
    resolve_in(&agent.layout.pgdata, Path::new(path))
}

fn resolve_in(pgdata: &Path, path: &Path) -> Option<PathBuf> {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    (plain && path.starts_with("pg_wal")).then(|| pgdata.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_ends_where_the_next_one_begins() {
        let end = |name: &str| segment_end(name, 16 << 20);
        assert_eq!(end("0000000200000001000000FF"), Some(Lsn(0x2_0000_0000)));
        assert_eq!(end("00000002.history"), None);
    }

    #[test]
    fn only_files_of_pg_wal_are_touched() {
        let pgdata = Path::new("/data");
        assert_eq!(resolve_in(pgdata, Path::new("pg_wal/RECOVERYXLOG")), Some("/data/pg_wal/RECOVERYXLOG".into()));
        for path in ["/etc/passwd", "pg_wal/../pg_hba.conf", "../x", "base/1", "", "./pg_wal/x"] {
            assert_eq!(resolve_in(pgdata, Path::new(path)), None, "{path}");
        }
    }
}

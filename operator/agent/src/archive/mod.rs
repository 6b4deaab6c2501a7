//! The WAL archive's local end: a unix socket on which archive_command and restore_command ask the agent, which alone has
//! the store's credentials. Only a primary archives; a standby never does.

mod ahead;
mod fetch;
mod push;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pgherd_core::backup::{ClusterLocation, StoreConfig};
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, PushOutcome, WalError},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Mutex,
    time::{Instant, timeout},
};

use self::ahead::Ahead;
pub use self::push::keep_history;
use crate::{actions::describe_chain, agent::Agent, kept_wal, postgres::wal_dir::list};

/// One file must be through in this time; PostgreSQL asks again.
const PATIENCE: Duration = Duration::from_secs(120);
/// What was fetched and is not asked for within this time is forgotten.
const IDLE: Duration = Duration::from_secs(30);
/// So much WAL, in bytes, is in memory at a time beside the file that was asked for; one segment may be larger.
const AHEAD_BYTES: u64 = 64 << 20;
/// And no more files than this.
const MOST_AHEAD: u64 = 8;
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
        /// Where to put it (`%p`): relative to PGDATA, or absolute where pg_rewind asks.
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
}

/// The store's client, kept as long as its configuration stands.
type Cached = Mutex<Option<(StoreConfig, Arc<ObjectStore>)>>;

/// What came of a file that was brought ahead, where to, and of which run of the server: the configuration may have changed
/// since, and so may what lies under a name after a promotion that came to nothing.
type Upload = (ClusterLocation, u64, Result<PushOutcome, WalError>);
/// What came of a file that was fetched ahead, and where from.
type Download = (ClusterLocation, Result<Option<Vec<u8>>, WalError>);

/// What the conversations share.
#[derive(Default)]
struct Shared {
    cached: Cached,
    /// When a standby last found the store failing.
    failed_at: Mutex<Option<Instant>>,
    /// Files that PostgreSQL has marked as ready and will ask for next.
    uploads: Mutex<Ahead<Upload>>,
    /// Segments that a recovery will ask for next.
    downloads: Mutex<Ahead<Download>>,
}

/// How many segments of this size are worked on ahead.
fn count_ahead(segment_bytes: u64) -> usize {
    let count = AHEAD_BYTES.checked_div(segment_bytes).unwrap_or(1).clamp(1, MOST_AHEAD);
    usize::try_from(count).unwrap_or(1)
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
    for file in list(pg_wal).into_iter().filter(|file| file.starts_with(wal::PARTIAL_PREFIX)) {
        if let Err(error) = fs::remove_file(pg_wal.join(&file)) {
            tracing::warn!(file, error = %error, "what is left of a fetch can't be removed");
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
    loop {
        let stream = match timeout(IDLE, listener.accept()).await {
            Ok(Ok((stream, _))) => stream,
            Ok(Err(_)) => return,
            Err(_) => {
                shared.downloads.lock().await.forget();
                continue;
            }
        };
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
            let done = timeout(PATIENCE, Box::pin(handle(agent, shared, request))).await;
            done.unwrap_or_else(|_| Answer::Failed("the object store did not answer in time".to_owned()))
        }
        Err(error) => Answer::Failed(format!("malformed request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    text.push(b'\n');
    write.write_all(&text).await
}

async fn handle(agent: &Agent, shared: &Shared, request: Request) -> Answer {
    match request {
        Request::Archive { path, name } => {
            let answer = push::archive(agent, shared, &path, &name).await;
            push::note(agent, &name, &answer);
            answer
        }
        Request::Restore { name, path } => {
            let Some(dest) = resolve(agent, &path) else { return Answer::Failed(format!("{path} is not in pg_wal")) };
            match (agent.recovery_source(), kept_wal::find(&agent.layout, &name)) {
                (Some(source), _) => fetch::fetch_for_recovery(&source, shared, &name, &dest).await,
                (None, Some(kept)) => copy_kept(&kept, &dest).await,
                (None, None) => tokio::select! {
                    answer = fetch::fetch_for_standby(agent, shared, &name, &dest) => answer,
                    // Nobody's WAL is wanted any more, and an election waits for this server to replay what it has.
                    () = agent.await_detached() => Answer::Failed("this standby follows nobody at present".to_owned()),
                },
            }
        }
    }
}

/// This instance has it itself, and the archive has yet to get it.
async fn copy_kept(kept: &Path, dest: &Path) -> Answer {
    let content = match tokio::fs::read(kept).await {
        Ok(content) => content,
        Err(error) => return Answer::Failed(format!("{}: {error}", kept.display())),
    };
    match wal::place(content, dest).await {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(describe_chain(&error)),
    }
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

/// The absolute path of a file of pg_wal, which pg_rewind gives as such; None for anything that leads elsewhere.
fn resolve(agent: &Agent, path: &str) -> Option<PathBuf> {
    resolve_in(&agent.layout.pgdata, Path::new(path))
}

fn resolve_in(pgdata: &Path, path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix(pgdata).unwrap_or(path);
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    (plain && path.starts_with("pg_wal")).then(|| pgdata.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds_what_is_done_ahead() {
        assert_eq!([1 << 20, 16 << 20, 1 << 30].map(count_ahead), [8, 4, 1]);
    }

    #[test]
    fn only_files_of_pg_wal_are_touched() {
        let pgdata = Path::new("/data");
        assert_eq!(resolve_in(pgdata, Path::new("pg_wal/RECOVERYXLOG")), Some("/data/pg_wal/RECOVERYXLOG".into()));
        assert_eq!(resolve_in(pgdata, Path::new("/data/pg_wal/0A")), Some("/data/pg_wal/0A".into()), "of pg_rewind");
        for path in [
            "/etc/passwd",
            "/data/pg_hba.conf",
            "/data/pg_wal/../pg_hba.conf",
            "/database/pg_wal/x",
            "pg_wal/../pg_hba.conf",
            "../x",
            "base/1",
            "",
            "./pg_wal/x",
        ] {
            assert_eq!(resolve_in(pgdata, Path::new(path)), None, "{path}");
        }
    }
}

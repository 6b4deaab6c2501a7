//! Stands in for pgherd's agent, which needs Kubernetes: `pgherd archive-wal` asks it over the agent's socket, in the agent's words, and it
//! brings segments into the archive by the same code, four ahead. What it lacks are the agent's checks of its own role.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use pgherd_agent::{
    archive::{Answer, Request},
    layout::Layout,
};
use pgherd_core::backup::{BackupLocation, ClusterLocation};
use pgherd_e2e::Result;
use pgherd_stream::{
    store::ObjectStore,
    wal::{self, PushOutcome, WalError},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixListener,
    task::JoinHandle,
};

/// As many segments of 16 MiB as the agent brings ahead.
const AHEAD: usize = 4;

#[derive(Args)]
pub(crate) struct StandInArgs {
    /// JSON file of the place in the store.
    #[arg(long)]
    location: PathBuf,
    /// The database system identifier.
    #[arg(long)]
    system_id: String,
    /// The data directory.
    #[arg(long)]
    data: PathBuf,
}

/// Serves the socket; ends when it is killed.
pub(crate) async fn serve(args: StandInArgs) -> Result<()> {
    let location: BackupLocation = serde_json::from_slice(&fs::read(&args.location)?)?;
    let location = ClusterLocation { system_id: args.system_id, ..location.cluster };
    let store = ObjectStore::connect(&location.store).await?;
    let archive = Archive { store, location, pg_wal: args.data.join("pg_wal") };
    let archive = Arc::new(archive);
    let socket = Layout::pod().agent_socket();
    fs::create_dir_all(socket.parent().ok_or("the socket has no folder")?)?;
    let listener = UnixListener::bind(&socket)?;
    let mut ahead = HashMap::new();
    // PostgreSQL's archiver asks for one file after the other.
    loop {
        let (stream, _) = listener.accept().await?;
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line)? {
            Request::Archive { name, .. } => archive.push(&mut ahead, &name).await,
            Request::Restore { .. } => Answer::Absent,
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
}

struct Archive {
    store: ObjectStore,
    location: ClusterLocation,
    pg_wal: PathBuf,
}

type Begun = HashMap<String, JoinHandle<std::result::Result<PushOutcome, WalError>>>;

impl Archive {
    async fn push(self: &Arc<Self>, ahead: &mut Begun, name: &str) -> Answer {
        let asked = ahead.remove(name).unwrap_or_else(|| self.begin(name));
        for next in self.ready(name).unwrap_or_default() {
            ahead.entry(next).or_insert_with_key(|next| self.begin(next));
        }
        match asked.await {
            Ok(Ok(_)) => Answer::Done,
            Ok(Err(error)) => Answer::Failed(error.to_string()),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    fn begin(self: &Arc<Self>, name: &str) -> JoinHandle<std::result::Result<PushOutcome, WalError>> {
        let (archive, name) = (Arc::clone(self), name.to_owned());
        let file = self.pg_wal.join(&name);
        tokio::spawn(async move { wal::push(&archive.store, &archive.location, &file, &name).await })
    }

    /// The segments after this one that are marked as ready.
    fn ready(&self, name: &str) -> std::io::Result<Vec<String>> {
        let mut ready = ready_segments(&self.pg_wal)?;
        ready.retain(|other| other.as_str() > name);
        ready.truncate(AHEAD);
        Ok(ready)
    }
}

/// The segments that PostgreSQL has marked as ready, oldest first.
pub(crate) fn ready_segments(pg_wal: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(pg_wal.join("archive_status"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".ready").filter(|name| name.len() == 24).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

//! A base backup from the files of a data directory, on the machine that has it: what `BASE_BACKUP` does inside the server, done here,
//! between `pg_backup_start` and `pg_backup_stop` of an ordinary session. The events are those of a walsender, so that everything
//! behind them is the same.
//!
//! Reads only. Memory: `readers + 3` chunks of [`CHUNK_BYTES`], and the manifest.

mod archives;
mod chunk;
mod course;
mod manifest;
mod rules;
mod session;
mod sums;
mod tablespaces;
mod tar_header;
mod throttle;
mod wal;
mod walk;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    base_backup::{BaseBackupEvent, Tablespace},
    replication::{ConnectOptions, ReplicationError},
};
use archives::Sources;
use chunk::CHUNK_BYTES;
use course::Course;
use manifest::ManifestWriter;
use session::{BackupSession, ServerFacts};
use throttle::Throttle;
use walk::CONTROL_FILE;

/// Files that are read at the same time, by default: on two processors a third reader takes time from compression.
pub const DEFAULT_READERS: usize = 2;

/// Where the files are, and how they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOptions {
    /// The data directory of the server that is connected to.
    pub data: PathBuf,
    /// Chunks read at the same time, at least 1.
    pub readers: usize,
}

/// What a backup begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalStart<'a> {
    pub(crate) connect: &'a ConnectOptions,
    pub(crate) options: &'a LocalOptions,
    /// The label in `backup_label`.
    pub(crate) label: &'a str,
    /// An immediate checkpoint instead of a spread one.
    pub(crate) fast_checkpoint: bool,
    /// Kilobytes per second; `None` for no limit.
    pub(crate) max_rate: Option<u32>,
    /// A slot that the server has; by its folder the data directory is known to be the server's.
    pub(crate) slot: &'a str,
    /// By the session that has the slot.
    pub(crate) system_id: &'a str,
}

/// Why a backup from local files failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The session that holds the backup open, or one of its answers.
    #[error("the session that holds the backup open")]
    Session(#[from] ReplicationError),
    /// A file or folder could not be read.
    #[error("reading {}", place.display())]
    Read {
        /// Which.
        place: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The server that is connected to does not run on this data directory.
    #[error("{} is not the data directory of the server: {problem}", data.display())]
    OtherServer {
        /// The folder.
        data: PathBuf,
        /// By what it is known.
        problem: &'static str,
    },
    /// The server on the data directory has no unix socket.
    #[error("{} names no unix socket", .0.display())]
    NoSocket(PathBuf),
    /// A page is not as it was written.
    #[error("the source has corrupt pages: block {block} of {path} does not fit its checksum")]
    CorruptPage {
        /// The file, below the data directory.
        path: String,
        /// The block in its relation, from 0.
        block: u32,
    },
    /// A WAL segment between start and stop is not there any more.
    #[error("the WAL file {0} is not there")]
    MissingWal(String),
    /// A WAL file has not the size that it must have.
    #[error("the WAL file {0} has an unexpected size")]
    WalChanged(String),
    /// `pg_control` never fitted its own checksum.
    #[error("pg_control does not fit its checksum, however often it is read")]
    ControlChanges,
    /// The server says something else about the start at the end.
    #[error("the label of the backup does not fit its start: {0:?}")]
    Label(String),
    /// The instance went to another timeline while the backup ran.
    #[error("the backup began on timeline {start} and ended on timeline {stop}")]
    TimelineChanged {
        /// At the start.
        start: TimelineId,
        /// At the end.
        stop: TimelineId,
    },
    /// A name that is not UTF-8.
    #[error("the name of {} is not UTF-8", .0.display())]
    Name(PathBuf),
    /// A name that PostgreSQL does not put into an archive either.
    #[error("the name {0} is too long for a tar archive")]
    TooLong(String),
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] JoinError),
    /// The manifest could not be kept.
    #[error("compressing the manifest")]
    Manifest(#[source] io::Error),
    /// Nobody takes what is read.
    #[error("the backup is not taken any more")]
    Stopped,
    /// Asked for events after the end.
    #[error("the backup is over already")]
    Finished,
}

impl LocalError {
    /// Makes an error of what went wrong at a place.
    fn reading(place: &Path) -> impl FnOnce(io::Error) -> Self {
        let place = place.to_owned();
        move |source| Self::Read { place, source }
    }
}

/// Upper bound in bytes of what is read ahead.
#[must_use]
pub(crate) fn bounded_bytes(readers: usize) -> u64 {
    ((readers.max(1) + 3) * CHUNK_BYTES) as u64
}

/// A running backup. Dropping it ends the session, with which the server ends the backup.
#[derive(Debug)]
pub(crate) struct LocalBackup {
    events: mpsc::Receiver<BaseBackupEvent>,
    course: Option<AbortOnDropHandle<Result<(), LocalError>>>,
}

/// What is known when the checkpoint is done.
pub(crate) struct LocalBegun {
    pub(crate) backup: LocalBackup,
    pub(crate) lsn: Lsn,
    pub(crate) timeline: TimelineId,
    pub(crate) tablespaces: Vec<Tablespace>,
}

impl LocalBackup {
    /// Proves that the folder is the server's, waits for the checkpoint and begins to read.
    pub(crate) async fn start(start: LocalStart<'_>) -> Result<LocalBegun, LocalError> {
        let mut session = BackupSession::connect(start.connect).await?;
        let facts = session.observe_facts().await?;
        validate_server(&mut session, &facts, &start).await?;
        let (lsn, timeline) = session.start(start.label, start.fast_checkpoint).await?;
        let (data, observed) = (start.options.data.clone(), facts.clone());
        let observe = move || {
            // As PostgreSQL has it: links into it are compared by their text.
            let data = data.canonicalize().map_err(LocalError::reading(&data))?;
            let sources = Sources::observe(&data, &observed)?;
            let sizes = sources.estimate()?;
            Ok::<_, LocalError>((sources, sizes))
        };
        let (sources, sizes) = spawn_blocking(observe).await??;
        let spaces = sources.spaces.iter().map(|space| (Some(space.oid), space.location.clone()));
        let named = spaces.chain([(None, String::new())]);
        let tablespaces =
            named.zip(sizes).map(|((oid, location), size)| Tablespace { oid, location, size: Some(size) }).collect();
        let (events, receiver) = mpsc::channel(1);
        let course = Course {
            session,
            manifest: ManifestWriter::new(facts.version, &facts.system_id).map_err(LocalError::Manifest)?,
            facts,
            sources: Arc::new(sources),
            start_lsn: lsn,
            timeline,
            readers: start.options.readers,
            throttle: Throttle::new(start.max_rate),
            events,
        };
        let course = Some(AbortOnDropHandle::new(tokio::spawn(course.run())));
        Ok(LocalBegun { backup: Self { events: receiver, course }, lsn, timeline, tablespaces })
    }

    /// The next event. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<BaseBackupEvent, LocalError> {
        if let Some(event) = self.events.recv().await {
            return Ok(event);
        }
        let Some(course) = &mut self.course else { return Err(LocalError::Finished) };
        let ended = course.await;
        self.course = None;
        ended?.and(Err(LocalError::Finished))
    }
}

/// Folder of the unix socket, and port, of the server that runs on a data directory, as its `postmaster.pid` says.
///
/// # Errors
/// [`LocalError::Read`] when no server runs there, [`LocalError::NoSocket`] when it has no unix socket.
pub fn find_socket(data: &Path) -> Result<(String, u16), LocalError> {
    let place = data.join("postmaster.pid");
    let text = std::fs::read_to_string(&place).map_err(LocalError::reading(&place))?;
    let mut lines = text.lines().skip(3);
    let port = lines.next().and_then(|line| line.trim().parse().ok());
    let folder = lines.next().map(str::trim).filter(|folder| folder.starts_with('/'));
    port.zip(folder).map(|(port, folder)| (folder.to_owned(), port)).ok_or(LocalError::NoSocket(place))
}

/// The folder must be the server's own: a copy of it, or that of another instance of the cluster, would make a backup of no use.
async fn validate_server(
    session: &mut BackupSession,
    facts: &ServerFacts,
    start: &LocalStart<'_>,
) -> Result<(), LocalError> {
    let data = start.options.data.clone();
    let other = |problem| LocalError::OtherServer { data: data.clone(), problem };
    let (folder, slot) = (data.clone(), start.slot.to_owned());
    let observe = move || {
        let control = folder.join(CONTROL_FILE);
        let bytes = std::fs::read(&control).map_err(LocalError::reading(&control))?;
        let system_id = bytes.first_chunk::<8>().map(|id| u64::from_ne_bytes(*id).to_string());
        Ok::<_, LocalError>((system_id, folder.join("pg_replslot").join(slot).is_dir()))
    };
    let (system_id, has_slot) = spawn_blocking(observe).await??;
    if system_id.as_deref() != Some(facts.system_id.as_str()) || facts.system_id != start.system_id {
        return Err(other("its system identifier is another one"));
    }
    // It was made a moment ago, with a name that no other server has.
    if !has_slot {
        return Err(other("it lacks the replication slot of the backup"));
    }
    if !session.has_slot(start.slot).await? {
        return Err(other("two connections came to two servers"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_a_server_is_found_in_its_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(find_socket(dir.path()), Err(LocalError::Read { .. })), "no server runs there");
        let pid = |socket: &str| format!("77\n/data\n1700000000\n5433\n{socket}\nlocalhost\n  1 2\nready   \n");
        std::fs::write(dir.path().join("postmaster.pid"), pid("/run/pg")).unwrap();
        assert_eq!(find_socket(dir.path()).unwrap(), ("/run/pg".to_owned(), 5433));
        std::fs::write(dir.path().join("postmaster.pid"), pid("")).unwrap();
        assert!(matches!(find_socket(dir.path()), Err(LocalError::NoSocket(_))));
    }
}

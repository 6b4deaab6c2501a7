//! The WAL archive: one object per file, create-only. Segments are one zstd frame each, `.history` files are plain. Where there
//! are recipients a segment is an age file of another name; readers know both, so encryption can begin and end at any segment.
//!
//! A push is done when the store acknowledged it; a file is absent only when the store said so. No object is ever
//! overwritten or deleted here.

mod body;
mod fence;
mod gaps;
mod history;
mod name;
mod records;
mod segment;
mod survey;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use pgherd_core::{
    backup::{AGE_SUFFIX, ClusterLocation},
    lsn::Lsn,
    timeline::TimelineHistory,
};
use tempfile::NamedTempFile;

pub use fence::cut_at_switch;
pub use gaps::{decide_needed, missing_segments};
pub use name::{WalName, segment_name, segment_names};
pub use records::last_record;
pub use survey::{Survey, SurveyError, survey_archive};

use crate::{
    age,
    encryption::{KeyError, Keys},
    store::{ObjectStore, PutOutcome, StoreError},
};
use body::{DIGEST_NOTE, decode, encode, fits_digest, render_digest};
use history::{HISTORY_NOTE, parse_history, read_history, render_note};

/// Begins the name of a file that is being fetched. One that is there at a start is from a fetch that was cut off.
pub const PARTIAL_PREFIX: &str = ".pgherd-fetch-";

/// Whether a push wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The file is new in the archive.
    Pushed,
    /// The archive holds the same bytes already.
    AlreadyThere,
}

/// Whether a fetch found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchOutcome {
    /// The file is in place and flushed.
    Fetched,
    /// The store said that there is no such object.
    Absent,
}

/// Why the archive failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Not a name that PostgreSQL archives.
    #[error("\"{0}\" is not the name of a WAL file")]
    Name(String),
    /// Reading or writing a local file.
    #[error("{what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file's own header contradicts its name or the cluster.
    #[error("{name} does not belong here: {problem}")]
    Foreign {
        /// The file's name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The archive holds other bytes under this name. Never overwritten.
    #[error("the archive holds other bytes as {key}")]
    WalConflict {
        /// The object's key.
        key: String,
    },
    /// The archive holds this file encrypted, and nothing tells whether it is the same: its metadata was lost, and no identity is
    /// configured.
    #[error(
        "the archive holds {key} already; whether with the same bytes cannot be told without an identity that opens it"
    )]
    Unproven {
        /// The object's key.
        key: String,
    },
    /// A key is missing or wrong, or an object is no age file.
    #[error("the keys of the WAL archive")]
    Key(#[from] KeyError),
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] tokio::task::JoinError),
    /// The store failed.
    #[error("the object store")]
    Store(#[from] StoreError),
    /// A `.history` is not what was archived, or cannot be one.
    #[error("the object {key} is damaged: {problem}")]
    Damaged {
        /// The object's key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// No archive holds so much WAL: a position that came from the store is wrong.
    #[error("the WAL from {from} to {to} is more than can be replayed")]
    Span {
        /// The begin.
        from: Lsn,
        /// The end.
        to: Lsn,
    },
    /// The archived object cannot be decoded.
    #[error("decoding {key}")]
    Decode {
        /// The object's key.
        key: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// The two names that one file can have in the archive.
struct Names {
    plain: String,
    /// None for a file that is never encrypted.
    sealed: Option<String>,
}

impl Names {
    fn of(location: &ClusterLocation, name: &str) -> Self {
        Self { plain: location.wal_key(name), sealed: location.sealed_wal_key(name) }
    }

    /// The one to write, or to look at first.
    fn preferred(&self, keys: &Keys) -> &str {
        self.sealed.as_ref().filter(|_| keys.seals()).unwrap_or(&self.plain)
    }

    fn is_sealed(&self, key: &str) -> bool {
        self.sealed.as_deref() == Some(key)
    }

    /// Which of them are in the store.
    async fn observe(&self, store: &ObjectStore) -> Result<Vec<String>, StoreError> {
        // The one begins with the other: one request tells of both, and proves that the bucket is there.
        let present = store.list(&self.plain).await?.into_iter().map(|(key, _)| key);
        Ok(present.filter(|key| *key == self.plain || self.is_sealed(key)).collect())
    }
}

/// Archives one file under its name, create-only. `location` carries the system id that the file must have.
///
/// # Errors
/// [`WalError`]; [`WalError::WalConflict`] when the archive holds other bytes under this name.
pub async fn push(
    store: &ObjectStore,
    location: &ClusterLocation,
    file: &Path,
    name: &str,
) -> Result<PushOutcome, WalError> {
    push_as(store, location, file, name, Names::of(location, name)).await
}

/// Keeps one segment of a branch that was left, create-only, under `prefix` and not in the archive.
///
/// # Errors
/// [`WalError`]; [`WalError::WalConflict`] when other bytes are kept under this name.
pub async fn push_divergent(
    store: &ObjectStore,
    location: &ClusterLocation,
    file: &Path,
    name: &str,
    prefix: &str,
) -> Result<PushOutcome, WalError> {
    let plain = format!("{prefix}{name}.zst");
    push_as(store, location, file, name, Names { sealed: Some(format!("{plain}{AGE_SUFFIX}")), plain }).await
}

async fn push_as(
    store: &ObjectStore,
    location: &ClusterLocation,
    file: &Path,
    name: &str,
    names: Names,
) -> Result<PushOutcome, WalError> {
    let parsed = WalName::parse(name)?;
    let keys = Keys::of(&location.store)?;
    let key = names.preferred(&keys).to_owned();
    let sealed = names.is_sealed(&key);
    let path = file.to_owned();
    let (task_key, task_name, system_id) = (key.clone(), name.to_owned(), location.system_id.clone());
    let task_keys = keys.clone();
    let prepare = move || {
        task_keys.validate_pair()?;
        let content = read_named(&path).map_err(|source| WalError::File { what: "reading", path, source })?;
        let note = match parsed {
            WalName::History(timeline) => {
                parse_history(timeline, &content)
                    .map_err(|problem| WalError::Foreign { name: task_name.clone(), problem })?;
                Some((HISTORY_NOTE, render_note(&task_name, &content)))
            }
            _ => {
                segment::validate_segment(&content, &task_name, parsed, &system_id)?;
                if sealed { Some((DIGEST_NOTE, render_digest(&content)?)) } else { None }
            }
        };
        let body = encode(&task_key, &task_name, &content, task_keys.recipients())?;
        Ok::<_, WalError>((content, body, note))
    };
    let prepare = async { tokio::task::spawn_blocking(prepare).await? };
    let (prepared, present) = tokio::join!(prepare, names.observe(store));
    let (content, body, note) = prepared?;
    let pushed = Pushed { store, keys: &keys, names: &names, name, content: &content };
    let present = present?;
    if !present.is_empty() {
        // PostgreSQL archives a file again when it did not hear of the success: the same bytes are fine.
        pushed.compare(&present).await?;
        return Ok(PushOutcome::AlreadyThere);
    }
    let note = note.as_ref().map(|(name, value)| (*name, value.as_str()));
    let outcome = store.put_if_absent_noted(&key, body, note).await?;
    if outcome == PutOutcome::Created && names.sealed.is_none() {
        return Ok(PushOutcome::Pushed);
    }
    // Create-only holds for one name; who wrote under the other one meanwhile sees this one, as this one is seen here.
    let mut others = names.observe(store).await?;
    match outcome {
        PutOutcome::Created => others.retain(|found| *found != key),
        PutOutcome::Exists if !others.contains(&key) => return Err(WalError::WalConflict { key }),
        PutOutcome::Exists => {}
    }
    pushed.compare(&others).await?;
    Ok(if outcome == PutOutcome::Created { PushOutcome::Pushed } else { PushOutcome::AlreadyThere })
}

/// A file that bore its name until its last byte was read. Nothing keeps PostgreSQL from recycling a segment that is not marked as ready
/// (on a standby: any): a checkpoint gives it the name of a later one, whose WAL is then written over what is being read.
fn read_named(path: &Path) -> io::Result<Vec<u8>> {
    read_while_named(File::open(path)?, path)
}

fn read_while_named(mut file: File, path: &Path) -> io::Result<Vec<u8>> {
    let opened = file.metadata()?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let named = std::fs::metadata(path)?;
    if (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
        return Err(io::Error::other("it was recycled while it was read"));
    }
    Ok(content)
}

/// A file that the archive may hold already.
struct Pushed<'a> {
    store: &'a ObjectStore,
    keys: &'a Keys,
    names: &'a Names,
    name: &'a str,
    content: &'a [u8],
}

impl Pushed<'_> {
    /// Every one of the objects must hold the same bytes.
    async fn compare(&self, present: &[String]) -> Result<(), WalError> {
        for key in present {
            if !self.is_same(key).await? {
                return Err(WalError::WalConflict { key: key.clone() });
            }
        }
        Ok(())
    }

    async fn is_same(&self, key: &str) -> Result<bool, WalError> {
        if self.names.is_sealed(key) {
            let digest = self.store.head_note(key, DIGEST_NOTE).await?;
            if let Some(same) = digest.and_then(|digest| fits_digest(&digest, self.content)) {
                return Ok(same);
            }
            if !self.keys.has_identity() {
                return Err(WalError::Unproven { key: key.to_owned() });
            }
        }
        let archived = read_object(self.store, self.keys, self.names, key, self.name).await?;
        Ok(archived.is_some_and(|archived| archived == self.content))
    }
}

/// Brings one file from the archive to `dest`, which appears whole and flushed or not at all.
///
/// # Errors
/// [`WalError`] for anything but a sure answer.
pub async fn fetch(
    store: &ObjectStore,
    location: &ClusterLocation,
    name: &str,
    dest: &Path,
) -> Result<FetchOutcome, WalError> {
    let Some(content) = read(store, location, name).await? else { return Ok(FetchOutcome::Absent) };
    place(content, dest).await?;
    Ok(FetchOutcome::Fetched)
}

/// As [`fetch`], for a recovery along `history`: a segment, or the part of one, that its timeline wrote after it was left is absent.
///
/// # Errors
/// [`WalError`] for anything but a sure answer.
pub async fn fetch_along(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    name: &str,
    dest: &Path,
) -> Result<FetchOutcome, WalError> {
    let content = read(store, location, name).await?;
    let Some(content) = content.and_then(|content| cut_at_switch(content, name, history)) else {
        return Ok(FetchOutcome::Absent);
    };
    place(content, dest).await?;
    Ok(FetchOutcome::Fetched)
}

/// One file of the archive, checked against its name and the system id; `None` only when the store said that there is none.
///
/// # Errors
/// [`WalError`] for anything but a sure answer.
pub async fn read(store: &ObjectStore, location: &ClusterLocation, name: &str) -> Result<Option<Vec<u8>>, WalError> {
    let parsed = WalName::parse(name)?;
    if let WalName::History(timeline) = parsed {
        return read_history(store, location, timeline).await;
    }
    let (keys, names) = (Keys::of(&location.store)?, Names::of(location, name));
    let first = names.preferred(&keys);
    let mut content = read_object(store, &keys, &names, first, name).await?;
    if content.is_none()
        && let Some(sealed) = &names.sealed
    {
        let second = if names.is_sealed(first) { &names.plain } else { sealed };
        content = read_object(store, &keys, &names, second, name).await?;
    }
    if let Some(content) = &content {
        segment::validate_segment(content, name, parsed, &location.system_id)?;
    }
    Ok(content)
}

/// Writes a file that was read from the archive to `dest`, where it appears whole and flushed or not at all, and not
/// after this was given up.
///
/// # Errors
/// [`WalError::File`].
pub async fn place(content: Vec<u8>, dest: &Path) -> Result<(), WalError> {
    let folder = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let failed = |source| WalError::File { what: "writing", path: dest.to_owned(), source };
    let beside = folder.clone();
    let written = tokio::task::spawn_blocking(move || write_beside(&beside, &content)).await?.map_err(failed)?;
    // Not in the task: whoever gave this up asks for another file under the same name, which this one must not replace.
    written.persist(dest).map_err(|error| failed(error.error))?;
    tokio::task::spawn_blocking(move || File::open(folder)?.sync_all()).await?.map_err(failed)
}

/// Whether the archive holds a file of this name, plain or encrypted.
///
/// # Errors
/// [`WalError`] for anything but a sure answer.
pub async fn is_archived(store: &ObjectStore, location: &ClusterLocation, name: &str) -> Result<bool, WalError> {
    WalName::parse(name)?;
    Ok(!Names::of(location, name).observe(store).await?.is_empty())
}

async fn read_object(
    store: &ObjectStore,
    keys: &Keys,
    names: &Names,
    key: &str,
    name: &str,
) -> Result<Option<Vec<u8>>, WalError> {
    let Some(body) = store.get(key).await? else { return Ok(None) };
    let identities = match names.is_sealed(key) {
        true => Some(keys.identities(&format!("the object {key}"), &[])?),
        false => None,
    };
    let (key, name) = (key.to_owned(), name.to_owned());
    let finish = move || {
        let body = match identities {
            Some(identities) => {
                age::open(identities.all(), body.into()).map_err(|error| identities.explain(&key, &[], error))?
            }
            None => body.into(),
        };
        decode(&key, &name, body)
    };
    tokio::task::spawn_blocking(finish).await?.map(Some)
}

/// A file of its own in the folder, flushed; removed when dropped.
fn write_beside(folder: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_is_recycled_while_it_is_read_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, later) = (dir.path().join("000000010000000000000003"), dir.path().join("000000010000000000000009"));
        std::fs::write(&path, "what it held").unwrap();
        assert_eq!(read_named(&path).unwrap(), b"what it held");
        let opened = File::open(&path).unwrap();
        std::fs::rename(&path, &later).unwrap();
        std::fs::write(&later, "what is later").unwrap();
        assert_eq!(read_while_named(opened, &path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let opened = File::open(&later).unwrap();
        std::fs::write(&path, "another").unwrap();
        std::fs::rename(&path, &later).unwrap();
        assert!(read_while_named(opened, &later).unwrap_err().to_string().contains("recycled"));
    }
}

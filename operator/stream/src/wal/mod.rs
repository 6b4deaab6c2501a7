//! The WAL archive: one object per file, create-only. Segments are one zstd frame each, `.history` files are plain.
//!
//! A push is done when the store acknowledged it; a file is absent only when the store said so. No object is ever
//! overwritten or deleted here.

mod gaps;
mod name;
mod segment;

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pgherd_core::backup::ClusterLocation;

pub use gaps::{decide_needed, missing_segments};
pub use name::{WalName, segment_name, segment_names};

use crate::store::{ObjectStore, PutOutcome, StoreError};

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
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] tokio::task::JoinError),
    /// The store failed.
    #[error("the object store")]
    Store(#[from] StoreError),
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

/// No WAL file is larger when decoded: the largest segment.
const MAX_FILE_BYTES: usize = 1 << 30;
const LEVEL: i32 = 1;

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
    push_as(store, location, file, name, location.wal_key(name)).await
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
    push_as(store, location, file, name, format!("{prefix}{name}.zst")).await
}

async fn push_as(
    store: &ObjectStore,
    location: &ClusterLocation,
    file: &Path,
    name: &str,
    key: String,
) -> Result<PushOutcome, WalError> {
    let parsed = WalName::parse(name)?;
    let path = file.to_owned();
    let (task_name, system_id) = (name.to_owned(), location.system_id.clone());
    let prepare = move || {
        let content = std::fs::read(&path).map_err(|source| WalError::File { what: "reading", path, source })?;
        segment::validate_segment(&content, &task_name, parsed, &system_id)?;
        let body = encode(&task_name, &content)?;
        Ok::<_, WalError>((content, body))
    };
    let (content, body) = tokio::task::spawn_blocking(prepare).await??;
    if store.put_if_absent(&key, body).await? == PutOutcome::Created {
        return Ok(PushOutcome::Pushed);
    }
    // PostgreSQL archives a file again when it did not hear of the success: the same bytes are fine.
    match read(store, &key, name).await? {
        Some(archived) if archived == content => Ok(PushOutcome::AlreadyThere),
        _ => Err(WalError::WalConflict { key }),
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
    let parsed = WalName::parse(name)?;
    let key = location.wal_key(name);
    let Some(content) = read(store, &key, name).await? else { return Ok(FetchOutcome::Absent) };
    let (task_name, system_id, dest) = (name.to_owned(), location.system_id.clone(), dest.to_owned());
    let finish = move || {
        segment::validate_segment(&content, &task_name, parsed, &system_id)?;
        write_durably(&dest, &content)
    };
    tokio::task::spawn_blocking(finish).await??;
    Ok(FetchOutcome::Fetched)
}

/// Whether the archive holds a file of this name.
///
/// # Errors
/// [`WalError`] for anything but a sure answer.
pub async fn is_archived(store: &ObjectStore, location: &ClusterLocation, name: &str) -> Result<bool, WalError> {
    WalName::parse(name)?;
    Ok(store.head(&location.wal_key(name)).await?.is_some())
}

async fn read(store: &ObjectStore, key: &str, name: &str) -> Result<Option<Vec<u8>>, WalError> {
    let Some(body) = store.get(key).await? else { return Ok(None) };
    if !is_compressed(name) {
        return Ok(Some(body.to_vec()));
    }
    let decode = move || zstd::bulk::decompress(&body, content_size(&body)?);
    let decoded = tokio::task::spawn_blocking(decode).await?;
    decoded.map(Some).map_err(|source| WalError::Decode { key: key.to_owned(), source })
}

/// The decoded size by the frame's header, within reason.
fn content_size(frame: &[u8]) -> io::Result<usize> {
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= MAX_FILE_BYTES);
    size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no zstd frame with a usable content size"))
}

fn is_compressed(name: &str) -> bool {
    !name.ends_with(".history")
}

fn encode(name: &str, content: &[u8]) -> Result<Bytes, WalError> {
    if !is_compressed(name) {
        return Ok(Bytes::copy_from_slice(content));
    }
    let compress = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        compressor.compress(content)
    };
    compress().map(Bytes::from).map_err(|source| WalError::Decode { key: name.to_owned(), source })
}

fn write_durably(dest: &Path, content: &[u8]) -> Result<(), WalError> {
    let mut temporary = dest.as_os_str().to_owned();
    temporary.push(".pgherd-fetch");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, dest)?;
        match dest.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    write().map_err(|source| {
        // What is left of a failed attempt is overwritten by the next one.
        let _ = std::fs::remove_file(&temporary);
        WalError::File { what: "writing", path: dest.to_owned(), source }
    })
}

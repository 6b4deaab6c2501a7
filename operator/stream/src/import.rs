//! A data directory from a tar archive that `pg_basebackup -Ft -X fetch` wrote into one object: plain, or compressed by gzip or
//! zstd. Streamed: nothing but the data directory touches a disk, and [`READ_AHEAD`] pieces of [`PIECE`] are in memory.
//!
//! The archive must bring the WAL that makes it consistent, since no archive of ours has it. Where it holds a
//! `backup_manifest`, which PostgreSQL 13 and later put there, every file is checked against it.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    time::Instant,
};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    backup::MANIFEST_NAME,
    manifest::{Manifest, SeenFile},
    restore::{RestoreError, RestoreProgress, TarWriter, Target, Writers},
    store::ObjectStore,
    wal::segment_names,
};

/// Bytes that are asked for at once.
pub const PIECE: u64 = 8 << 20;
/// Pieces that are fetched at the same time.
pub const READ_AHEAD: usize = 3;
const BUFFER: usize = 256 << 10;

/// What pg_basebackup, or whoever recovers, changes after the manifest was made; pg_verifybackup leaves it out as well.
const CHANGED_LATER: [&str; 4] = ["postgresql.auto.conf", "standby.signal", "recovery.signal", MANIFEST_NAME];
/// Files that would make a standby, or a recovery from elsewhere, of it.
const SIGNALS: [&str; 2] = ["standby.signal", "recovery.signal"];

/// A finished import.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImportOutcome {
    /// Bytes written into files.
    pub bytes: u64,
    /// All files were checked against the archive's manifest.
    pub verified: bool,
    /// Seconds it took.
    pub seconds: f64,
}

/// Writes the archive that is the object `key` (a whole key of the bucket) into an empty or absent directory.
///
/// # Errors
/// [`RestoreError`]. Whatever the outcome, nothing writes any more.
pub async fn import_archive(
    store: &ObjectStore,
    key: &str,
    target: &Path,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<ImportOutcome, RestoreError> {
    let writers = Writers::default();
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RestoreError::Cancelled),
        outcome = import(store, key, target, &progress, &writers) => outcome,
    };
    writers.end().await;
    outcome
}

async fn import(
    store: &ObjectStore,
    key: &str,
    target: &Path,
    progress: &watch::Sender<RestoreProgress>,
    writers: &Writers,
) -> Result<ImportOutcome, RestoreError> {
    let began = Instant::now();
    let size = store.head(key).await?.ok_or_else(|| RestoreError::MissingObject(key.to_owned()))?;
    progress.send_modify(|progress| progress.bytes_total = Some(size));
    let (root, writer) = (target.to_owned(), writers.enter());
    let target = tokio::task::spawn_blocking(move || Target::prepare(&root, writer)).await??;
    target.validate_space(size)?;

    let (queue, pieces) = mpsc::channel(1);
    let name = key.to_owned();
    let writing = tokio::task::spawn_blocking(move || write(&name, Pieces::new(pieces), TarWriter::new(target)));
    let fetched = fetch(store, key, size, queue, progress).await;
    // The writer's error is the cause when it stopped taking; else a piece that did not come is.
    let writer = match (writing.await?, fetched) {
        (Err(error), Ok(Fed::Refused)) => return Err(error),
        (_, Err(error)) => return Err(error),
        (writer, Ok(_)) => writer?,
    };
    let (bytes, name) = (writer.bytes(), key.to_owned());
    let verified = tokio::task::spawn_blocking(move || finish(&name, writer)).await??;
    Ok(ImportOutcome { bytes, verified, seconds: began.elapsed().as_secs_f64() })
}

enum Fed {
    All,
    /// The writer ended before.
    Refused,
}

async fn fetch(
    store: &ObjectStore,
    key: &str,
    size: u64,
    queue: mpsc::Sender<Bytes>,
    progress: &watch::Sender<RestoreProgress>,
) -> Result<Fed, RestoreError> {
    let ranges = (0..size.div_ceil(PIECE)).map(|number| (number * PIECE, PIECE.min(size - number * PIECE)));
    let mut pieces =
        stream::iter(ranges).map(|(offset, length)| store.get_range(key, offset, length)).buffered(READ_AHEAD);
    while let Some(piece) = pieces.try_next().await? {
        let length = piece.len() as u64;
        if queue.send(piece).await.is_err() {
            return Ok(Fed::Refused);
        }
        progress.send_modify(|progress| progress.bytes_done += length);
    }
    Ok(Fed::All)
}

/// The pieces of the queue as one stream of bytes.
struct Pieces {
    queue: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    fn new(queue: mpsc::Receiver<Bytes>) -> Self {
        Self { queue, current: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(into.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

fn write(key: &str, pieces: Pieces, mut writer: TarWriter) -> Result<TarWriter, RestoreError> {
    let failed = |source| RestoreError::Compression { key: key.to_owned(), source };
    let mut plain = decompress(pieces).map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = plain.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Ok(writer);
        }
        writer.write(buffer.get(..length).unwrap_or_default())?;
    }
}

/// By the first bytes, whatever the object is called.
fn decompress(pieces: Pieces) -> io::Result<Box<dyn Read>> {
    let mut raw = BufReader::with_capacity(BUFFER, pieces);
    let head = raw.fill_buf()?;
    if head.starts_with(&[0x1F, 0x8B]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(raw)));
    }
    if head.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        return Ok(Box::new(zstd::Decoder::with_buffer(raw)?));
    }
    if head.starts_with(&[0x04, 0x22, 0x4D, 0x18]) {
        let problem = "it is compressed by lz4; gzip, zstd and plain tar are understood";
        return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
    }
    Ok(Box::new(raw))
}

/// True when the files were checked against a manifest.
fn finish(key: &str, writer: TarWriter) -> Result<bool, RestoreError> {
    let (target, seen) = writer.finish()?;
    let refuse = |problem: String| RestoreError::Import { key: key.to_owned(), problem };
    if !seen.contains_key("backup_label") {
        return Err(refuse("it has no backup_label, so it was not made by pg_basebackup".to_owned()));
    }
    if seen.get("tablespace_map").is_some_and(|file| file.size > 0) {
        return Err(refuse("it has tablespaces, which lie in archives of their own".to_owned()));
    }
    let Some(segment_bytes) = seen.iter().find(|(path, _)| is_segment(path)).map(|(_, file)| file.size) else {
        return Err(refuse("it holds no WAL; take it with pg_basebackup --wal-method=fetch".to_owned()));
    };
    let verified = seen.contains_key(MANIFEST_NAME);
    if !verified {
        tracing::warn!(key, "the archive has no backup_manifest: its files can't be checked");
    } else if let Some(missing) = verify(&target, &seen, segment_bytes)? {
        return Err(refuse(format!("its manifest needs the WAL segment {missing}, which it does not hold")));
    }
    for signal in SIGNALS {
        target.remove_file(signal)?;
    }
    target.finish()?;
    Ok(verified)
}

fn is_segment(path: &str) -> bool {
    let name = path.strip_prefix("pg_wal/").unwrap_or_default();
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Compares with the manifest; the first WAL segment that is missing, if one is.
fn verify(
    target: &Target,
    seen: &HashMap<String, SeenFile>,
    segment_bytes: u64,
) -> Result<Option<String>, RestoreError> {
    let mut manifest = Manifest::parse(&target.read_file(MANIFEST_NAME)?)?;
    manifest.files.retain(|file| !CHANGED_LATER.contains(&file.path.as_str()));
    let compared = seen.iter().filter(|(path, _)| !CHANGED_LATER.contains(&path.as_str()));
    manifest.compare(&compared.map(|(path, file)| (path.clone(), *file)).collect())?;
    let needed = manifest
        .wal_ranges
        .iter()
        .flat_map(|range| segment_names(range.timeline, range.start_lsn, range.end_lsn, segment_bytes));
    Ok(needed.into_iter().find(|name| !seen.contains_key(&format!("pg_wal/{name}"))))
}

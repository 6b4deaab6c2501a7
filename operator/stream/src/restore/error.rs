//! Errors of a restore, of a copy and of an import.

use std::{io, path::PathBuf};

use pgherd_core::chain::ChainError;

use crate::{
    catalogue::CatalogueError, encryption::KeyError, frames::FrameError, index::IndexError, manifest::ManifestError,
    store::StoreError, tar::TarError,
};

/// Why a restore failed. Where writing had begun, the marker stays in the target and `pg_control` is absent.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store failed.
    #[error("reading from the object store")]
    Store(#[from] StoreError),
    /// The backup's record cannot be read.
    #[error("reading the backup's record")]
    Catalogue(#[from] CatalogueError),
    /// The index is unreadable.
    #[error("reading the backup's index")]
    Index(#[from] IndexError),
    /// The manifest is wrong, or does not fit.
    #[error("checking against the manifest")]
    Manifest(#[from] ManifestError),
    /// The backup is encrypted, and there is no identity that opens it, or one of its objects is damaged.
    #[error("decrypting the backup")]
    Key(#[from] KeyError),
    /// A path or an archive is not acceptable.
    #[error("the backup's tar archive")]
    Tar(#[from] TarError),
    /// There is something in the target directory.
    #[error("{} is not empty{}", path.display(), if *incomplete { ": an earlier restore did not finish" } else { "" })]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
        /// It carries the marker of an unfinished restore or clone.
        incomplete: bool,
    },
    /// The file system is too small.
    #[error("{needed} bytes are needed, {free} are free")]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The backup has tablespaces, and nobody said where they are to lie.
    #[error("the backup has tablespaces, and nothing says where to put them: {}", .0.join(", "))]
    Tablespaces(Vec<String>),
    /// A tablespace's place is not an absolute path.
    #[error("the place of a tablespace, \"{}\", is not an absolute path", .0.display())]
    TablespacePlace(PathBuf),
    /// What an incremental backup needs is not there, or does not fit.
    #[error("an incremental backup cannot be restored")]
    Chain(#[from] ChainError),
    /// An incremental backup, and nothing to combine it with.
    #[error("the backup {0} is an incremental one, and pg_combinebackup was not found")]
    NoCombine(String),
    /// The program is of another major version than the backups.
    #[error("{} says it is \"{found}\", and the backup is of PostgreSQL {expected}", program.display())]
    CombineVersion {
        /// The program.
        program: PathBuf,
        /// What it printed.
        found: String,
        /// The backup's major version.
        expected: u32,
    },
    /// The program failed.
    #[error("{} failed ({status}): {printed}", program.display())]
    Combine {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// What it printed.
        printed: String,
    },
    /// A chain needs a scratch directory beside the target.
    #[error("{} has no room beside it on its file system, which an incremental backup needs: name a folder below it", .0.display())]
    NoRoomBeside(PathBuf),
    /// Retention is deleting the backup.
    #[error("the backup {0} is being deleted")]
    BeingDeleted(String),
    /// The backup was deleted while it was read.
    #[error("the backup {0} was deleted meanwhile")]
    Deleted(String),
    /// The backup holds a symbolic link.
    #[error("the symbolic link \"{0}\" is not supported")]
    Symlink(String),
    /// A frame is damaged.
    #[error("the frame at byte {offset} of {key} is damaged")]
    Frame {
        /// The object.
        key: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// A file has other bytes than it must have.
    #[error("\"{path}\" has CRC32C {found:08x} instead of {expected:08x}, or another length")]
    Damaged {
        /// The file.
        path: String,
        /// By the manifest.
        expected: u32,
        /// As written.
        found: u32,
    },
    /// Record, index and objects contradict each other.
    #[error("the backup contradicts itself: {0}")]
    Inconsistent(String),
    /// An imported archive can't be decompressed.
    #[error("decompressing {key}")]
    Compression {
        /// The object.
        key: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// An imported archive is not what pg_basebackup writes, or not enough to recover from.
    #[error("{key} can't be imported: {problem}")]
    Import {
        /// The object.
        key: String,
        /// What is missing.
        problem: String,
    },
    /// An object that belongs to the backup is missing.
    #[error("the object {0} is missing")]
    MissingObject(String),
    /// A local file.
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
    /// A background task died.
    #[error("a background task died")]
    Task(#[from] tokio::task::JoinError),
    /// It was cancelled.
    #[error("the restore was cancelled")]
    Cancelled,
}

//! `pgherd.json` in PGDATA: which member this data directory is, what it followed or led, and what it promised.
//! Every write is on disk (file and folder) before the call returns: elections rest on it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use pgherd_core::register::{MemberId, Term};
use serde::{Deserialize, Serialize};

/// Name of the file in PGDATA.
pub const FILE_NAME: &str = "pgherd.json";

/// What a data directory knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalState {
    /// Who it is; new after initdb, restore, clone and rewind, since all of these forget what was acknowledged.
    pub member: MemberId,
    /// The highest term that it has followed or led.
    pub term: Term,
    /// The promise not to follow a term below this one.
    #[serde(default)]
    pub sealed_term: Term,
    /// It was told to lead `term`: it may hold WAL that nobody else has.
    #[serde(default)]
    pub was_primary: bool,
    /// The term in which it came out of recovery as primary. While it is below `term`, a start must go through a
    /// promotion, which opens a timeline of its own.
    #[serde(default)]
    pub promoted_term: Term,
}

/// Why the local state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LocalStateError {
    /// The file or its folder could not be read or written.
    #[error("failed to {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("failed to parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl LocalState {
    /// The state of a data directory that was just made: a new member which has promised nothing.
    #[must_use]
    pub fn new_member() -> Self {
        Self {
            member: MemberId(uuid::Uuid::new_v4().to_string()),
            term: Term(0),
            sealed_term: Term(0),
            was_primary: false,
            promoted_term: Term(0),
        }
    }

    /// Reads the state; None when the data directory has none.
    ///
    /// # Errors
    /// [`LocalStateError`] when the file is there but can't be read or parsed.
    pub fn read(pgdata: &Path) -> Result<Option<Self>, LocalStateError> {
        let path = pgdata.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalStateError::Io { action: "read", path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| LocalStateError::Parse { path, source })
    }

    /// Writes the state so that it survives a crash right after the return.
    ///
    /// # Errors
    /// [`LocalStateError`]; the former state is then still there.
    pub fn write(&self, pgdata: &Path) -> Result<(), LocalStateError> {
        let path = pgdata.join(FILE_NAME);
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| LocalStateError::Parse { path: path.clone(), source })?;
        write_durably(&path, &text).map_err(|source| LocalStateError::Io { action: "write", path, source })
    }
}

/// Writes a file by a temporary one beside it and a rename; file and folder are on disk at return.
///
/// # Errors
/// Any error of the file system; the former file is then still there.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Brings a folder's entries to disk.
///
/// # Errors
/// Any error of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(LocalState::read(folder.path()).unwrap(), None);
        let mut state = LocalState::new_member();
        state.sealed_term = Term(7);
        state.write(folder.path()).unwrap();
        assert_eq!(LocalState::read(folder.path()).unwrap(), Some(state));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_new_member() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(LocalState::read(folder.path()), Err(LocalStateError::Parse { .. })));
    }
}

//! A data directory that is being filled: empty at first, marked as incomplete until everything is on disk, `pg_control`
//! last. Without `pg_control` PostgreSQL does not start on it, whatever happens.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{
    RestoreError,
    writers::{Claim, Writer},
};
use crate::tar::validate_path;

/// A file in the target while it is not yet complete.
pub const INCOMPLETE_MARKER: &str = ".pgherd-incomplete";
const CONTROL_FILE: &str = "global/pg_control";
const CONTROL_FILE_UNTIL_DONE: &str = "global/pg_control.pgherd-incomplete";

/// Fails when the file system of `folder` has less room than `needed` bytes.
pub(super) fn validate_space(folder: &Path, needed: u64) -> Result<(), RestoreError> {
    let stat = nix::sys::statvfs::statvfs(folder).map_err(|source| RestoreError::File {
        what: "asking for the free space of",
        path: folder.to_owned(),
        source: source.into(),
    })?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free < needed { Err(RestoreError::NoSpace { needed, free }) } else { Ok(()) }
}

/// A data directory that is being filled. Nothing in it is a symbolic link but those to tablespaces that the user placed, and
/// every path was checked: no write can leave it.
#[derive(Debug)]
pub(crate) struct Target {
    root: PathBuf,
    /// Let go before the writer is gone.
    _claim: Claim,
    writer: Writer,
}

impl Target {
    /// Creates the directory, or takes an empty one, and marks it.
    pub(crate) fn prepare(root: &Path, writer: Writer) -> Result<Self, RestoreError> {
        let target = Self { root: root.to_owned(), _claim: Claim::take(root)?, writer };
        match fs::read_dir(root) {
            Ok(entries) => {
                let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
                let names = names.map_err(|source| target.failed("listing", root, source))?;
                if !names.is_empty() {
                    let incomplete = names.iter().any(|name| name == INCOMPLETE_MARKER);
                    return Err(RestoreError::TargetNotEmpty { path: root.to_owned(), incomplete });
                }
                let mode = Permissions::from_mode(0o700);
                fs::set_permissions(root, mode)
                    .map_err(|source| target.failed("changing the mode of", root, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
                made.map_err(|source| target.failed("making", root, source))?;
            }
            Err(source) => return Err(target.failed("listing", root, source)),
        }
        target.write_marker()?;
        Ok(target)
    }

    fn write_marker(&self) -> Result<(), RestoreError> {
        let path = self.root.join(INCOMPLETE_MARKER);
        let write = || {
            fs::write(&path, "This data directory is not complete. Do not start PostgreSQL on it.\n")?;
            File::open(&path)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|source| self.failed("writing", &path, source))
    }

    /// Fails when the file system has less room than `needed` bytes.
    pub(crate) fn validate_space(&self, needed: u64) -> Result<(), RestoreError> {
        validate_space(&self.root, needed)
    }

    /// Gives a tablespace a place of its own, outside: an absolute path that is empty or absent.
    pub(crate) fn place_tablespace(&self, oid: &str, place: &Path) -> Result<(), RestoreError> {
        if !place.is_absolute() {
            return Err(RestoreError::TablespacePlace(place.to_owned()));
        }
        match fs::read_dir(place) {
            Ok(entries) => {
                if entries.count() > 0 {
                    return Err(RestoreError::TargetNotEmpty { path: place.to_owned(), incomplete: false });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(place);
                made.map_err(|source| self.failed("making", place, source))?;
            }
            Err(source) => return Err(self.failed("listing", place, source)),
        }
        self.make_directory("pg_tblspc")?;
        let link = self.resolve(&format!("pg_tblspc/{oid}"))?;
        std::os::unix::fs::symlink(place, &link).map_err(|source| self.failed("linking", &link, source))
    }

    /// Appends a line to a file of settings.
    pub(crate) fn append_line(&self, path: &str, line: &str) -> Result<(), RestoreError> {
        let full = self.resolve(path)?;
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&full)?;
            writeln!(file, "{line}")
        };
        append().map_err(|source| self.failed("writing", &full, source))
    }

    /// Takes a file away that the source needed and this directory must not have.
    pub(crate) fn remove_file(&self, path: &str) -> Result<(), RestoreError> {
        let full = self.resolve(path)?;
        match fs::remove_file(&full) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.failed("removing", &full, source)),
            _ => Ok(()),
        }
    }

    /// Makes a directory and its parents, all with mode 0700.
    pub(crate) fn make_directory(&self, path: &str) -> Result<(), RestoreError> {
        let full = self.resolve(path)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&full);
        made.map_err(|source| self.failed("making", &full, source))
    }

    /// Opens a file to write pieces of it, in any order; makes it and its directory if they are not there.
    pub(crate) fn open(&self, path: &str, mode: u32) -> Result<File, RestoreError> {
        let full = self.resolve(if path == CONTROL_FILE { CONTROL_FILE_UNTIL_DONE } else { path })?;
        // Owner only, or owner and group as PostgreSQL allows; never more.
        let mode = if mode & 0o040 == 0 { 0o600 } else { 0o640 };
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(&full);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    self.make_directory(parent)?;
                }
                open()
            }
            other => other,
        };
        file.map_err(|source| self.failed("opening", &full, source))
    }

    /// Writes a piece of an open file.
    pub(crate) fn write_at(&self, file: &File, path: &str, bytes: &[u8], offset: u64) -> Result<(), RestoreError> {
        self.writer.validate()?;
        file.write_all_at(bytes, offset).map_err(|source| self.failed("writing", &self.root.join(path), source))
    }

    /// Writes a whole small file.
    pub(crate) fn write_file(&self, path: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        let file = self.open(path, 0o600)?;
        self.write_at(&file, path, bytes, 0)
    }

    /// Reads a whole small file back.
    pub(crate) fn read_file(&self, path: &str) -> Result<Vec<u8>, RestoreError> {
        let full = self.resolve(path)?;
        fs::read(&full).map_err(|source| self.failed("reading", &full, source))
    }

    /// Puts `pg_control` in place, flushes the file system, and takes the mark off.
    pub(crate) fn finish(self) -> Result<(), RestoreError> {
        self.writer.validate()?;
        let (from, to) = (self.root.join(CONTROL_FILE_UNTIL_DONE), self.root.join(CONTROL_FILE));
        let flush = || {
            let root = File::open(&self.root)?;
            nix::unistd::syncfs(&root)?;
            // A tablespace may lie on another file system.
            for link in fs::read_dir(self.root.join("pg_tblspc")).into_iter().flatten() {
                nix::unistd::syncfs(&File::open(link?.path())?)?;
            }
            // From here on the files are on disk: only now may the directory look like a database.
            fs::rename(&from, &to)?;
            File::open(&to)?.sync_all()?;
            File::open(self.root.join("global"))?.sync_all()?;
            fs::remove_file(self.root.join(INCOMPLETE_MARKER))?;
            root.sync_all()
        };
        flush().map_err(|source| self.failed("completing", &self.root, source))
    }

    /// Tells everybody who writes into it to stop.
    pub(super) fn stop(&self) {
        self.writer.stop_all();
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, RestoreError> {
        self.writer.validate()?;
        validate_path(path)?;
        Ok(self.root.join(path))
    }

    fn failed(&self, what: &'static str, path: &Path, source: io::Error) -> RestoreError {
        RestoreError::File { what, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_marked_until_pg_control_is_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/pgdata");
        let target = Target::prepare(&root, Writer::alone()).unwrap();
        assert!(root.join(INCOMPLETE_MARKER).exists());
        assert!(matches!(
            Target::prepare(&root, Writer::alone()),
            Err(RestoreError::TargetNotEmpty { incomplete: true, .. })
        ));
        target.write_file("global/pg_control", b"control").unwrap();
        target.write_file("base/1/2", b"").unwrap();
        assert!(!root.join(CONTROL_FILE).exists(), "not before the end");
        target.finish().unwrap();
        assert_eq!(fs::read(root.join(CONTROL_FILE)).unwrap(), b"control");
        assert!(!root.join(INCOMPLETE_MARKER).exists());
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("base/1"), mode("base/1/2")), (0o700, 0o700, 0o600));
    }

    #[test]
    fn no_write_leaves_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::prepare(&dir.path().join("pgdata"), Writer::alone()).unwrap();
        for path in ["../escaped", "/tmp/escaped", "a/../../escaped", ""] {
            assert!(target.write_file(path, b"x").is_err(), "{path}");
            assert!(target.make_directory(path).is_err(), "{path}");
        }
        assert!(!dir.path().join("escaped").exists());
        assert!(matches!(target.validate_space(u64::MAX), Err(RestoreError::NoSpace { .. })));
    }
}

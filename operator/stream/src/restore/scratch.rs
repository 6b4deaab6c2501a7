//! The scratch directory of a chain: beside the target, on its file system, so that the result gets there by a rename. What an
//! earlier restore into the same target left is removed first; nothing else has this name.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    RestoreError,
    target::validate_space,
    writers::{Claim, Writer},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    target: PathBuf,
    /// Let go before the writer is gone.
    _claim: Claim,
    writer: Writer,
}

/// `.<target>.pgherd-chain` beside the target; none for a target without a name, like `/`.
fn name_folder(target: &Path) -> Option<PathBuf> {
    let name = target.file_name()?.to_string_lossy();
    Some(target.with_file_name(format!(".{name}.pgherd-chain")))
}

/// Removes the scratch directory of a restore into `target` that was broken off.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_scratch(target: &Path) -> io::Result<()> {
    match name_folder(target).map(fs::remove_dir_all) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Scratch {
    /// Makes the directory, on a file system with room for `needed` bytes. The target must be empty or absent, and no mount
    /// point of its own.
    pub(super) fn prepare(target: &Path, needed: u64, writer: Writer) -> Result<Self, RestoreError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| RestoreError::File { what, path, source }
        };
        let folder = name_folder(target).ok_or_else(|| RestoreError::NoRoomBeside(target.to_owned()))?;
        let claim = Claim::take(&folder)?;
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let create = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        create(parent).map_err(failed("making", parent))?;
        match fs::read_dir(target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    let incomplete = target.join(super::INCOMPLETE_MARKER).exists();
                    return Err(RestoreError::TargetNotEmpty { path: target.to_owned(), incomplete });
                }
                let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
                let same = device(target).and_then(|ours| Ok(ours == device(parent)?));
                if !same.map_err(failed("looking at", target))? {
                    return Err(RestoreError::NoRoomBeside(target.to_owned()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("listing", target)(source)),
        }
        remove_scratch(target).map_err(failed("removing", &folder))?;
        create(&folder).map_err(failed("making", &folder))?;
        let scratch = Self { folder, target: target.to_owned(), _claim: claim, writer };
        match validate_space(&scratch.folder, needed) {
            Ok(()) => Ok(scratch),
            Err(error) => scratch.finish(Err(error)),
        }
    }

    /// Where a member goes.
    pub(super) fn member(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// Where the result goes at first.
    pub(super) fn combined(&self) -> PathBuf {
        self.folder.join("combined")
    }

    /// Puts the result in place unless something failed, and removes the rest in any case.
    pub(super) fn finish<T>(self, outcome: Result<T, RestoreError>) -> Result<T, RestoreError> {
        let done = outcome.and_then(|value| {
            self.writer.validate()?;
            let put = self.put_in_place();
            let failed = |source| RestoreError::File { what: "completing", path: self.target.clone(), source };
            put.map(|()| value).map_err(failed)
        });
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(error = %error, folder = %self.folder.display(), "removing the scratch directory of a chain");
        }
        done
    }

    fn put_in_place(&self) -> io::Result<()> {
        // pg_combinebackup has synced its files; what lies between is not its concern.
        nix::unistd::syncfs(&File::open(&self.folder)?)?;
        fs::rename(self.combined(), &self.target)?;
        let parent = self.folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_put_in_place_and_the_rest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/pgdata");
        let scratch = Scratch::prepare(&target, 0, Writer::alone()).unwrap();
        fs::create_dir_all(scratch.combined().join("global")).unwrap();
        assert!(!target.exists(), "not before the end");
        scratch.finish(Ok(())).unwrap();
        assert!(target.join("global").exists());
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 1);
        assert!(matches!(
            Scratch::prepare(&target, 0, Writer::alone()),
            Err(RestoreError::TargetNotEmpty { incomplete: false, .. })
        ));
    }

    #[test]
    fn a_failure_and_a_broken_off_restore_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("pgdata");
        fs::create_dir(&target).unwrap();
        let scratch = Scratch::prepare(&target, 0, Writer::alone()).unwrap();
        fs::write(scratch.folder.join("rest"), "x").unwrap();
        // Killed here; the next one begins anew.
        drop(scratch);
        let again = Scratch::prepare(&target, 0, Writer::alone()).unwrap();
        assert!(!again.folder.join("rest").exists());
        assert!(again.finish::<()>(Err(RestoreError::Cancelled)).is_err());
        assert!(matches!(Scratch::prepare(&target, u64::MAX, Writer::alone()), Err(RestoreError::NoSpace { .. })));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["pgdata"]);
    }
}

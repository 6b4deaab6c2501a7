//! `pgherd agent-install`: the init container. Copies its own executable into the shared folder, and writes a passwd entry
//! for whatever UID the container runs under, which PostgreSQL and libpq insist on.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::unistd::{getgid, getuid};
use pgherd_core::instance::paths;

/// Why the installation failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to write {path}: {source}")]
pub struct InstallError {
    path: PathBuf,
    source: io::Error,
}

/// Installs into [`paths::RUN`].
#[must_use]
pub fn install() -> ExitCode {
    match install_into(Path::new(paths::RUN), Path::new("/proc/self/exe")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Installs into a folder.
///
/// # Errors
/// [`InstallError`].
pub fn install_into(run: &Path, executable: &Path) -> Result<(), InstallError> {
    let bin = run.join("bin");
    let target = bin.join("pgherd");
    let copy = || {
        fs::create_dir_all(&bin)?;
        // By a rename, so that a second run does not fail on an executable that is in use.
        let temporary = bin.join("pgherd.new");
        fs::copy(executable, &temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
        fs::rename(&temporary, &target)
    };
    copy().map_err(|source| InstallError { path: target.clone(), source })?;
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    for (name, content) in [("passwd", render_passwd(uid, gid)), ("group", render_group(gid))] {
        let path = run.join(name);
        fs::write(&path, content).map_err(|source| InstallError { path, source })?;
    }
    Ok(())
}

/// The user of the container is called `postgres`, unless it is root.
#[must_use]
pub fn render_passwd(uid: u32, gid: u32) -> String {
    let postgres = format!("postgres:x:{uid}:{gid}::{}:/bin/sh\n", "/var/lib/pgherd");
    let root = "root:x:0:0:root:/root:/bin/sh\n";
    if uid == 0 { root.to_owned() } else { format!("{root}{postgres}") }
}

/// The group to go with it.
#[must_use]
pub fn render_group(gid: u32) -> String {
    if gid == 0 { "root:x:0:\n".to_owned() } else { format!("root:x:0:\npostgres:x:{gid}:\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_uid_is_called_postgres() {
        assert_eq!(
            render_passwd(1000650000, 0),
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:1000650000:0::/var/lib/pgherd:/bin/sh\n"
        );
        assert_eq!(render_group(26), "root:x:0:\npostgres:x:26:\n");
    }

    #[test]
    fn installing_twice_does_no_harm() {
        let run = tempfile::tempdir().unwrap();
        let executable = run.path().join("source");
        fs::write(&executable, "program").unwrap();
        for _ in 0..2 {
            install_into(run.path(), &executable).unwrap();
        }
        assert_eq!(fs::read_to_string(run.path().join("bin/pgherd")).unwrap(), "program");
    }
}

//! PostgreSQL's programs with another pg_rewind among them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use pgherd_agent::postgres::binaries::Binaries;

use super::{minio, ran_as_postgres_with};

/// Set where the test runs with them.
const FAKED: &str = "PGHERD_FAKE_REWIND";

fn write(folder: &Path, pg_rewind: &str) {
    let real = Binaries::observe().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["initdb", "postgres", "pg_controldata"] {
        symlink(real.program(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("pg_rewind"), pg_rewind).unwrap();
    fs::set_permissions(folder.join("pg_rewind"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// [`minio::ran_as_postgres`] with this script as pg_rewind.
pub fn ran_with_rewind(test: &str, pg_rewind: &str) -> bool {
    if std::env::var_os(FAKED).is_some() {
        assert!(!ran_as_postgres_with(test, &[]));
        return false;
    }
    assert!(nix::unistd::getuid().is_root(), "this test must be started as root");
    let (programs, shared) = (tempfile::tempdir_in("/tmp").unwrap(), tempfile::tempdir_in("/tmp").unwrap());
    write(programs.path(), pg_rewind);
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    assert!(ran_as_postgres_with(test, &[("PATH", path), (FAKED, "1".to_owned()), minio::share(shared.path())]));
    true
}

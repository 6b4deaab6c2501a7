//! Which tablespaces a data directory has, as `pg_backup_start` sees them (`do_pg_backup_start` in `xlog.c`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{LocalError, rules::is_digits, walk::read_names};

/// A tablespace other than the default ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) oid: u32,
    /// As PostgreSQL says it: where the link leads, or `pg_tblspc/<OID>` for one that is a folder there.
    pub(super) location: String,
    /// Where it is read.
    pub(super) place: PathBuf,
    /// Path below the data directory, if it lies in there: not to be read twice.
    pub(super) inside: Option<String>,
}

/// Lists the tablespaces in the order of their OIDs.
pub(super) fn list_tablespaces(data: &Path) -> Result<Vec<Space>, LocalError> {
    let folder = data.join("pg_tblspc");
    let mut spaces = Vec::new();
    for name in read_names(&folder)? {
        let Some(oid) = is_digits(&name).then(|| name.parse().ok()).flatten() else { continue };
        let place = folder.join(&name);
        let Some(kind) = unless_dropped(fs::symlink_metadata(&place), &place)?.map(|found| found.file_type()) else {
            continue;
        };
        if kind.is_symlink() {
            let Some(target) = unless_dropped(fs::read_link(&place), &place)? else { continue };
            let location = target.to_str().ok_or_else(|| LocalError::Name(target.clone()))?.to_owned();
            // By where it really is: the data directory may be known by another path.
            let real = place.canonicalize().unwrap_or(target);
            let inside = real.strip_prefix(data).ok().and_then(Path::to_str).map(str::to_owned);
            spaces.push(Space { oid, location, place, inside });
        } else if kind.is_dir() {
            let path = format!("pg_tblspc/{name}");
            spaces.push(Space { oid, location: path.clone(), place, inside: Some(path) });
        }
    }
    spaces.sort_by_key(|space| space.oid);
    Ok(spaces)
}

/// None for a tablespace that was dropped since its name was read: PostgreSQL leaves it out as well, and replay drops it.
fn unless_dropped<T>(found: io::Result<T>, place: &Path) -> Result<Option<T>, LocalError> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some).map_err(LocalError::reading(place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tablespace_that_is_dropped_meanwhile_is_left_out() {
        let (dir, dropped) = (tempfile::tempdir().unwrap(), Path::new("16384"));
        assert!(unless_dropped(fs::read_link(dir.path().join(dropped)), dropped).unwrap().is_none());
        assert!(unless_dropped(fs::read_link(dir.path()), dropped).is_err(), "anything else is told");
        assert!(unless_dropped(fs::symlink_metadata(dir.path()), dropped).unwrap().is_some());
    }

    #[test]
    fn links_and_folders_that_are_named_by_an_oid_are_tablespaces() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pg_tblspc");
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("/elsewhere", folder.join("16390")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("inside"), folder.join("16384")).unwrap();
        fs::create_dir(folder.join("16391")).unwrap();
        fs::create_dir(folder.join("other")).unwrap();
        let found = list_tablespaces(dir.path()).unwrap();
        let found: Vec<_> =
            found.iter().map(|space| (space.oid, space.location.as_str(), space.inside.as_deref())).collect();
        let inside = dir.path().join("inside");
        assert_eq!(
            found,
            [
                (16384, inside.to_str().unwrap(), Some("inside")),
                (16390, "/elsewhere", None),
                (16391, "pg_tblspc/16391", Some("pg_tblspc/16391")),
            ]
        );
    }
}

//! The walk through a data directory or a tablespace, in the order of `sendDir` of `BASE_BACKUP`: says which folders and files belong
//! to a backup. Reads no content.

use std::{
    collections::HashSet,
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    LocalError,
    rules::{Fork, RelationFile, is_database_dir, is_emptied, is_excluded, is_temporary_relation, parse_relation_file},
};

/// Something that belongs to the backup.
pub(super) enum Found<'a> {
    /// A folder, with its permission bits.
    Directory { path: &'a str, mode: u32, metadata: &'a Metadata },
    /// A file. It may be gone when it is opened.
    File { path: &'a str, place: &'a Path, metadata: &'a Metadata, relation: Option<RelationFile> },
}

/// What is walked through.
pub(super) struct Walk<'a> {
    /// The folder that paths begin below.
    pub(super) root: &'a Path,
    /// Folder of the databases below it: `base`, or a tablespace's version.
    pub(super) databases: &'a str,
    /// For a data directory: paths of tablespaces in it, which are archives of their own. `None` for a tablespace.
    pub(super) data: Option<&'a HashSet<String>>,
    /// Permission bits of folders that are links in the source.
    pub(super) dir_mode: u32,
    /// `server_version_num`.
    pub(super) version: u32,
}

type Visit<'v> = dyn FnMut(Found<'_>) -> Result<(), LocalError> + 'v;

impl Walk<'_> {
    /// Visits everything in the folder `path` below the root (empty for the root itself), but not the folder.
    pub(super) fn visit_all(&self, path: &str, visit: &mut Visit<'_>) -> Result<(), LocalError> {
        let folder = if path.is_empty() { self.root.to_owned() } else { self.root.join(path) };
        let names = read_names(&folder)?;
        let holds_relations = is_database_dir(path, self.databases) || (self.data.is_some() && path == "global");
        let unlogged = if holds_relations { find_unlogged(&names) } else { HashSet::new() };
        for name in names {
            if is_excluded(&name) {
                continue;
            }
            let relation = if holds_relations { parse_relation_file(&name) } else { None };
            // Also where the init fork came after the names were read: what is then reset from it must not be there.
            let is_unlogged = |number| unlogged.contains(&number) || folder.join(format!("{number}_init")).exists();
            let is_reset = |file: &RelationFile| file.fork != Fork::Init && is_unlogged(file.number);
            if relation.as_ref().is_some_and(is_reset) || (holds_relations && is_temporary_relation(&name)) {
                continue;
            }
            let below = if path.is_empty() { name } else { format!("{path}/{name}") };
            self.visit_one(&below, &folder, relation, visit)?;
        }
        Ok(())
    }

    fn visit_one(
        &self,
        path: &str,
        folder: &Path,
        relation: Option<RelationFile>,
        visit: &mut Visit<'_>,
    ) -> Result<(), LocalError> {
        // It goes last.
        if self.data.is_some() && path == CONTROL_FILE {
            return Ok(());
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let place = folder.join(name);
        let metadata = match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(LocalError::reading(&place))?,
        };
        let kind = metadata.file_type();
        let mode = if kind.is_symlink() { self.dir_mode } else { metadata.permissions().mode() };
        if is_emptied(name) {
            return visit(Found::Directory { path, mode, metadata: &metadata });
        }
        if self.data.is_some() && path == "pg_wal" {
            let summaries = (self.version >= WITH_SUMMARIES).then_some("pg_wal/summaries");
            return ["pg_wal", "pg_wal/archive_status"]
                .into_iter()
                .chain(summaries)
                .try_for_each(|path| visit(Found::Directory { path, mode, metadata: &metadata }));
        }
        if kind.is_dir() {
            visit(Found::Directory { path, mode, metadata: &metadata })?;
            // Links to tablespaces are in tablespace_map instead, and tablespaces in archives of their own.
            let elsewhere = self.data.is_some_and(|spaces| path == "pg_tblspc" || spaces.contains(path));
            return if elsewhere { Ok(()) } else { self.visit_all(path, visit) };
        }
        if kind.is_file() {
            return visit(Found::File { path, place: &place, metadata: &metadata, relation });
        }
        tracing::warn!(path = %place.display(), "neither file nor folder: not in the backup");
        Ok(())
    }
}

/// Path of the control file below the data directory.
pub(super) const CONTROL_FILE: &str = "global/pg_control";
/// The first version of PostgreSQL with WAL summaries.
const WITH_SUMMARIES: u32 = 170_000;

/// Names in a folder, sorted; none where the folder is gone.
pub(super) fn read_names(folder: &Path) -> Result<Vec<String>, LocalError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(LocalError::reading(folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(LocalError::reading(folder))?.file_name();
        names.push(name.into_string().map_err(|name| LocalError::Name(folder.join(PathBuf::from(name))))?);
    }
    names.sort_unstable();
    Ok(names)
}

/// Numbers of the relations that have an init fork.
fn find_unlogged(names: &[String]) -> HashSet<u32> {
    let files = names.iter().filter_map(|name| parse_relation_file(name));
    files.filter(|file| file.fork == Fork::Init).map(|file| file.number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: &Path, version: u32, spaces: &[&str]) -> Vec<String> {
        let spaces = spaces.iter().map(|path| (*path).to_owned()).collect();
        let walk = Walk { root, databases: "base", data: Some(&spaces), dir_mode: 0o700, version };
        let mut found = Vec::new();
        let mut visit = |one: Found<'_>| {
            found.push(match one {
                Found::Directory { path, .. } => format!("{path}/"),
                Found::File { path, relation, .. } => {
                    format!("{path}{}", if relation.is_some() { " pages" } else { "" })
                }
            });
            Ok(())
        };
        walk.visit_all("", &mut visit).unwrap();
        found
    }

    #[test]
    fn a_relation_that_becomes_unlogged_after_its_name_was_read_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("base/5");
        fs::create_dir_all(&folder).unwrap();
        for number in ["100", "200"] {
            fs::write(folder.join(number), "x").unwrap();
        }
        let inside = HashSet::new();
        let walk = Walk { root: dir.path(), databases: "base", data: Some(&inside), dir_mode: 0o700, version: 150_000 };
        let mut found = Vec::new();
        let mut visit = |one: Found<'_>| {
            if let Found::File { path, .. } = one {
                found.push(path.to_owned());
                fs::write(folder.join("200_init"), "x").unwrap();
            }
            Ok(())
        };
        walk.visit_all("", &mut visit).unwrap();
        assert_eq!(found, ["base/5/100"]);
    }

    #[test]
    fn a_data_directory_is_walked_as_the_server_does_it() {
        let dir = tempfile::tempdir().unwrap();
        for folder in
            ["base/5", "base/pgsql_tmp", "global", "pg_replslot/s", "pg_tblspc/9", "pg_wal/archive_status", "in"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "PG_VERSION",
            "base/5/100",
            "base/5/100_vm",
            "base/5/200",
            "base/5/200.1",
            "base/5/200_fsm",
            "base/5/200_init",
            "base/5/t3_300",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "global/1260",
            "global/pg_control",
            "in/side",
            "pg_replslot/s/state",
            "pg_tblspc/9/x",
            "pg_wal/000000010000000000000001",
            "postmaster.pid",
        ] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        let expected = [
            "PG_VERSION",
            "base/",
            "base/5/",
            "base/5/100 pages",
            "base/5/100_vm pages",
            "base/5/200_init pages",
            "base/5/pg_filenode.map",
            "global/",
            "global/1260 pages",
            "in/",
            "in/side",
            "pg_replslot/",
            "pg_tblspc/",
            "pg_wal/",
            "pg_wal/archive_status/",
        ];
        assert_eq!(paths(dir.path(), 150_000, &[]), expected);
        let later: Vec<_> = expected.iter().chain(&["pg_wal/summaries/"]).map(|path| (*path).to_owned()).collect();
        assert_eq!(paths(dir.path(), 170_000, &[]), later);
        let without: Vec<_> =
            expected.iter().filter(|path| **path != "in/side").map(|path| (*path).to_owned()).collect();
        assert_eq!(paths(dir.path(), 150_000, &["in"]), without, "a tablespace in the data directory is read once");
    }
}

//! What of a data directory is not part of a backup, by names alone: the same that `BASE_BACKUP` of PostgreSQL 15 to 18 leaves out
//! (`src/backend/backup/basebackup.c`, `excludeFiles`, `excludeDirContents` and `sendDir`). Pure.

/// Which fork of a relation a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fork {
    Main,
    FreeSpaceMap,
    VisibilityMap,
    /// What an unlogged relation is reset to.
    Init,
}

/// A file of a relation that is not temporary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelationFile {
    pub(super) number: u32,
    pub(super) fork: Fork,
    pub(super) segment: u32,
}

/// Left out in any folder. With `true` the name may go on.
const EXCLUDED_FILES: [(&str, bool); 8] = [
    ("postgresql.auto.conf.tmp", false),
    ("current_logfiles.tmp", false),
    ("pg_internal.init", true),
    ("backup_label", false),
    ("tablespace_map", false),
    ("backup_manifest", false),
    ("postmaster.pid", false),
    ("postmaster.opts", false),
];

/// Kept as empty folders, wherever they are: the server empties or fills them when it starts.
const EMPTIED_DIRS: [&str; 7] =
    ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

/// Whether a file or folder of this name is left out, wherever it is.
pub(super) fn is_excluded(name: &str) -> bool {
    name.starts_with("pgsql_tmp")
        || name == ".DS_Store"
        || EXCLUDED_FILES
            .iter()
            .any(|(excluded, prefix)| if *prefix { name.starts_with(excluded) } else { name == *excluded })
}

/// Whether a folder of this name is kept without what is in it.
pub(super) fn is_emptied(name: &str) -> bool {
    EMPTIED_DIRS.contains(&name)
}

/// `123`, `123_vm`, `123.4`, `123_fsm.1`.
pub(super) fn parse_relation_file(name: &str) -> Option<RelationFile> {
    let (name, segment) = match name.split_once('.') {
        None => (name, 0),
        Some((name, segment)) => (name, parse_number(segment)?),
    };
    let (number, fork) = match name.split_once('_') {
        None => (name, Fork::Main),
        Some((number, "fsm")) => (number, Fork::FreeSpaceMap),
        Some((number, "vm")) => (number, Fork::VisibilityMap),
        Some((number, "init")) => (number, Fork::Init),
        Some(_) => return None,
    };
    Some(RelationFile { number: parse_number(number)?, fork, segment })
}

/// `t3_123` and its forks and segments: a file of a temporary relation of one session.
pub(super) fn is_temporary_relation(name: &str) -> bool {
    let parts = || {
        let (backend, relation) = name.strip_prefix('t')?.split_once('_')?;
        (is_digits(backend) && parse_relation_file(relation).is_some()).then_some(())
    };
    parts().is_some()
}

/// Whether the folder of this path holds the relations of one database: `base/<OID>`, or `<version>/<OID>` of a tablespace.
pub(super) fn is_database_dir(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/')).is_some_and(is_digits)
}

pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_number(text: &str) -> Option<u32> {
    is_digits(text).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_of_relations_are_known_by_their_names() {
        let parsed = |name| parse_relation_file(name).map(|file| (file.number, file.fork, file.segment));
        assert_eq!(parsed("16384"), Some((16384, Fork::Main, 0)));
        assert_eq!(parsed("16384.12"), Some((16384, Fork::Main, 12)));
        assert_eq!(parsed("16384_vm"), Some((16384, Fork::VisibilityMap, 0)));
        assert_eq!(parsed("16384_fsm.1"), Some((16384, Fork::FreeSpaceMap, 1)));
        assert_eq!(parsed("16384_init"), Some((16384, Fork::Init, 0)));
        for other in ["", "PG_VERSION", "pg_filenode.map", "1_", "1_foo", "1.", "1.x", "+1", "t3_16384", "99999999999"]
        {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    #[test]
    fn what_belongs_to_a_session_or_a_run_of_the_server_is_left_out() {
        for name in ["t3_16384", "t12_16384_fsm", "t3_16384.1", "t3_16384_vm.2"] {
            assert!(is_temporary_relation(name), "{name}");
        }
        for name in ["t_16384", "t3", "3_16384", "tx_1", "table"] {
            assert!(!is_temporary_relation(name), "{name}");
        }
        for name in ["pgsql_tmp", "pgsql_tmp123.4", "pg_internal.init.99", "postmaster.pid", "backup_label"] {
            assert!(is_excluded(name), "{name}");
        }
        for name in ["backup_label.old", "current_logfiles", "postgresql.auto.conf", "pg_hba.conf", "standby.signal"] {
            assert!(!is_excluded(name), "{name}");
        }
        assert!(is_emptied("pg_replslot") && !is_emptied("pg_stat") && !is_emptied("pg_logical"));
    }

    #[test]
    fn only_folders_named_by_an_oid_hold_relations() {
        assert!(is_database_dir("base/5", "base") && is_database_dir("PG_15_202209061/5", "PG_15_202209061"));
        for path in ["base", "base/x", "base/5/6", "basement/5", "global"] {
            assert!(!is_database_dir(path, "base"), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_rendered_is_parsed(number in any::<u32>(), segment in 0u32..40_000, fork in 0usize..4) {
            let (suffix, fork) =
                [("", Fork::Main), ("_fsm", Fork::FreeSpaceMap), ("_vm", Fork::VisibilityMap), ("_init", Fork::Init)][fork];
            let name = format!("{number}{suffix}{}", if segment == 0 { String::new() } else { format!(".{segment}") });
            prop_assert_eq!(parse_relation_file(&name), Some(RelationFile { number, fork, segment }));
            let temporary = format!("t7_{name}");
            prop_assert!(is_temporary_relation(&temporary));
        }
    }
}

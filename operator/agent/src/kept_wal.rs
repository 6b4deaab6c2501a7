//! WAL that this instance wrote as a primary and the archive has yet to get, in a folder of the volume beside PGDATA. A
//! standby archives nothing and removes old segments although they are marked as ready (`XLogArchiveCheckDone`), pg_rewind
//! removes what its source does not have, and a data directory that was moved aside goes once its successor streams: none of
//! them reaches this folder. Segments get a second name there, which takes neither time nor room. So that nothing is written
//! into such a file, a server runs with `wal_recycle = off` for as long as the folder is there. Uploads nothing: that is
//! [`crate::leftovers`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pgherd_core::lsn::Lsn;

use crate::{
    actions::ActionError,
    agent::Agent,
    layout::Layout,
    local_state::{LocalState, sync_folder, write_durably},
    postgres::wal_dir::{is_segment_name, list, parse_segment_name},
};

/// Keeps what a data directory that has led has not archived. To be called before a standby starts on it, or before it is
/// given up. In one that has not led, a mark comes from elsewhere: pg_rewind takes over those of its source.
///
/// # Errors
/// [`ActionError::Files`]: then neither may happen.
pub fn keep_of(agent: &Agent, local: &LocalState) -> Result<(), ActionError> {
    if !local.was_primary || agent.config().store.is_none() {
        return Ok(());
    }
    keep(&agent.layout)
}

/// Keeps the complete segments that PostgreSQL has marked as ready.
fn keep(layout: &Layout) -> Result<(), ActionError> {
    let pg_wal = layout.pgdata.join("pg_wal");
    let names: Vec<String> = observe_ready(&pg_wal).filter(|name| pg_wal.join(name).exists()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let folder = layout.kept_wal();
    let link_all = || {
        fs::create_dir_all(&folder)?;
        names.iter().try_for_each(|name| link(&pg_wal.join(name), &folder.join(name)))?;
        sync_folder(&folder)?;
        sync_folder(&layout.volume)
    };
    tracing::info!(segments = names.len(), "keeping WAL that is not in the archive yet");
    link_all().map_err(|source| ActionError::Files { action: "keep WAL in", path: layout.kept_wal(), source })
}

/// The segments that are marked as ready, oldest first.
pub fn observe_ready(pg_wal: &Path) -> impl Iterator<Item = String> + use<> {
    let ready = list(&pg_wal.join("archive_status")).into_iter();
    ready.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).filter(|name| is_segment_name(name))
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // A file system that has no second names.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
            write_durably(to, &fs::read(from)?)
        }
        linked => linked,
    }
}

/// The segments that are kept, oldest first.
#[must_use]
pub fn observe(layout: &Layout) -> Vec<String> {
    list(&layout.kept_wal()).into_iter().filter(|name| is_segment_name(name)).collect()
}

/// Where a segment is kept, if it is.
#[must_use]
pub fn find(layout: &Layout, name: &str) -> Option<PathBuf> {
    let path = layout.kept_wal().join(name);
    (is_segment_name(name) && path.is_file()).then_some(path)
}

/// Forgets what ends beyond `fork`: it is not on the history that is followed from here on, and what was on another branch under the same
/// name must not come into the archive.
///
/// # Errors
/// [`ActionError::Files`].
pub fn forget_beyond(layout: &Layout, fork: Lsn, segment_bytes: u64) -> Result<(), ActionError> {
    let ends_beyond = |name: &String| {
        let number = parse_segment_name(name, segment_bytes).map(|(_, number)| number.saturating_add(1));
        number.is_none_or(|next| next.saturating_mul(segment_bytes) > fork.0)
    };
    observe(layout).into_iter().filter(ends_beyond).try_for_each(|name| forget(layout, &name))
}

/// Forgets one segment, and the folder with the last one.
///
/// # Errors
/// [`ActionError::Files`].
pub fn forget(layout: &Layout, name: &str) -> Result<(), ActionError> {
    let path = layout.kept_wal().join(name);
    fs::remove_file(&path).map_err(|source| ActionError::Files { action: "remove", path, source })?;
    // It is not empty yet, as a rule.
    let _ = fs::remove_dir(layout.kept_wal());
    Ok(())
}

/// Takes what is kept out of pg_wal of a server that is stopped: pg_rewind writes anew what its source has as well, into the
/// same file. What it needs of it is brought back by restore_command.
///
/// # Errors
/// [`ActionError::Files`].
pub fn take_out(layout: &Layout) -> Result<(), ActionError> {
    for name in observe(layout) {
        let path = layout.pgdata.join("pg_wal").join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ActionError::Files { action: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    /// A data directory in which the segments 2 to 4 are ready, and the last one is gone.
    fn scene(root: &Path) -> Layout {
        let layout = Layout { volume: root.to_owned(), pgdata: root.join("pgdata"), ..Layout::pod() };
        let pg_wal = layout.pgdata.join("pg_wal");
        fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
        for (name, status) in [("1", "done"), ("2", "ready"), ("3", "ready"), ("4", "ready")] {
            let name = format!("00000001000000000000000{name}");
            fs::write(pg_wal.join(&name), &name).unwrap();
            fs::write(pg_wal.join("archive_status").join(format!("{name}.{status}")), "").unwrap();
        }
        fs::write(pg_wal.join("archive_status/00000002.history.ready"), "").unwrap();
        fs::remove_file(pg_wal.join("000000010000000000000004")).unwrap();
        layout
    }

    #[test]
    fn what_is_ready_outlasts_the_data_directory_and_the_folder_goes_with_the_last_segment() {
        let root = tempfile::tempdir().unwrap();
        let layout = scene(root.path());
        keep(&layout).unwrap();
        // Again it does no harm.
        keep(&layout).unwrap();
        let names = ["000000010000000000000002", "000000010000000000000003"];
        assert_eq!(observe(&layout), names);
        fs::remove_dir_all(&layout.pgdata).unwrap();
        assert_eq!(fs::read_to_string(find(&layout, names[1]).unwrap()).unwrap(), names[1]);
        forget(&layout, names[0]).unwrap();
        assert!(layout.kept_wal().exists());
        forget(&layout, names[1]).unwrap();
        assert!(!layout.kept_wal().exists() && find(&layout, names[1]).is_none());
    }

    #[test]
    fn a_segment_that_ends_at_the_fork_is_kept_and_one_beyond_it_is_not() {
        let root = tempfile::tempdir().unwrap();
        let layout = scene(root.path());
        keep(&layout).unwrap();
        forget_beyond(&layout, Lsn(3 * SEGMENT), SEGMENT).unwrap();
        assert_eq!(observe(&layout), ["000000010000000000000002"]);
        forget_beyond(&layout, Lsn(3 * SEGMENT - 1), SEGMENT).unwrap();
        assert!(!layout.kept_wal().exists());
    }

    #[test]
    fn what_is_taken_out_is_still_kept() {
        let root = tempfile::tempdir().unwrap();
        let layout = scene(root.path());
        keep(&layout).unwrap();
        take_out(&layout).unwrap();
        let left = list(&layout.pgdata.join("pg_wal"));
        assert_eq!(left, ["000000010000000000000001", "archive_status"]);
        assert_eq!(observe(&layout).len(), 2);
        assert_eq!(find(&layout, "../pgdata/pg_wal"), None);
    }
}

//! The data directory as a whole: what is there, the marker of one that is being filled, and moving an old one aside.
//! Nothing is deleted here that may be the only copy of somebody's data.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pgherd_stream::restore::remove_scratch;
use serde::{Deserialize, Serialize};

use super::ActionError;
use crate::{
    agent::Agent,
    layout::Layout,
    local_state::{LocalState, sync_folder, write_durably},
    machine::DataView,
    postgres::{binaries::Binaries, control::observe_control},
    status,
};

/// Why PGDATA is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// The first data directory of a cluster is being made.
    Bootstrap,
    /// A copy for a replica is being made; nothing in it is unique.
    Copy,
    /// pg_rewind changes what was a complete data directory: it may hold what nobody else has.
    Rewind,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    purpose: Purpose,
    /// Why a new copy is needed, where there was one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Looks at the data directory and shows what it says of itself.
///
/// # Errors
/// [`ActionError`] when it can't be looked at.
pub async fn observe_data(agent: &Agent, binaries: &Binaries) -> Result<DataView, ActionError> {
    let layout = &agent.layout;
    if layout.building_marker().exists() {
        status::show_local(agent, None, None);
        return Ok(DataView::Partial);
    }
    if is_empty(&layout.pgdata)? {
        status::show_local(agent, None, None);
        return Ok(DataView::Absent);
    }
    let Some(local) = LocalState::read(&layout.pgdata)? else {
        return Ok(DataView::Foreign(format!("{} holds something that pgherd did not make", layout.pgdata.display())));
    };
    let shown = agent.board.status();
    // pg_controldata is asked once per data directory: the identifier never changes.
    let system_id = match (shown.member.as_ref() == Some(&local.member), shown.system_id) {
        (true, Some(known)) => known,
        _ => observe_control(binaries, &layout.pgdata).await?.system_id,
    };
    status::show_local(agent, Some(&local), Some(&system_id));
    Ok(DataView::Ready { local, system_id })
}

fn is_empty(folder: &Path) -> Result<bool, ActionError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(ActionError::Files { action: "read", path: folder.to_owned(), source }),
    }
}

/// Marks PGDATA as incomplete, on disk, before its first byte is changed.
///
/// # Errors
/// [`ActionError::Files`].
pub fn mark(layout: &Layout, purpose: Purpose) -> Result<(), ActionError> {
    mark_because(layout, purpose, None)
}

/// [`mark`] with the reason, which outlasts a restart.
///
/// # Errors
/// [`ActionError::Files`].
pub fn mark_because(layout: &Layout, purpose: Purpose, why: Option<String>) -> Result<(), ActionError> {
    let path = layout.building_marker();
    let text = serde_json::to_vec(&Marker { purpose, why }).unwrap_or_default();
    write_durably(&path, &text).map_err(|source| ActionError::Files { action: "write", path, source })
}

fn read_marker(layout: &Layout) -> Option<Marker> {
    serde_json::from_slice(&fs::read(layout.building_marker()).ok()?).ok()
}

/// Why the data directory that was here is made anew; an interrupted pg_rewind is a reason as well.
#[must_use]
pub fn observe_reason(layout: &Layout) -> Option<String> {
    let marker = read_marker(layout)?;
    let interrupted = || (marker.purpose == Purpose::Rewind).then(|| "pg_rewind was interrupted".to_owned());
    marker.why.clone().or_else(interrupted)
}

/// Writes who the data directory is and removes the marker: from here on it may be started.
///
/// # Errors
/// [`ActionError`].
pub fn complete(agent: &Agent, local: &LocalState, system_id: &str) -> Result<(), ActionError> {
    local.write(&agent.layout.pgdata)?;
    let path = agent.layout.building_marker();
    fs::remove_file(&path).and_then(|()| sync_folder(&agent.layout.volume)).map_err(|source| ActionError::Files {
        action: "remove",
        path,
        source,
    })?;
    status::show_local(agent, Some(local), Some(system_id));
    Ok(())
}

/// Makes room for a new data directory. An interrupted copy, or first data directory, is deleted: it was never complete, nobody could
/// write into it, and kept it would take the room that the next try needs. Anything else is moved aside.
///
/// # Errors
/// [`ActionError::Files`].
pub fn clear(layout: &Layout) -> Result<(), ActionError> {
    remove_scratch(&layout.pgdata).map_err(|source| ActionError::Files {
        action: "remove the scratch directory of",
        path: layout.pgdata.clone(),
        source,
    })?;
    if is_empty(&layout.pgdata)? {
        return Ok(());
    }
    if read_marker(layout).is_some_and(|marker| marker.purpose != Purpose::Rewind) {
        let path = layout.pgdata.clone();
        return fs::remove_dir_all(&path).map_err(|source| ActionError::Files { action: "remove", path, source });
    }
    let aside = layout.volume.join(format!("pgdata.aside-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")));
    tracing::warn!(to = %aside.display(), "moving the data directory aside");
    let moved = fs::rename(&layout.pgdata, &aside).and_then(|()| sync_folder(&layout.volume));
    moved.map_err(|source| ActionError::Files { action: "move aside", path: layout.pgdata.clone(), source })
}

/// The data directories that were moved aside, oldest first.
#[must_use]
pub fn observe_aside(layout: &Layout) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(&layout.volume) else { return Vec::new() };
    let is_aside =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgdata.aside-"));
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_aside).collect();
    found.sort();
    found
}

/// Deletes what was moved aside. Only to be called once the new data directory streams from the primary: then a verified
/// copy exists.
///
/// # Errors
/// [`ActionError::Files`].
pub fn remove_aside(layout: &Layout) -> Result<(), ActionError> {
    for path in observe_aside(layout) {
        tracing::info!(path = %path.display(), "removing a data directory that was moved aside: its successor streams");
        fs::remove_dir_all(&path).map_err(|source| ActionError::Files { action: "remove", path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Peers;

    fn layout(root: &Path) -> Layout {
        Layout { volume: root.to_owned(), pgdata: root.join("pgdata"), peers: Peers::Dns, ..Layout::pod() }
    }

    #[test]
    fn an_interrupted_copy_or_bootstrap_is_deleted_and_anything_else_moved_aside() {
        let root = tempfile::tempdir().unwrap();
        let layout = layout(root.path());
        let cases = [
            (Some(Purpose::Copy), 0),
            (Some(Purpose::Bootstrap), 0),
            (Some(Purpose::Rewind), 1),
            (None, 2),
            (Some(Purpose::Bootstrap), 2),
        ];
        for (purpose, kept) in cases {
            fs::create_dir(&layout.pgdata).unwrap();
            fs::write(layout.pgdata.join("PG_VERSION"), "15").unwrap();
            let _ = fs::remove_file(layout.building_marker());
            if let Some(purpose) = purpose {
                mark(&layout, purpose).unwrap();
            }
            clear(&layout).unwrap();
            assert!(!layout.pgdata.exists());
            // Two within one second get one name: the second rename would fail, so they are told apart here.
            for (index, path) in observe_aside(&layout).into_iter().enumerate() {
                let _ = fs::rename(path, root.path().join(format!("pgdata.aside-{index}")));
            }
            assert_eq!(observe_aside(&layout).len(), kept, "{purpose:?}");
        }
        remove_aside(&layout).unwrap();
        assert!(observe_aside(&layout).is_empty());
    }
}

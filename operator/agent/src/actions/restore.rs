//! Restoring in place: what is there is moved aside, and a backup of this very cluster is recovered to the target. The new
//! timeline is above every one in the archive, so what this history writes never meets what an abandoned one wrote.

use std::{fs, path::Path};

use pgherd_core::{
    backup::BackupLocation,
    instance::Bootstrap,
    register::{Register, RestoreOrder},
};

use super::{ActionError, bootstrap::bootstrap};
use crate::{agent::Agent, archive::own_location, postgres::wal_dir::list};

/// Restores as `order` says.
///
/// # Errors
/// [`ActionError`]; the next try starts over, from the same backup.
pub async fn restore(agent: &Agent, register: &Register, order: &RestoreOrder) -> Result<(), ActionError> {
    let cluster = own_location(agent).ok_or_else(|| ActionError::Bootstrap {
        what: "failed to restore",
        why: "no object store is configured any more: set spec.backup.objectStore".to_owned(),
    })?;
    let from = BackupLocation { cluster, backup_id: order.backup_id.clone() };
    bootstrap(agent, register, Bootstrap::Recovery { from, target: order.target.clone() }).await
}

/// At its end a recovery keeps the last segment of the history that it leaves as `.partial`, to be archived. All of that
/// segment came from the archive, and an earlier promotion may have put another `.partial` of the same name there.
pub fn forget_partial(pg_wal: &Path) {
    for folder in [pg_wal.join("archive_status"), pg_wal.to_owned()] {
        let partial = |file: &String| file.ends_with(".partial") || file.ends_with(".partial.ready");
        for file in list(&folder).into_iter().filter(partial) {
            if let Err(error) = fs::remove_file(folder.join(&file)) {
                tracing::warn!(file, error = %error, "what the recovery left can't be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_segment_is_forgotten_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let status = root.path().join("archive_status");
        fs::create_dir(&status).unwrap();
        let keep = ["00000001000000000000000A", "00000002.history"];
        for file in keep.iter().chain(&["00000001000000000000000A.partial"]) {
            fs::write(root.path().join(file), "x").unwrap();
            fs::write(status.join(format!("{file}.ready")), "").unwrap();
        }
        forget_partial(root.path());
        let mut left = list(&status);
        left.sort();
        assert_eq!(left, ["00000001000000000000000A.ready", "00000002.history.ready"]);
        assert!(!root.path().join("00000001000000000000000A.partial").exists());
        assert!(keep.iter().all(|file| root.path().join(file).exists()));
    }
}

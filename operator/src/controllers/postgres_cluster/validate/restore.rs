//! What `spec.restore` asks for. Whether it can be done is found out later, by an instance.

use pgherd_core::{failover::RestoreRequest, instance::RestoreQuestion, timeline::TimelineId};
use pgherd_crds::PostgresClusterSpec;

use super::{Problems, bootstrap::validate_target};

const FIELD: &str = "spec.restore";

pub(super) fn validate_restore(spec: &PostgresClusterSpec, problems: &mut Problems) -> Option<RestoreRequest> {
    let restore = spec.restore.as_ref()?;
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let id = &restore.id;
    if id.len() > 63 || !id.chars().all(inner) || !edge(id.chars().next()) || !edge(id.chars().last()) {
        let message = "must have 1 to 63 letters, digits, '.', '_' and '-', and begin and end with a letter or digit";
        problems.add(format!("{FIELD}.id"), message);
    }
    if spec.backup.is_none() {
        problems.add(FIELD, "needs spec.backup.objectStore, which the cluster is restored from");
    }
    let backup_id = restore.backup_id.clone();
    let plain = |id: &String| (1..=80).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if backup_id.as_ref().is_some_and(|id| !plain(id)) {
        problems.add(format!("{FIELD}.backupId"), "must be an id as status.id of a Backup shows it");
    }
    let target = validate_target(restore.target.as_ref(), &format!("{FIELD}.target"), problems);
    let question = RestoreQuestion { backup_id, target, timeline: restore.timeline.map(TimelineId) };
    Some(RestoreRequest { id: id.clone(), question })
}

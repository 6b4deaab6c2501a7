//! Whether a cluster can be restored in place.

use serde::{Deserialize, Serialize};

use super::config::RecoveryTarget;
use crate::timeline::TimelineId;

/// `POST /v1/restore-check`: can the cluster be restored in place like this? Asked again and again until the answer is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreQuestion {
    /// The backup; None for the newest one from before the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// Where recovery stops.
    pub target: RecoveryTarget,
    /// Whose history recovery follows; None for the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestoreAnswer {
    /// It is being looked at.
    Checking,
    /// By this backup along this history: nothing is missing in the store, and there is room.
    Possible {
        /// The backup.
        backup_id: String,
        /// The history.
        timeline: TimelineId,
    },
    /// Why it can't be done, and what would help.
    Refused(String),
}

//! Which copy a new replica is built from: a backup with the archive's WAL, or a running instance. Decides in two
//! steps: [`choose_backup`] by what is known at once, [`confirm_archive`] when the archive was looked through. It asks
//! no store and no server.

use crate::{
    backup::{BackupRecord, FULL_FORMAT, INCREMENTAL_FORMAT},
    chain::resolve_chain,
    instance::ReplicaSourcePolicy,
    lsn::Lsn,
    quantity::render_bytes,
    timeline::{TimelineHistory, TimelineId},
};

/// Bounds of the cost decision, after Patroni's `threshold_megabytes` and `threshold_backup_size_percentage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostLimits {
    /// With more WAL to replay than this many bytes, an instance is copied.
    pub max_wal_bytes: u64,
    /// With more WAL than this share of the backup's size in percent, an instance is copied...
    pub max_wal_percent: u64,
    /// ...unless it is less than this many bytes: on a small database everything is quick.
    pub always_wal_bytes: u64,
}

impl Default for CostLimits {
    fn default() -> Self {
        Self { max_wal_bytes: 10 << 30, max_wal_percent: 30, always_wal_bytes: 1 << 30 }
    }
}

impl CostLimits {
    /// The most WAL in bytes that is worth it with a backup of `copy_bytes`.
    #[must_use]
    pub fn bound(&self, copy_bytes: u64) -> u64 {
        let share = u128::from(copy_bytes) * u128::from(self.max_wal_percent) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        share.max(self.always_wal_bytes).min(self.max_wal_bytes)
    }
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct SourceQuestion<'a> {
    /// The backups in the store, in any order.
    pub backups: &'a [BackupRecord],
    /// The primary's system identifier.
    pub system_id: &'a str,
    /// The primary's `server_version_num`.
    pub server_version: u32,
    /// The primary's history.
    pub history: &'a TimelineHistory,
    /// The primary's current LSN.
    pub primary_lsn: Lsn,
    /// What the user wants.
    pub policy: ReplicaSourcePolicy,
    /// The bounds.
    pub limits: CostLimits,
}

/// The copy to build from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A backup.
    Backup {
        /// Its id.
        id: String,
        /// One sentence with the numbers.
        reason: String,
        /// WAL to replay up to the primary's current LSN, in bytes.
        wal_bytes: u64,
        /// Bytes of the backup's archives, unpacked; of a chain those of all its members.
        copy_bytes: u64,
    },
    /// A copy from an instance.
    Instance {
        /// One sentence: why no backup.
        reason: String,
    },
}

/// Chooses the usable backup with the least WAL to replay, if it is worth it.
#[must_use]
pub fn choose_backup(question: &SourceQuestion<'_>) -> Source {
    if question.policy == ReplicaSourcePolicy::Instance {
        return instance("replicaSource is Instance".to_owned());
    }
    let mut newest_first: Vec<&BackupRecord> = question.backups.iter().collect();
    newest_first.sort_by(|a, b| (b.start_lsn, &b.id).cmp(&(a.start_lsn, &a.id)));
    let Some(newest) = newest_first.iter().max_by_key(|backup| backup.order()) else {
        return instance("the object store holds no backup of this cluster".to_owned());
    };
    let Some(backup) = newest_first.iter().find(|backup| why_unusable(backup, question).is_none()) else {
        let why = why_unusable(newest, question).unwrap_or_default();
        return instance(format!(
            "none of {} backup(s) can be used; the newest, {}, {why}",
            newest_first.len(),
            newest.id
        ));
    };
    let wal_bytes = question.primary_lsn.bytes_since(backup.start_lsn);
    let chain = resolve_chain(question.backups, &backup.id).unwrap_or_default();
    let copy_bytes = chain.iter().fold(0u64, |sum, member| sum.saturating_add(member.tar_bytes));
    let bound = question.limits.bound(copy_bytes);
    let members = if chain.len() > 1 { format!(" with the {} it is made of", chain.len()) } else { String::new() };
    let numbers = format!(
        "backup {} holds {}{members} and needs {} of WAL to reach the primary",
        backup.id,
        render_bytes(copy_bytes),
        render_bytes(wal_bytes)
    );
    let reason = match question.policy {
        ReplicaSourcePolicy::Auto if wal_bytes > bound => {
            return instance(format!(
                "{numbers}; more than {} of WAL makes a copy from an instance the quicker way",
                render_bytes(bound)
            ));
        }
        ReplicaSourcePolicy::Backup => format!("{numbers}; replicaSource is Backup"),
        _ => format!("{numbers}; up to {} it is the better way", render_bytes(bound)),
    };
    Source::Backup { id: backup.id.clone(), reason, wal_bytes, copy_bytes }
}

/// Why the backup can't become a replica of the primary, as the end of a sentence; None when it can.
fn why_unusable(backup: &BackupRecord, question: &SourceQuestion<'_>) -> Option<String> {
    let (theirs, ours) = (backup.server_version / 10_000, question.server_version / 10_000);
    if ![FULL_FORMAT, INCREMENTAL_FORMAT].contains(&backup.format) {
        return Some(format!("has the format {}, which this version does not know", backup.format));
    }
    if backup.system_id != question.system_id {
        return Some(format!("is of another database system ({} instead of {})", backup.system_id, question.system_id));
    }
    if theirs != ours {
        return Some(format!("is of PostgreSQL {theirs}, the primary of {ours}"));
    }
    if let Err(error) = resolve_chain(question.backups, &backup.id) {
        return Some(format!("cannot be restored: {error}"));
    }
    if !question.history.contains(backup.timeline, backup.stop_lsn) {
        let left = question.history.ancestors.iter().find(|entry| entry.timeline == backup.timeline);
        let left = left.map_or_else(
            || "which is none of the primary's history".to_owned(),
            |entry| format!("which the primary's history left at {}, before the backup's end", entry.switch_lsn),
        );
        return Some(format!("ends at {} of timeline {}, {left}", backup.stop_lsn, backup.timeline.0));
    }
    (backup.stop_lsn > question.primary_lsn)
        .then(|| format!("ends at {}, ahead of the primary at {}", backup.stop_lsn, question.primary_lsn))
}

/// Names of the WAL files that the archive must hold so that `backup` reaches the WAL that the slot holds on the
/// upstream: history files first, then segments in the order of replay.
///
/// The upstream keeps the whole segment of the slot's restart LSN, so that one and later ones are streamed. A segment in
/// which a timeline was left is wanted on the new timeline, where PostgreSQL looks first: it begins with a copy of the
/// old one's bytes. See "readTimeLineHistory" and "XLogFileReadAnyTLI" in PostgreSQL's sources.
#[must_use]
pub fn needed_wal(backup: &BackupRecord, history: &TimelineHistory, slot_lsn: Lsn) -> Vec<String> {
    let segment_bytes = if backup.wal_segment_bytes == 0 { 16 << 20 } else { backup.wal_segment_bytes };
    let later = history.ancestors.iter().map(|entry| entry.timeline).chain([history.timeline]);
    let histories = later.filter(|timeline| *timeline > backup.timeline).map(|timeline| format!("{timeline}.history"));
    let timeline_of = |segment: u64| {
        let left = |switch: Lsn| segment >= switch.0 / segment_bytes;
        let stays = history.ancestors.iter().find(|entry| entry.timeline >= backup.timeline && !left(entry.switch_lsn));
        stays.map_or(history.timeline, |entry| entry.timeline)
    };
    let segments = backup.start_lsn.0 / segment_bytes..slot_lsn.0 / segment_bytes;
    histories.chain(segments.map(|segment| wal_file_name(timeline_of(segment), segment, segment_bytes))).collect()
}

/// The name of a segment's file: timeline, log and segment as eight hexadecimal digits each.
#[must_use]
pub fn wal_file_name(timeline: TimelineId, segment: u64, segment_bytes: u64) -> String {
    let per_log = (0x1_0000_0000 / segment_bytes.max(1)).max(1);
    format!("{timeline}{:08X}{:08X}", segment / per_log, segment % per_log)
}

/// The choice after the archive was looked through: with `missing` files the backup can't be used, whatever the policy.
#[must_use]
pub fn confirm_archive(chosen: Source, missing: &[String]) -> Source {
    match (chosen, missing.first()) {
        (Source::Backup { id, .. }, Some(first)) => instance(format!(
            "the archive lacks {} WAL file(s) between backup {id} and the primary, the first is {first}",
            missing.len()
        )),
        (chosen, _) => chosen,
    }
}

fn instance(reason: String) -> Source {
    Source::Instance { reason }
}

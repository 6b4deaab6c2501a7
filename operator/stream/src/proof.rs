//! Whether a cluster can be recovered to a target from what its store holds, before anything is given up for it: by which
//! backup, along which history, and with every WAL file in between. Reads only.

mod error;
mod stop;
mod target;

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgherd_core::{
    backup::{BackupLocation, BackupRecord, ClusterLocation},
    chain::{ChainError, resolve_chain},
    instance::RecoveryTarget,
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};

pub use self::error::ProofError;
use self::{stop::Archive, target::Target};
use crate::{
    catalogue::{CatalogueError, ReadableBackups, list_readable, resolve, resolve_system},
    restore::{list_tablespaces, render_tablespace},
    store::ObjectStore,
    wal::{self, WalError, WalName, is_archived, missing_segments},
};

/// What is asked.
#[derive(Clone, Debug)]
pub struct RecoveryQuestion {
    /// The backup; None for the newest one from before the target.
    pub backup_id: Option<String>,
    /// Where recovery stops.
    pub target: RecoveryTarget,
    /// Whose history it follows; None for the newest one in the archive that the backup lies on.
    pub timeline: Option<TimelineId>,
    /// Up to where WAL was written on that timeline; None for whatever the archive has of it.
    pub written: Option<Lsn>,
    /// Whoever restores has a place for tablespaces. An instance has none.
    pub tablespaces: bool,
    /// Now.
    pub now: Timestamp,
}

/// A recovery that lacks nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenRecovery {
    /// The backup that it begins with.
    pub backup: BackupRecord,
    /// The history that it follows.
    pub history: TimelineHistory,
    /// Room that the restore needs, in bytes: a chain is put together beside its members.
    pub needed_bytes: u64,
}

/// Proves a recovery, or names what is in its way.
///
/// # Errors
/// [`ProofError`].
pub async fn prove_recovery(
    store: &ObjectStore,
    location: &ClusterLocation,
    question: &RecoveryQuestion,
) -> Result<ProvenRecovery, ProofError> {
    let target = Target::parse(question)?;
    let found = list_readable(store, location).await?;
    let named = question.backup_id.as_deref();
    named.map_or(Ok(()), |id| found.validate_readable(id))?;
    found.skip_unreadable()?;
    let all = &found.backups;
    if let Some(id) = named.filter(|id| !all.iter().any(|backup| backup.id == **id)) {
        return Err(ProofError::NoSuchBackup(id.to_owned()));
    }
    let history = match question.timeline {
        Some(timeline) => read_history(store, location, timeline).await?,
        None => find_history(store, location, all, named).await?,
    };
    let on_history = |backup: &&BackupRecord| history.contains(backup.timeline, backup.stop_lsn);
    let backups: Vec<BackupRecord> = all.iter().filter(on_history).cloned().collect();
    let backup = choose(&backups, named, history.timeline, target)?.clone();
    let chain = find_chain(&backup, &found)?;
    if !question.tablespaces {
        chain.iter().try_for_each(|member| refuse_tablespaces(member))?;
    }
    let needed_bytes = measure(&chain);
    let written = match question.written {
        Some(written) => written,
        None => observe_end(store, location, &history, backup.wal_segment_bytes).await?,
    };
    // What was written while the backup was made is in it.
    let written = written.max(backup.stop_lsn);
    let to = target.replay_to(&backup, &backups, written);
    if to > written {
        return Err(ProofError::Ahead { target: to, timeline: history.timeline, written });
    }
    let names = list_missing(store, location, &history, &backup, to).await?;
    let (segment_bytes, stop_lsn) = (backup.wal_segment_bytes.max(1), backup.stop_lsn);
    let archive = Archive { store, location, history: &history, segment_bytes, stop_lsn };
    if !names.is_empty() {
        let reachable = match names.first().and_then(|name| segment_start(name, segment_bytes)) {
            Some(hole) => archive.find_last(hole).await,
            None => None,
        };
        return Err(ProofError::Missing { names, reachable });
    }
    // What the backup has of its own WAL is enough for its end.
    if let Target::Lsn(lsn) = target
        && lsn > stop_lsn
    {
        archive.prove_stop(lsn).await?;
    }
    Ok(ProvenRecovery { backup, history, needed_bytes })
}

/// What the archive lacks behind the end of the backup, whose own WAL is in it.
async fn list_missing(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    backup: &BackupRecord,
    to: Lsn,
) -> Result<Vec<String>, WalError> {
    if to <= backup.stop_lsn {
        return Ok(Vec::new());
    }
    let bytes = backup.wal_segment_bytes.max(1);
    // The segment in which the backup ended is in it as far as it was written then.
    let from = Lsn(backup.stop_lsn.0 / bytes * bytes);
    missing_segments(store, location, history, from, to, bytes).await
}

/// What a recovery of somebody else's data begins with, and the history that it follows (None up to the end of the backup: then the
/// archive isn't needed). Nothing is written before it is clear that the target can be reached, and that `tablespaces` can be placed.
///
/// # Errors
/// [`ProofError`].
pub async fn plan_recovery(
    store: &ObjectStore,
    from: &BackupLocation,
    target: &RecoveryTarget,
    tablespaces: bool,
    now: Timestamp,
) -> Result<(BackupLocation, BackupRecord, Option<TimelineHistory>), ProofError> {
    if *target == RecoveryTarget::Immediate {
        let (location, record) = resolve(store, from).await?;
        if !tablespaces {
            refuse_tablespaces(&record)?;
        }
        return Ok((location, record, None));
    }
    let (cluster, backup_id) = if from.backup_id.is_empty() {
        (resolve_system(store, &from.cluster).await?, None)
    } else {
        let (location, record) = resolve(store, from).await?;
        (location.cluster, Some(record.id))
    };
    let question =
        RecoveryQuestion { backup_id, target: target.clone(), timeline: None, written: None, tablespaces, now };
    let proven = prove_recovery(store, &cluster, &question).await?;
    let location = BackupLocation { cluster, backup_id: proven.backup.id.clone() };
    Ok((location, proven.backup, Some(proven.history)))
}

fn choose<'a>(
    backups: &'a [BackupRecord],
    named: Option<&str>,
    timeline: TimelineId,
    target: Target,
) -> Result<&'a BackupRecord, ProofError> {
    if let Some(id) = named {
        let found = backups.iter().find(|backup| backup.id == id);
        let named = found.ok_or_else(|| ProofError::OffHistory { id: id.to_owned(), timeline })?;
        let (stop_lsn, stopped_at) = (named.stop_lsn, named.stopped_at.clone());
        return if target.is_after(named) {
            Ok(named)
        } else {
            Err(ProofError::AfterTarget { id: id.to_owned(), stop_lsn, stopped_at })
        };
    }
    let oldest = backups.first().ok_or(ProofError::NoBackup(timeline))?;
    backups
        .iter()
        .rev()
        .find(|backup| target.is_after(backup))
        .ok_or_else(|| ProofError::TooEarly { stop_lsn: oldest.stop_lsn, stopped_at: oldest.stopped_at.clone() })
}

/// All that the backup needs. What of it cannot be read is not the same as what is missing.
fn find_chain<'a>(backup: &BackupRecord, found: &'a ReadableBackups) -> Result<Vec<&'a BackupRecord>, ProofError> {
    match resolve_chain(&found.backups, &backup.id) {
        Err(ChainError::Missing { child, parent }) => {
            found.validate_readable(&parent)?;
            Err(ChainError::Missing { child, parent }.into())
        }
        chain => Ok(chain?),
    }
}

fn refuse_tablespaces(backup: &BackupRecord) -> Result<(), ProofError> {
    let names: Vec<String> = list_tablespaces(backup).map(render_tablespace).collect();
    if names.is_empty() { Ok(()) } else { Err(ProofError::Tablespaces { id: backup.id.clone(), names }) }
}

/// What a restore writes, in bytes: all that the backup needs, and what is made of several.
fn measure(chain: &[&BackupRecord]) -> u64 {
    let bytes = chain.iter().fold(0u64, |sum, member| sum.saturating_add(member.tar_bytes));
    if chain.len() > 1 { bytes.saturating_mul(2) } else { bytes }
}

/// The newest timeline that left anything in the archive and on whose history the named backup lies, or any at all. Each restore in
/// place and each promotion begins a timeline above all others, so that is the present one, or the last one that there was.
async fn find_history(
    store: &ObjectStore,
    location: &ClusterLocation,
    backups: &[BackupRecord],
    named: Option<&str>,
) -> Result<TimelineHistory, ProofError> {
    let wanted: Vec<&BackupRecord> = backups.iter().filter(|backup| named.is_none_or(|id| backup.id == id)).collect();
    let none = || CatalogueError::NoBackup { root: location.root(), id: named.map(str::to_owned).unwrap_or_default() };
    let oldest = wanted.iter().map(|backup| backup.timeline).min().ok_or_else(none)?;
    let folders = store.list_dirs(&format!("{}/wal/", location.root())).await.map_err(WalError::from)?;
    let archived = folders.iter().filter_map(|name| u32::from_str_radix(name, 16).ok()).map(TimelineId);
    let mut timelines: BTreeSet<TimelineId> = archived.chain(wanted.iter().map(|backup| backup.timeline)).collect();
    // One that was begun and archived no segment yet has a history.
    while let Some(next) = timelines.last().and_then(|last| last.0.checked_add(1)).map(TimelineId) {
        if !is_archived(store, location, &format!("{next}.history")).await? {
            break;
        }
        timelines.insert(next);
    }
    for timeline in timelines.into_iter().rev().filter(|timeline| *timeline >= oldest) {
        let history = read_history(store, location, timeline).await?;
        if wanted.iter().any(|backup| history.contains(backup.timeline, backup.stop_lsn)) {
            return Ok(history);
        }
    }
    Err(none().into())
}

/// The history that a recovery along `timeline` follows. PostgreSQL asks for its file, whatever else it needs.
///
/// # Errors
/// [`ProofError`]; [`ProofError::Missing`] where the archive lacks it.
pub async fn read_history(
    store: &ObjectStore,
    location: &ClusterLocation,
    timeline: TimelineId,
) -> Result<TimelineHistory, ProofError> {
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = format!("{timeline}.history");
    let Some(content) = wal::read(store, location, &name).await? else {
        return Err(ProofError::Missing { names: vec![name], reachable: None });
    };
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
        .map_err(|source| ProofError::History { name, source })
}

/// The end of the last segment that the archive has of the newest timeline; where it has none, of the last before it.
async fn observe_end(
    store: &ObjectStore,
    location: &ClusterLocation,
    history: &TimelineHistory,
    segment_bytes: u64,
) -> Result<Lsn, ProofError> {
    let switched = history.ancestors.last().map_or(0, |entry| entry.switch_lsn.0);
    let folder = format!("{}/wal/{}/", location.root(), history.timeline);
    let keys = store.list(&folder).await.map_err(WalError::from)?;
    let names = keys.iter().filter_map(|(key, _)| key.rsplit('/').next()?.split('.').next());
    let ends = names.filter_map(|name| segment_start(name, segment_bytes)?.0.checked_add(segment_bytes)).map(Lsn);
    // The segment of the switch comes with the newer timeline: while that has none, nobody relies on it. (A recovery gets it from the
    // older one, if that archived it, up to the switch.)
    Ok(ends.max().unwrap_or(Lsn(switched - switched % segment_bytes.max(1))))
}

/// None for what is no segment.
fn segment_start(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let WalName::Segment { log, segment, .. } = WalName::parse(name).ok()? else { return None };
    (u64::from(log) << 32).checked_add(u64::from(segment).checked_mul(segment_bytes)?).map(Lsn)
}

#[cfg(test)]
mod tests {
    use pgherd_core::backup::{ArchiveRecord, INCREMENTAL_FORMAT, ParentRecord};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        catalogue::{UnreadableBackup, list_backups},
        store::fake::FakeStore,
    };

    proptest! {
        #[test]
        fn whatever_is_listed_begins_somewhere_or_nowhere(name in "[0-9A-Fa-f.+-]{0,30}|\\PC{0,30}", power in 0u32..64) {
            prop_assert!(segment_start(&name, 1 << power).is_none() || name.len() >= 24);
        }
    }

    fn backup(hour: u32, lsn: u64) -> BackupRecord {
        let json = format!(
            r#"{{"format":1,"id":"b{hour}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,
                "startLsn":"{}","stopLsn":"{}","startedAt":"2026-11-22T{hour:02}:00:00Z",
                "stoppedAt":"2026-11-22T{hour:02}:10:00Z","archives":[],"manifestSha256":"","tarBytes":0,
                "storedBytes":0,"walSegmentBytes":16777216}}"#,
            Lsn(lsn),
            Lsn(lsn + 100)
        );
        serde_json::from_str(&json).expect("a record")
    }

    fn question(target: RecoveryTarget, backup_id: Option<&str>) -> RecoveryQuestion {
        RecoveryQuestion {
            backup_id: backup_id.map(str::to_owned),
            target,
            timeline: Some(TimelineId(1)),
            written: None,
            tablespaces: false,
            now: "2026-11-22T12:00:00Z".parse().unwrap(),
        }
    }

    fn chosen(target: RecoveryTarget, backup_id: Option<&str>) -> Result<String, String> {
        let backups = [backup(1, 1_000), backup(5, 5_000), backup(9, 9_000)];
        let question = question(target, backup_id);
        let target = Target::parse(&question).map_err(|error| error.to_string())?;
        let found = choose(&backups, backup_id, TimelineId(1), target);
        found.map(|found| found.id.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_newest_backup_from_before_the_target_is_chosen() {
        let time = |text: &str| RecoveryTarget::Time(format!("2026-11-22T{text}:00Z"));
        assert_eq!(chosen(time("05:10"), None).unwrap(), "b5");
        assert_eq!(chosen(time("05:09"), None).unwrap(), "b1");
        assert!(chosen(time("01:00"), None).unwrap_err().contains("2026-11-22T01:10:00Z"));
        assert!(chosen(time("13:00"), None).unwrap_err().contains("future"));
        assert!(chosen(RecoveryTarget::Time("yesterday".to_owned()), None).unwrap_err().contains("target.time"));
        assert_eq!(chosen(RecoveryTarget::Lsn(Lsn(5_099)), None).unwrap(), "b1");
        assert_eq!(chosen(RecoveryTarget::Latest, None).unwrap(), "b9");
        assert_eq!(chosen(RecoveryTarget::Immediate, Some("b1")).unwrap(), "b1");
        assert!(chosen(RecoveryTarget::Lsn(Lsn(5_099)), Some("b5")).unwrap_err().contains("an older one"));
        assert!(chosen(RecoveryTarget::Latest, Some("b7")).unwrap_err().contains("b7"));
    }

    fn incremental(hour: u32, parent: &str) -> BackupRecord {
        let parent = ParentRecord { id: parent.to_owned(), manifest_sha256: String::new() };
        BackupRecord { parent: Some(parent), format: INCREMENTAL_FORMAT, ..backup(hour, u64::from(hour) * 1000) }
    }

    #[test]
    fn a_chain_with_a_member_that_cannot_be_read_is_refused_by_its_key_and_others_are_not() {
        let unreadable = UnreadableBackup { id: "b5".into(), key: "c/b5/backup.json".into(), problem: "x".into() };
        let backups = vec![backup(1, 1_000), incremental(6, "b5"), incremental(7, "b0")];
        let found = ReadableBackups { backups, unreadable: vec![unreadable] };
        let chain = |number: usize| find_chain(&found.backups[number], &found).map_err(|error| describe(&error));
        assert_eq!(chain(0).unwrap().len(), 1);
        assert!(chain(1).unwrap_err().contains("c/b5/backup.json"));
        assert!(chain(2).unwrap_err().contains("b0, which is missing"));
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_blocks_no_recovery_but_its_own() {
        let fake = FakeStore::start();
        let (store, cluster) = (fake.connect().await, fake.location());
        let (good, bad) = ("20261122T010000Z-00000001-0-1000028", "20261122T020000Z-00000001-0-2000028");
        let record = format!(
            r#"{{"format":1,"id":"{good}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"0/1000028",
            "stopLsn":"0/1000100","startedAt":"2026-11-22T01:00:00Z","stoppedAt":"2026-11-22T01:00:00Z","archives":[],
            "manifestSha256":"","tarBytes":0,"storedBytes":0,"walSegmentBytes":16777216}}"#
        );
        store.put(&format!("{}backup.json", cluster.backup_prefix(good)), record.into()).await.unwrap();
        let unreadable = format!("{}backup.json", cluster.backup_prefix(bad));
        store.put(&unreadable, r#"{"format": 9}"#.into()).await.unwrap();
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let plan = async |id: &str, target: RecoveryTarget| {
            let from = BackupLocation { cluster: cluster.clone(), backup_id: id.to_owned() };
            plan_recovery(&store, &from, &target, false, now).await.map(|(_, record, _)| record.id)
        };
        for target in [RecoveryTarget::Latest, RecoveryTarget::Immediate] {
            assert_eq!(plan("", target.clone()).await.unwrap(), good);
            assert_eq!(plan(good, target.clone()).await.unwrap(), good);
            assert!(describe(&plan(bad, target).await.unwrap_err()).contains(&unreadable));
        }
        assert!(list_backups(&store, &cluster).await.is_err(), "who deletes must know of all");
        store.delete(&format!("{}backup.json", cluster.backup_prefix(good))).await.unwrap();
        assert!(describe(&plan("", RecoveryTarget::Latest).await.unwrap_err()).contains(&unreadable));
    }

    fn describe(error: &ProofError) -> String {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    }

    #[test]
    fn tablespaces_without_a_place_are_named() {
        let mut record = backup(1, 1_000);
        assert!(refuse_tablespaces(&record).is_ok());
        for (name, path) in [("base", ""), ("16384", "/srv/fast")] {
            let (name, tablespace_path) = (name.to_owned(), path.to_owned());
            record.archives.push(ArchiveRecord { name, tablespace_path, segments: vec![], tar_bytes: 0 });
        }
        let refused = refuse_tablespaces(&record).unwrap_err().to_string();
        assert!(refused.contains("b1") && refused.contains("16384 (/srv/fast)"), "{refused}");
    }

    #[test]
    fn a_hole_after_the_next_backup_is_of_no_concern() {
        let backups = [backup(1, 1_000), backup(5, 5_000), backup(9, 9_000)];
        let to = |hour: &str| {
            Target::Time(format!("2026-11-22T{hour}:30:00Z").parse().unwrap()).replay_to(
                &backups[0],
                &backups,
                Lsn(20_000),
            )
        };
        assert_eq!(to("03"), Lsn(5_100));
        assert_eq!(to("08"), Lsn(9_100));
        assert_eq!(to("10"), Lsn(20_000));
    }

    #[test]
    fn a_segment_begins_where_its_name_says() {
        assert_eq!(segment_start("0000000200000001000000FF", 16 << 20), Some(Lsn(0x1_FF00_0000)));
        assert_eq!(segment_start("00000002.history", 16 << 20), None);
    }
}

//! What can be restored, from what the primary's agent says of the archive. A busy cluster's archive grows all the time: its
//! end alone is not worth a write, until it is ten minutes old.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use pgherd_core::{
    instance::{ArchiveStatus, EarlyBackup, RestorableWindow},
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_crds::{
    Backup,
    v1alpha1::{
        backup::BackupPhase,
        conditions::READY,
        postgres_cluster::{ArchiveFailure, RestorableStatus},
    },
};

use super::scene::Scene;
use crate::controllers::backup::{conditions::render_seconds, status::PRUNED};

/// The end of the window is published this often at most, while nothing else changes.
const END_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// A smaller lag is not published, a larger one as a power of two: it changes all the time.
const LARGE_LAG: u64 = 256 << 20;

/// The window to publish.
pub(super) fn restorable_window(scene: &Scene<'_>) -> Option<RestorableStatus> {
    scene.cluster.store.as_ref()?;
    let published = scene.cluster.status.backup.clone();
    match scene.holder_status().filter(|status| status.is_primary) {
        Some(primary) => {
            let bad = list_condemned(&scene.observed.backups, primary.history.as_ref());
            let archive = leave_out(&primary.archive, &bad);
            build_window(&archive, primary.received_lsn, published.unwrap_or_default())
        }
        None => published,
    }
}

/// Ids of the backups on the history that were found not to come back.
fn list_condemned(backups: &[Arc<Backup>], history: Option<&TimelineHistory>) -> BTreeSet<String> {
    let bad = backups.iter().filter_map(|backup| {
        let status = backup.status.as_ref()?;
        let pruned = status.conditions.iter().any(|condition| condition.type_ == READY && condition.reason == PRUNED);
        let here = status.phase == Some(BackupPhase::Completed) && !pruned;
        let stop = status.stop_lsn.as_ref()?.parse().ok()?;
        let reached = history?.contains(TimelineId(status.timeline?), stop);
        status.id.clone().filter(|_| here && reached && status.restorable == Some(false))
    });
    bad.collect()
}

/// The archive without these backups. Where none of those that the agent named is left, nothing of the window is.
fn leave_out<'a>(archive: &'a ArchiveStatus, bad: &BTreeSet<String>) -> Cow<'a, ArchiveStatus> {
    let Some(window) = archive.window.as_ref().filter(|_| !bad.is_empty()) else { return Cow::Borrowed(archive) };
    let RestorableWindow { earliest_backup, earliest_time, earliest_lsn, .. } = window.clone();
    let first = EarlyBackup { id: earliest_backup, time: earliest_time, lsn: earliest_lsn };
    let mut named = std::iter::once(&first).chain(&window.next_backups).filter(|backup| !bad.contains(&backup.id));
    let mut archive = archive.clone();
    archive.window = named.next().map(|EarlyBackup { id, time, lsn }| RestorableWindow {
        earliest_backup: id.clone(),
        earliest_time: time.clone(),
        earliest_lsn: *lsn,
        backups: window.backups.saturating_sub(u32::try_from(bad.len()).unwrap_or(u32::MAX)),
        ..window.clone()
    });
    if archive.window.is_none() {
        archive.window_error = Some("the oldest backups were found not restorable".to_owned());
    }
    Cow::Owned(archive)
}

/// WAL that the archive has yet to get, in bytes; none while nothing is known of the archive.
pub(super) fn archive_lag(archive: &ArchiveStatus, written: Lsn) -> Option<u64> {
    find_end(archive).map(|end| written.bytes_since(end))
}

fn find_end(archive: &ArchiveStatus) -> Option<Lsn> {
    let seen = archive.window.as_ref().and_then(|window| window.latest_lsn);
    archive.last_archived_lsn.max(seen)
}

fn build_window(archive: &ArchiveStatus, written: Lsn, published: RestorableStatus) -> Option<RestorableStatus> {
    let mut status = published.clone();
    if let Some(window) = &archive.window {
        status.earliest_time = Some(window.earliest_time.clone());
        status.earliest_lsn = Some(window.earliest_lsn.to_string());
        status.earliest_backup = Some(window.earliest_backup.clone());
        status.backups = Some(window.backups);
        status.gaps.clone_from(&window.gaps);
        status.gap_count = Some(window.gap_count).filter(|count| *count > 0);
    }
    // What was seen last is too old to be relied on; the condition Archiving says why.
    if archive.window_error.is_some() {
        let RestorableStatus { latest_lsn, latest_time, last_archive_failure, .. } = status;
        status = RestorableStatus { latest_lsn, latest_time, last_archive_failure, ..RestorableStatus::default() };
    }
    status.archive_lag_bytes =
        archive_lag(archive, written).and_then(|lag| round_lag(lag, published.archive_lag_bytes));
    status.last_archive_failure = find_failure(archive, published.last_archive_failure.as_ref());
    let end = find_end(archive).map(|end| end.to_string());
    let at = archive.last_archived_at_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    if end.is_some() && end != published.latest_lsn && (status != published || is_old(&published, at)) {
        status.latest_lsn = end;
        status.latest_time = at.map(render_seconds);
    }
    (status != RestorableStatus::default()).then_some(status)
}

/// A lag that is published stays so until it has doubled, or is a quarter: it must not flicker.
fn round_lag(lag: u64, published: Option<i64>) -> Option<i64> {
    let known = published.and_then(|known| u64::try_from(known).ok()).unwrap_or(0);
    if known > 0 && lag > known / 4 && lag / 2 < known {
        return published;
    }
    let power = lag.checked_ilog2().map(|power| 1_u64 << power).filter(|power| *power >= LARGE_LAG);
    power.and_then(|power| i64::try_from(power).ok())
}

fn is_old(published: &RestorableStatus, at: Option<Timestamp>) -> bool {
    let known = published.latest_time.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    match (known, at) {
        (Some(known), Some(at)) => at.duration_since(known) >= END_EVERY,
        // Of this end no time is known: it was archived before the agent started.
        (_, None) => published.latest_lsn.is_none(),
        (None, Some(_)) => true,
    }
}

/// The same words again and again are one failure.
fn find_failure(archive: &ArchiveStatus, published: Option<&ArchiveFailure>) -> Option<ArchiveFailure> {
    let Some(message) = &archive.last_error else { return published.cloned() };
    if let Some(known) = published.filter(|known| known.message == *message) {
        return Some(known.clone());
    }
    let at = archive.last_failed_at_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok())?;
    Some(ArchiveFailure { at: render_seconds(at), message: message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn archive(segments: u64, minutes: i64) -> ArchiveStatus {
        ArchiveStatus {
            last_archived: Some("000000010000000000000003".to_owned()),
            last_archived_lsn: Some(Lsn(segments * SEGMENT)),
            last_archived_at_ms: Some(minutes * 60_000),
            window: Some(RestorableWindow {
                earliest_backup: "b".to_owned(),
                earliest_time: "2026-11-22T02:00:00Z".to_owned(),
                earliest_lsn: Lsn(SEGMENT),
                backups: 2,
                latest_lsn: Some(Lsn(2 * SEGMENT)),
                ..RestorableWindow::default()
            }),
            ..ArchiveStatus::default()
        }
    }

    fn build(archive: &ArchiveStatus, published: &RestorableStatus) -> RestorableStatus {
        let written = Lsn(archive.last_archived_lsn.unwrap().0 + 100);
        build_window(archive, written, published.clone()).unwrap()
    }

    #[test]
    fn an_archive_that_grows_is_written_every_ten_minutes_and_whenever_something_else_changes() {
        let first = build(&archive(3, 0), &RestorableStatus::default());
        assert_eq!((first.latest_lsn.as_deref(), first.backups), (Some("0/3000000"), Some(2)));
        assert_eq!(first.archive_lag_bytes, None);
        assert_eq!(build(&archive(9, 9), &first), first);
        let later = build(&archive(9, 10), &first);
        assert_eq!(
            (later.latest_lsn.as_deref(), later.latest_time.as_deref()),
            (Some("0/9000000"), Some("1970-01-01T00:10:00Z"))
        );
        let mut pruned = archive(9, 1);
        pruned.window.as_mut().unwrap().backups = 1;
        assert_eq!(build(&pruned, &first).latest_lsn.as_deref(), Some("0/9000000"));
    }

    #[test]
    fn gaps_and_a_lag_are_told_and_a_failure_that_stays_is_told_once() {
        let mut bad = archive(3, 0);
        let window = bad.window.as_mut().unwrap();
        (window.gaps, window.gap_count) = (vec!["000000010000000000000002".to_owned()], 1);
        (bad.last_error, bad.last_failed_at_ms) = (Some("access denied".to_owned()), Some(60_000));
        let status = build_window(&bad, Lsn(SEGMENT * 3 + (300 << 20)), RestorableStatus::default()).unwrap();
        assert_eq!((status.gap_count, status.gaps.len()), (Some(1), 1));
        assert_eq!(status.archive_lag_bytes, Some(256 << 20));
        bad.last_failed_at_ms = Some(90_000);
        assert_eq!(build_window(&bad, Lsn(SEGMENT * 3 + (500 << 20)), status.clone()), Some(status.clone()));
        bad.last_error = None;
        let over = build_window(&bad, Lsn(SEGMENT * 3), status).unwrap();
        assert_eq!(over.last_archive_failure.unwrap().at, "1970-01-01T00:01:00Z", "it stays on record");
    }

    #[test]
    fn a_backup_that_does_not_come_back_is_no_begin_of_the_window_and_is_not_counted() {
        let backup = |id: &str, restorable: bool, timeline: u32| -> Arc<Backup> {
            let backup = serde_json::json!({
                "apiVersion": "pgherd.dev/v1alpha1", "kind": "Backup", "metadata": {"name": id}, "spec": {"clusterRef": {"name": "shop"}},
                "status": {"phase": "Completed", "id": id, "timeline": timeline, "stopLsn": "0/1", "restorable": restorable}
            });
            Arc::new(serde_json::from_value(backup).unwrap())
        };
        let history = TimelineHistory::root(TimelineId(1));
        let backups = [backup("b", false, 1), backup("c", true, 1), backup("off-history", false, 7)];
        let bad = list_condemned(&backups, Some(&history));
        assert_eq!(bad, BTreeSet::from(["b".to_owned()]));
        let mut seen = archive(3, 0);
        let next = EarlyBackup { id: "c".to_owned(), time: "2026-11-23T02:00:00Z".to_owned(), lsn: Lsn(2 * SEGMENT) };
        seen.window.as_mut().unwrap().next_backups = vec![next];
        let status = build(&leave_out(&seen, &bad), &RestorableStatus::default());
        assert_eq!((status.earliest_backup.as_deref(), status.backups), (Some("c"), Some(1)));
        assert_eq!(status.earliest_time.as_deref(), Some("2026-11-23T02:00:00Z"));
        let all = bad.into_iter().chain(["c".to_owned()]).collect();
        let none = build(&leave_out(&seen, &all), &status);
        assert_eq!((none.earliest_backup, none.backups), (None, None));
    }

    #[test]
    fn a_window_that_could_not_be_seen_for_long_is_not_shown() {
        let first = build(&archive(3, 0), &RestorableStatus::default());
        let blind = ArchiveStatus { window: None, ..archive(3, 0) };
        assert_eq!(build(&blind, &first), first, "the next primary has yet to look");
        let blind = ArchiveStatus { window_error: Some("access denied".to_owned()), ..blind };
        let status = build(&blind, &first);
        assert_eq!((status.earliest_time, status.earliest_backup, status.backups), (None, None, None));
        assert_eq!(status.latest_lsn, first.latest_lsn, "what was archived is known without a look");
    }

    #[test]
    fn a_cluster_of_which_nothing_is_known_says_nothing() {
        assert_eq!(build_window(&ArchiveStatus::default(), Lsn(5), RestorableStatus::default()), None);
    }
}

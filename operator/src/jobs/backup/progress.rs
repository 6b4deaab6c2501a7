//! Progress of a backup as its status shows it. Pure: time is an argument.

use std::time::Duration;

use pgherd_core::quantity::render_bytes;
use pgherd_crds::{
    BackupStatus,
    v1alpha1::backup::{BackupKind, BackupMethod, BackupPhase, CompressionStatus},
};

use super::outcome::BackupSummary;

/// How far a backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the data directory that were read.
    pub bytes_done: u64,
    /// The server's estimate of all bytes, once it is known.
    pub bytes_total: Option<u64>,
    /// Compressed bytes in the store.
    pub stored_bytes: u64,
    /// Time since the process began.
    pub elapsed: Duration,
}

/// The status fields of a running backup; all others are absent and thereby left as they are.
#[must_use]
pub fn build_progress_status(source_pod: &str, started_at: &str, progress: Progress) -> BackupStatus {
    let Progress { bytes_done, bytes_total, stored_bytes, elapsed } = progress;
    BackupStatus {
        phase: Some(BackupPhase::Running),
        source_pod: Some(source_pod.to_owned()),
        started_at: Some(started_at.to_owned()),
        bytes_done: Some(signed(bytes_done)),
        bytes_total: bytes_total.map(signed),
        stored_bytes: Some(signed(stored_bytes)),
        progress: bytes_total.map(|total| render_percent(bytes_done, total)),
        size: Some(render_bytes(bytes_done)),
        rate: Some(render_rate(bytes_done, elapsed)),
        duration: Some(render_duration(elapsed)),
        eta: bytes_total.map(|total| render_eta(bytes_done, total, elapsed)),
        ..BackupStatus::default()
    }
}

/// The status fields of a backup that is in the store.
#[must_use]
pub fn build_completed_status(summary: &BackupSummary) -> BackupStatus {
    let took = Duration::from_millis(summary.took_ms);
    BackupStatus {
        phase: Some(BackupPhase::Completed),
        started_at: Some(summary.started_at.clone()),
        completed_at: Some(summary.completed_at.clone()),
        bytes_done: Some(signed(summary.bytes)),
        bytes_total: Some(signed(summary.bytes)),
        stored_bytes: Some(signed(summary.stored_bytes)),
        compression: summary.levels.map(|used| CompressionStatus {
            lowest_level: used.lowest,
            highest_level: used.highest,
            mean_level: used.render_mean(),
        }),
        peak_rss_bytes: summary.peak_rss_bytes.map(signed),
        progress: Some("100%".to_owned()),
        size: Some(render_bytes(summary.bytes)),
        rate: Some(render_rate(summary.bytes, Duration::from_millis(summary.stream_ms))),
        duration: Some(render_duration(took)),
        eta: Some("0s".to_owned()),
        id: Some(summary.id.clone()),
        destination: Some(summary.destination.clone()),
        system_id: Some(summary.system_id.clone()),
        server_version: Some(summary.server_version),
        start_lsn: Some(summary.start_lsn.to_string()),
        stop_lsn: Some(summary.stop_lsn.to_string()),
        timeline: Some(summary.timeline.0),
        kind: Some(if summary.parent.is_some() { BackupKind::Incremental } else { BackupKind::Full }),
        parent: summary.parent.clone(),
        chain_length: Some(summary.chain_length),
        full_reason: summary.full_reason.clone(),
        method: Some(if summary.local { BackupMethod::Local } else { BackupMethod::Stream }),
        restorable: Some(true),
        ..BackupStatus::default()
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// `42%`. The total is an estimate that can be passed, therefore never more than 99%: only a backup that is in the store
/// has 100%.
#[must_use]
pub fn render_percent(done: u64, total: u64) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    format!("{}%", percent.min(99))
}

/// `310 MiB/s`, over the whole time.
#[must_use]
pub fn render_rate(bytes: u64, elapsed: Duration) -> String {
    let rate = u128::from(bytes) * 1000 / elapsed.as_millis().max(1);
    format!("{}/s", render_bytes(u64::try_from(rate).unwrap_or(u64::MAX)))
}

/// `47s`, `3m12s`, `1h05m`.
#[must_use]
pub fn render_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{:02}s", seconds % 60),
        _ => format!("{hours}h{minutes:02}m"),
    }
}

/// Time left at the rate so far; `unknown` before anything was read.
#[must_use]
pub fn render_eta(done: u64, total: u64, elapsed: Duration) -> String {
    if done == 0 {
        return "unknown".to_owned();
    }
    let left = u128::from(total.saturating_sub(done)) * elapsed.as_millis() / u128::from(done);
    render_duration(Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::backup::outcome::tests::summary;

    #[test]
    fn percent_never_promises_the_end() {
        assert_eq!(render_percent(0, 0), "0%");
        assert_eq!(render_percent(42, 100), "42%");
        assert_eq!(render_percent(u64::MAX, 100), "99%");
    }

    #[test]
    fn durations_and_time_left_are_short() {
        assert_eq!(render_duration(Duration::from_millis(900)), "0s");
        assert_eq!(render_duration(Duration::from_secs(192)), "3m12s");
        assert_eq!(render_duration(Duration::from_secs(3900)), "1h05m");
        assert_eq!(render_eta(0, 100, Duration::from_secs(5)), "unknown");
        assert_eq!(render_eta(25, 100, Duration::from_secs(10)), "30s");
        assert_eq!(render_eta(200, 100, Duration::from_secs(10)), "0s");
    }

    #[test]
    fn the_rate_is_bytes_over_the_whole_time() {
        assert_eq!(render_rate(1 << 30, Duration::from_secs(2)), format!("{}/s", render_bytes(1 << 29)));
        assert_eq!(render_rate(0, Duration::ZERO), format!("{}/s", render_bytes(0)));
    }

    #[test]
    fn a_progress_status_leaves_the_other_fields_alone() {
        let progress = Progress { bytes_done: 10, elapsed: Duration::from_secs(1), ..Progress::default() };
        let status = build_progress_status("shop-1", "2026-11-22T02:00:00Z", progress);
        let json = serde_json::to_value(&status).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, ["bytesDone", "duration", "phase", "rate", "size", "sourcePod", "startedAt", "storedBytes"]);
    }

    #[test]
    fn only_a_backup_in_the_store_is_restorable() {
        let status = build_completed_status(&summary());
        assert_eq!((status.restorable, status.progress.as_deref()), (Some(true), Some("100%")));
        assert_eq!(status.pitr_ready, None);
        assert_eq!(status.duration.as_deref(), Some("1m02s"));
        let compression = status.compression.unwrap();
        assert_eq!((compression.lowest_level, compression.mean_level.as_str()), (-1, "1.25"));
        assert_eq!((status.kind, status.chain_length), (Some(BackupKind::Full), Some(1)));
        let local = BackupSummary { local: true, ..summary() };
        let methods = [&summary(), &local].map(|summary| build_completed_status(summary).method);
        assert_eq!(methods, [Some(BackupMethod::Stream), Some(BackupMethod::Local)]);
        let child = BackupSummary { parent: Some("a".to_owned()), chain_length: 2, ..summary() };
        let status = build_completed_status(&child);
        assert_eq!((status.kind, status.parent.as_deref()), (Some(BackupKind::Incremental), Some("a")));
    }
}

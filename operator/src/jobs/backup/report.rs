//! Tells the Backup's status how far the backup is. Telling is best effort: nothing that fails here ever fails a backup.

use std::time::{Duration, Instant};

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use pgherd_crds::{Backup, BackupStatus};
use pgherd_stream::backup::BackupProgress;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::BackupJobConfig,
    outcome::BackupSummary,
    progress::{Progress, build_completed_status, build_progress_status},
};
use crate::telemetry::error_chain;

/// Status is patched this often at most.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// A patch that takes longer is given up.
const PATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The last status is worth this many tries; the controller has the termination message besides.
const FINAL_TRIES: u32 = 3;

/// Patches one Backup's status.
pub struct Reporter {
    api: Api<Backup>,
    name: String,
    uid: String,
    source_pod: String,
    started_at: String,
    started: Instant,
}

impl Reporter {
    /// A reporter for the Backup that the configuration names. `started_at` is RFC 3339, `started` the same moment.
    #[must_use]
    pub fn new(client: Client, config: &BackupJobConfig, started_at: String, started: Instant) -> Self {
        Self {
            api: Api::namespaced(client, &config.namespace),
            name: config.backup.clone(),
            uid: config.backup_uid.clone(),
            source_pod: config.source.pod.clone(),
            started_at,
            started,
        }
    }

    /// Reports changes until the sender is gone or `cancel` is set: a process that was told to end must not call the
    /// backup running any more.
    pub async fn report_progress(&self, mut progress: watch::Receiver<BackupProgress>, cancel: CancellationToken) {
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported: Option<BackupProgress> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let gone = progress.has_changed().is_err();
            let current = progress.borrow_and_update().clone();
            if gone {
                return;
            }
            if reported.as_ref() != Some(&current) {
                self.patch(&self.build_status(&current)).await;
                reported = Some(current);
            }
        }
    }

    /// Reports the end.
    pub async fn report_completed(&self, summary: &BackupSummary) {
        let status = BackupStatus { source_pod: Some(self.source_pod.clone()), ..build_completed_status(summary) };
        for _ in 0..FINAL_TRIES {
            if self.patch(&status).await {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn build_status(&self, progress: &BackupProgress) -> BackupStatus {
        let progress = Progress {
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            stored_bytes: progress.stored_bytes,
            elapsed: self.started.elapsed(),
        };
        build_progress_status(&self.source_pod, &self.started_at, progress)
    }

    /// True if the patch was accepted. The UID makes the API server refuse it for a Backup that only has the same name.
    async fn patch(&self, status: &BackupStatus) -> bool {
        let patch = json!({ "metadata": { "uid": self.uid }, "status": status });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.api.patch_status(&self.name, &params, &patch);
        match timeout(PATCH_TIMEOUT, request).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = error_chain(&error), "failed to report the backup's status");
                false
            }
            Err(_) => {
                tracing::warn!("the API server did not take the backup's status within {} s", PATCH_TIMEOUT.as_secs());
                false
            }
        }
    }
}

//! Who writes into a directory, and when nobody does any more. Files are written by threads, which outlast the future that began
//! them: whatever is written into holds a [`Writer`], and whoever began it returns only once all of them are gone. Where that future
//! is itself dropped, they stop at their next write, and until then nothing else of this process gets the directory.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::RestoreError;

/// Directories that something of this process may still write into.
static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// All writers of one restore, copy or import. When it is dropped they are told to stop.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    alive: TaskTracker,
    stop: CancellationToken,
}

impl Writers {
    /// One more writer.
    pub(crate) fn enter(&self) -> Writer {
        Writer { stop: self.stop.clone(), _alive: self.alive.token() }
    }

    /// Tells them to stop, and waits until all are gone.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.alive.close();
        self.alive.wait().await;
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Something that may write; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: CancellationToken,
    _alive: TaskTrackerToken,
}

impl Writer {
    /// To be asked before each write.
    ///
    /// # Errors
    /// [`RestoreError::Cancelled`] once all have to stop.
    pub(super) fn validate(&self) -> Result<(), RestoreError> {
        if self.stop.is_cancelled() { Err(RestoreError::Cancelled) } else { Ok(()) }
    }

    /// Tells all writers of the same restore to stop: it has failed.
    pub(super) fn stop_all(&self) {
        self.stop.cancel();
    }

    /// Returns when they have to stop.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// One that nobody waits for.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self { stop: CancellationToken::new(), _alive: TaskTracker::new().token() }
    }
}

fn claimed() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to write into a directory, which one at a time has.
#[derive(Debug)]
pub(super) struct Claim(PathBuf);

impl Claim {
    /// Takes it; it is let go when it is dropped.
    ///
    /// # Errors
    /// [`RestoreError::TargetNotEmpty`] while what was broken off before still writes.
    pub(super) fn take(path: &Path) -> Result<Self, RestoreError> {
        if claimed().insert(path.to_owned()) {
            return Ok(Self(path.to_owned()));
        }
        Err(RestoreError::TargetNotEmpty { path: path.to_owned(), incomplete: true })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        claimed().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::OpenOptionsExt, sync::Arc, time::Duration};

    use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
    use tokio::{sync::watch, time::timeout};

    use super::*;
    use crate::{
        backup::render_object_name,
        index::IndexEntry,
        restore::{
            RestoreProgress, Target,
            plan::{ArchivePlan, FrameRun, ObjectPlan},
            read_archives,
            sealed::ArchiveSource,
        },
        store::fake::FakeStore,
        tar::{TarKind, tests::archive},
    };

    #[tokio::test]
    async fn whoever_ends_waits_for_the_last_writer_which_writes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pgdata");
        let writers = Writers::default();
        let target = Target::prepare(&root, writers.enter()).unwrap();
        let open = target.open("base/1/2", 0o600).unwrap();
        let mut end = Box::pin(writers.end());
        assert!(timeout(Duration::from_millis(50), &mut end).await.is_err(), "there is one");
        let is_refused = |outcome: Result<(), RestoreError>| matches!(outcome, Err(RestoreError::Cancelled));
        assert!(is_refused(target.write_at(&open, "base/1/2", b"late", 0)));
        assert!(is_refused(target.make_directory("base/2")) && is_refused(target.write_file("late", b"")));
        assert!(is_refused(target.finish()));
        end.await;
        assert_eq!(fs::read(root.join("base/1/2")).unwrap(), b"");
    }

    #[tokio::test]
    async fn a_directory_that_is_still_written_into_is_not_given_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pgdata");
        let writers = Writers::default();
        let target = Target::prepare(&root, writers.enter()).unwrap();
        // As when the future of a restore is dropped, and somebody makes room for the next.
        drop(writers);
        fs::remove_dir_all(&root).unwrap();
        let next = || Target::prepare(&root, Writer::alone());
        assert!(matches!(next(), Err(RestoreError::TargetNotEmpty { incomplete: true, .. })));
        assert!(target.open("base/1/2", 0o600).is_err());
        assert!(!root.exists());
        drop(target);
        next().unwrap();
    }

    /// Two runs, of which the larger one is damaged.
    async fn store_archive(fake: &FakeStore, content: &[u8]) -> ArchivePlan {
        let store = fake.connect().await;
        let tar = archive(&[("held".to_owned(), content.to_vec())]);
        let good = zstd::bulk::compress(&tar, 1).unwrap();
        let (mut objects, mut runs) = (Vec::new(), Vec::new());
        for (number, body) in [good, vec![0; 8 << 20]].into_iter().enumerate() {
            let stored = body.len() as u64;
            objects.push(ObjectPlan { stored, plain: stored });
            let frame = (u32::try_from(stored).unwrap(), u32::try_from(tar.len()).unwrap());
            runs.push(FrameRun { object: number, offset: 0, stored, frames: vec![frame], tar_offset: 0 });
            store.put(&format!("b/{}", render_object_name("base", number, false)), body.into()).await.unwrap();
        }
        let (size, crc32c) = (content.len() as u64, crc32c::crc32c(content));
        let path = "held".to_owned();
        let file = IndexEntry { path, kind: TarKind::File, mode: 0o600, size, offset: 512, crc32c };
        ArchivePlan { name: "base".to_owned(), files: vec![file], objects, runs }
    }

    #[tokio::test]
    async fn a_restore_that_failed_has_no_writer_left() {
        let fake = FakeStore::start();
        let plan = store_archive(&fake, &[1; 600]).await;
        let dir = tempfile::tempdir().unwrap();
        let target = Arc::new(Target::prepare(&dir.path().join("pgdata"), Writer::alone()).unwrap());
        // Whoever writes into it hangs until somebody reads.
        let held = dir.path().join("pgdata/held");
        mkfifo(&held, Mode::S_IRWXU).unwrap();
        let (store, progress) = (fake.connect().await, watch::channel(RestoreProgress::default()).0);
        let source = ArchiveSource::new(&store, "b/", None);
        let mut reading = Box::pin(read_archives(&source, vec![plan], Some(&target), &progress));
        let early = timeout(Duration::from_millis(500), &mut reading).await.ok();
        let left_early = early.is_some() && Arc::strong_count(&target) > 1;
        let flags = OFlag::O_NONBLOCK.bits();
        let _reader = fs::OpenOptions::new().read(true).custom_flags(flags).open(&held).unwrap();
        let outcome = match early {
            Some(outcome) => outcome,
            None => reading.await,
        };
        assert!(matches!(outcome, Err(RestoreError::Frame { .. })), "{outcome:?}");
        assert!(!left_early && Arc::strong_count(&target) == 1);
    }
}

//! The course of a backup from local files: archives, end of the backup, WAL, manifest, as the events that a walsender would have sent.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    LocalError,
    archives::Sources,
    chunk::{Buffers, CHUNK_BYTES, ChunkWriter, PageRules, ReadChunk, Step, Sum, read_chunk},
    manifest::ManifestWriter,
    session::{BackupSession, ServerFacts, Stopped, parse_label},
    sums::FileSum,
    throttle::Throttle,
    wal::{WalSpan, send_wal},
    walk::CONTROL_FILE,
};
use crate::base_backup::BaseBackupEvent;

/// Pieces of the manifest, like those of a walsender.
const MANIFEST_PIECE: usize = 32 << 10;

/// A backup that has begun.
pub(super) struct Course {
    pub(super) session: BackupSession,
    pub(super) facts: ServerFacts,
    pub(super) sources: Arc<Sources>,
    pub(super) start_lsn: Lsn,
    pub(super) timeline: TimelineId,
    pub(super) readers: usize,
    pub(super) throttle: Throttle,
    pub(super) manifest: ManifestWriter,
    pub(super) events: mpsc::Sender<BaseBackupEvent>,
}

/// What came out of a step.
enum Done {
    Archive { name: String, path: String },
    Chunk(ReadChunk),
}

impl Course {
    /// Runs to the end. Whoever takes the events may go at any time: then it ends with [`LocalError::Stopped`].
    pub(super) async fn run(mut self) -> Result<(), LocalError> {
        self.pass(|sources, writer| sources.send(writer)).await?;
        let sources = Arc::clone(&self.sources);
        let control = spawn_blocking(move || sources.read_control()).await??;
        let stopped = self.session.stop().await?;
        let began = parse_label(&stopped.label);
        if began != Some((self.start_lsn, self.timeline)) {
            return Err(LocalError::Label(stopped.label));
        }
        let Stopped { stop_lsn, timeline, label, tablespace_map } = stopped;
        if timeline != self.timeline {
            return Err(LocalError::TimelineChanged { start: self.timeline, stop: timeline });
        }
        let (start, segment_bytes) = (self.start_lsn, self.facts.wal_segment_bytes);
        let span = WalSpan { timeline, start, stop: stop_lsn, segment_bytes };
        self.pass(move |sources, writer| {
            sources.send_known(writer, "backup_label", label.into_bytes())?;
            sources.send_known(writer, "tablespace_map", tablespace_map.into_bytes())?;
            sources.send_known(writer, CONTROL_FILE, control)?;
            send_wal(sources, span, writer)
        })
        .await?;
        let manifest = self.manifest.finish(timeline, start, stop_lsn).map_err(LocalError::Manifest)?;
        let mut manifest = manifest.decode().map_err(LocalError::Manifest)?;
        loop {
            let mut piece = Vec::with_capacity(MANIFEST_PIECE);
            let read = (&mut manifest).take(MANIFEST_PIECE as u64).read_to_end(&mut piece);
            if read.map_err(LocalError::Manifest)? == 0 {
                break;
            }
            self.events.send(BaseBackupEvent::Manifest(piece.into())).await.map_err(|_| LocalError::Stopped)?;
        }
        self.events.send(BaseBackupEvent::End { stop_lsn, timeline }).await.map_err(|_| LocalError::Stopped)?;
        self.session.close().await;
        Ok(())
    }

    /// Passes on what `send` writes, in order, while several chunks are read at the same time.
    async fn pass<F>(&mut self, send: F) -> Result<(), LocalError>
    where
        F: FnOnce(&Sources, &mut ChunkWriter) -> Result<(), LocalError> + Send + 'static,
    {
        let (steps, queue) = mpsc::channel(1);
        let limit = self.throttle.chunk_bytes(CHUNK_BYTES);
        let (sources, page_bytes) = (Arc::clone(&self.sources), self.facts.page_bytes);
        let walk = spawn_blocking(move || {
            let mut writer = ChunkWriter::new(steps, limit, page_bytes);
            send(&sources, &mut writer)?;
            writer.flush()
        });
        let rules = PageRules { page_bytes, start: self.start_lsn };
        let passed = self.pass_steps(read_steps(queue, rules).buffered(self.readers.max(1))).await;
        // When reading failed, the walk ended because nobody took its steps.
        let walked = walk.await?;
        passed.and(walked)
    }

    async fn pass_steps(&mut self, steps: impl Stream<Item = Result<Done, LocalError>>) -> Result<(), LocalError> {
        let mut steps = std::pin::pin!(steps);
        let mut sum = FileSum::new(self.throttle.chunk_bytes(CHUNK_BYTES));
        loop {
            let step = tokio::select! {
                step = steps.next() => step,
                error = self.session.watch() => return Err(error.into()),
            };
            let event = match step.transpose()? {
                None => return Ok(()),
                Some(Done::Archive { name, path }) => BaseBackupEvent::Archive { name, path },
                Some(Done::Chunk(ReadChunk { data, sums })) => {
                    for Sum { file, crc32c, length, last } in sums {
                        sum.add(crc32c, length);
                        if last {
                            let crc32c = sum.finish();
                            if !file.is_segment {
                                let added = self.manifest.add(&file.path, file.size, file.modified, crc32c);
                                added.map_err(LocalError::Manifest)?;
                            }
                        }
                    }
                    self.throttle.pass(data.as_ref().len() as u64).await;
                    BaseBackupEvent::Data(Bytes::from_owner(data))
                }
            };
            self.events.send(event).await.map_err(|_| LocalError::Stopped)?;
        }
    }
}

/// The steps of a walk as futures, each of which reads its chunk on a thread of its own.
fn read_steps(
    queue: mpsc::Receiver<Step>,
    rules: PageRules,
) -> impl Stream<Item = impl Future<Output = Result<Done, LocalError>>> {
    let buffers = Arc::new(Buffers::default());
    let steps = stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|step| (step, queue)) });
    steps.map(move |step| {
        let reading: Result<JoinHandle<Result<ReadChunk, LocalError>>, _> = match step {
            Step::Archive { name, path } => Err(Done::Archive { name, path }),
            Step::Chunk(chunk) => {
                let buffers = Arc::clone(&buffers);
                Ok(spawn_blocking(move || read_chunk(chunk, &buffers, rules)))
            }
        };
        async move {
            match reading {
                Err(archive) => Ok(archive),
                Ok(reading) => Ok(Done::Chunk(reading.await??)),
            }
        }
    })
}

//! A byte stream as a row of independent zstd frames, compressed in parallel and handed on in order.
//!
//! Every frame but an archive's last holds [`FRAME_BYTES`] of input, its content size and a checksum. Concatenated
//! frames are one legal zstd stream, so `zstd -dc` reads them; alone, each can be fetched and decoded by itself.
//!
//! Each frame has its own level, see `pgherd_core::compression`.
//!
//! Memory: `workers + 2` slots, each with one input buffer of 1 MiB, one output buffer of at most
//! `zstd_compress_bound(1 MiB)` (touched only as far as the frame is long) and a compression context. A slot is free again
//! when its frame is dropped; until then the writer waits. Nothing else is queued.

mod context;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use context::context_bytes;
use pgherd_core::compression::{LevelBounds, LevelState, Queues};
use tokio::{
    sync::mpsc::{self, error::TryRecvError},
    task::JoinHandle,
};
use zstd::bulk::{Compressor, Decompressor};

/// Input bytes of one frame.
pub const FRAME_BYTES: usize = 1 << 20;
/// A frame that says it holds more is refused, stored or decoded: each comes into memory whole. Another version may make larger
/// ones than this does.
pub const MAX_FRAME_BYTES: u32 = 32 << 20;

/// Why frames could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// zstd refused.
    #[error("zstd")]
    Zstd(#[source] io::Error),
    /// A compression task died.
    #[error("a compression task died")]
    Task(#[source] tokio::task::JoinError),
    /// The other side of the queue is gone; its own error says why.
    #[error("the frames are not taken any more")]
    Closed,
    /// A decoded frame has another size than the index says.
    #[error("a frame holds {found} bytes, the index says {expected}")]
    Size {
        /// By the index.
        expected: usize,
        /// Decoded.
        found: usize,
    },
}

/// Buffers and a context for one frame at a time.
struct Slot {
    input: Vec<u8>,
    output: Vec<u8>,
    compressor: Compressor<'static>,
    /// What the compressor is set to.
    level: i32,
}

/// A compressed frame. Dropping it frees its buffers for the next one.
pub struct Frame {
    slot: Option<Slot>,
    input_bytes: u64,
    home: mpsc::Sender<Slot>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("input_bytes", &self.input_bytes).finish_non_exhaustive()
    }
}

impl Frame {
    /// The compressed frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slot.as_ref().map(|slot| slot.output.as_slice()).unwrap_or_default()
    }

    /// How many bytes it holds when decoded.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// The level it was compressed with.
    #[must_use]
    pub fn level(&self) -> i32 {
        self.slot.as_ref().map(|slot| slot.level).unwrap_or_default()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // The channel has room for every slot; it is only closed when no frame is wanted any more.
            let _ = self.home.try_send(slot);
        }
    }
}

enum Pending {
    BeginArchive(String),
    Frame(JoinHandle<Result<Frame, FrameError>>),
    EndArchive,
}

/// What comes out, in order.
#[derive(Debug)]
pub enum FrameItem {
    /// Frames of the archive of this name follow.
    BeginArchive(String),
    /// The next frame of the archive.
    Frame(Frame),
    /// The archive is complete.
    EndArchive,
}

/// Says whether the queue behind the compressors is full.
pub type QueueGauge = Box<dyn Fn() -> bool + Send + Sync>;

/// The side that bytes are written into.
pub struct FrameWriter {
    current: Option<Slot>,
    free: mpsc::Receiver<Slot>,
    home: mpsc::Sender<Slot>,
    queue: mpsc::Sender<Pending>,
    levels: LevelState,
    parts_full: QueueGauge,
    /// For the frame that is being filled a slot had to be waited for.
    waited: bool,
    /// The frame that was finished last became smaller.
    shrinks: Arc<AtomicBool>,
}

/// The side that frames come out of.
pub struct FrameReader {
    queue: mpsc::Receiver<Pending>,
}

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").finish_non_exhaustive()
    }
}

/// Upper bound in bytes of what [`pipeline`] holds: buffers and contexts of levels up to `highest`.
#[must_use]
pub fn bounded_bytes(workers: usize, highest: i32) -> u64 {
    let buffers = FRAME_BYTES + zstd::zstd_safe::compress_bound(FRAME_BYTES);
    (count_slots(workers) * (buffers + context_bytes(highest))) as u64
}

/// A pair of a writer and a reader with `workers` frames being compressed at a time. `parts_full` is asked for each frame.
///
/// # Errors
/// [`FrameError::Zstd`] for a level that zstd does not know.
pub fn pipeline(
    bounds: LevelBounds,
    workers: usize,
    parts_full: QueueGauge,
) -> Result<(FrameWriter, FrameReader), FrameError> {
    let levels = LevelState::new(bounds);
    let slots = count_slots(workers);
    let (home, free) = mpsc::channel(slots);
    for _ in 0..slots {
        let _ = home.try_send(build_slot(levels.level()).map_err(FrameError::Zstd)?);
    }
    let (queue, frames) = mpsc::channel(slots + 1);
    let shrinks = Arc::new(AtomicBool::new(true));
    let writer = FrameWriter { current: None, free, home, queue, levels, parts_full, waited: false, shrinks };
    Ok((writer, FrameReader { queue: frames }))
}

/// One that is filled, one for each worker, and one that is taken while a worker is behind with the frame before it.
fn count_slots(workers: usize) -> usize {
    workers.max(1) + 2
}

fn build_slot(level: i32) -> io::Result<Slot> {
    let mut compressor = Compressor::new(level)?;
    compressor.include_checksum(true)?;
    compressor.include_contentsize(true)?;
    Ok(Slot {
        input: Vec::with_capacity(FRAME_BYTES),
        output: Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_BYTES)),
        compressor,
        level,
    })
}

impl FrameWriter {
    /// Begins an archive.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the reader is gone.
    pub async fn begin_archive(&mut self, name: &str) -> Result<(), FrameError> {
        self.queue.send(Pending::BeginArchive(name.to_owned())).await.map_err(|_| FrameError::Closed)
    }

    /// Appends bytes; waits while all slots are in use.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the reader is gone.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            let mut slot = match self.current.take() {
                Some(slot) => slot,
                None => self.wait_for_slot().await?,
            };
            let (now, later) = bytes.split_at((FRAME_BYTES - slot.input.len()).min(bytes.len()));
            slot.input.extend_from_slice(now);
            bytes = later;
            if slot.input.len() == FRAME_BYTES {
                self.send_frame(slot).await?;
            } else {
                self.current = Some(slot);
            }
        }
        Ok(())
    }

    /// Ends the archive: what is left becomes its last, shorter frame.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when the reader is gone.
    pub async fn end_archive(&mut self) -> Result<(), FrameError> {
        if let Some(slot) = self.current.take() {
            self.send_frame(slot).await?;
        }
        self.queue.send(Pending::EndArchive).await.map_err(|_| FrameError::Closed)
    }

    async fn wait_for_slot(&mut self) -> Result<Slot, FrameError> {
        let free = self.free.try_recv();
        self.waited = free.is_err();
        match free {
            Ok(slot) => Ok(slot),
            Err(TryRecvError::Disconnected) => Err(FrameError::Closed),
            Err(TryRecvError::Empty) => tokio::select! {
                slot = self.free.recv() => slot.ok_or(FrameError::Closed),
                () = self.queue.closed() => Err(FrameError::Closed),
            },
        }
    }

    async fn send_frame(&mut self, mut slot: Slot) -> Result<(), FrameError> {
        let shrinks = self.shrinks.load(Ordering::Relaxed);
        let queues = Queues { source_waited: self.waited, parts_full: (self.parts_full)(), shrinks };
        self.levels = self.levels.next(queues);
        let (home, level, shrinks) = (self.home.clone(), self.levels.level(), Arc::clone(&self.shrinks));
        let task = tokio::task::spawn_blocking(move || {
            compress(&mut slot, level).map_err(FrameError::Zstd)?;
            let input_bytes = slot.input.len() as u64;
            shrinks.store(slot.output.len() < slot.input.len() - slot.input.len() / 16, Ordering::Relaxed);
            slot.input.clear();
            Ok(Frame { slot: Some(slot), input_bytes, home })
        });
        self.queue.send(Pending::Frame(task)).await.map_err(|_| FrameError::Closed)
    }
}

fn compress(slot: &mut Slot, level: i32) -> io::Result<()> {
    if slot.level != level {
        slot.compressor.set_compression_level(level)?;
        slot.level = level;
    }
    slot.output.clear();
    slot.compressor.compress_to_buffer(&slot.input, &mut slot.output)?;
    Ok(())
}

impl FrameReader {
    /// The next frame in the order of the input; `None` when the writer was dropped. Only [`FrameItem::EndArchive`] says
    /// that an archive is complete.
    ///
    /// # Errors
    /// [`FrameError`].
    pub async fn next(&mut self) -> Result<Option<FrameItem>, FrameError> {
        match self.queue.recv().await {
            None => Ok(None),
            Some(Pending::BeginArchive(name)) => Ok(Some(FrameItem::BeginArchive(name))),
            Some(Pending::EndArchive) => Ok(Some(FrameItem::EndArchive)),
            Some(Pending::Frame(task)) => {
                task.await.map_err(FrameError::Task)?.map(|frame| Some(FrameItem::Frame(frame)))
            }
        }
    }
}

/// Decodes frames one after the other, with the same memory.
pub struct FrameDecoder {
    decompressor: Decompressor<'static>,
    output: Vec<u8>,
}

impl std::fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameDecoder").finish_non_exhaustive()
    }
}

impl FrameDecoder {
    /// One that has no memory yet.
    ///
    /// # Errors
    /// [`FrameError::Zstd`].
    pub fn new() -> Result<Self, FrameError> {
        Ok(Self { decompressor: Decompressor::new().map_err(FrameError::Zstd)?, output: Vec::new() })
    }

    /// The content of a frame that must hold exactly `expected` bytes.
    ///
    /// # Errors
    /// [`FrameError`]; also for a damaged frame: its checksum is verified.
    pub fn decode(&mut self, frame: &[u8], expected: usize) -> Result<&[u8], FrameError> {
        self.output.clear();
        self.output.reserve_exact(expected);
        let found = self.decompressor.decompress_to_buffer(frame, &mut self.output).map_err(FrameError::Zstd)?;
        if found == expected { Ok(&self.output) } else { Err(FrameError::Size { expected, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    async fn compress(chunks: &[Vec<u8>], workers: usize) -> Vec<(Vec<u8>, u64)> {
        let (mut writer, mut reader) = pipeline(LevelBounds::new(1, 1).unwrap(), workers, Box::new(|| false)).unwrap();
        let read = tokio::spawn(async move {
            let mut frames = Vec::new();
            while let Some(item) = reader.next().await.unwrap() {
                match item {
                    FrameItem::Frame(frame) => frames.push((frame.bytes().to_vec(), frame.input_bytes())),
                    FrameItem::BeginArchive(_) => {}
                    FrameItem::EndArchive => return frames,
                }
            }
            panic!("no end of the archive");
        });
        writer.begin_archive("base").await.unwrap();
        for chunk in chunks {
            writer.write(chunk).await.unwrap();
        }
        writer.end_archive().await.unwrap();
        read.await.unwrap()
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    #[test]
    fn frames_come_in_order_and_concatenate_to_a_plain_zstd_stream() {
        let chunks: Vec<Vec<u8>> = (0..150u32).map(|i| i.to_le_bytes().repeat(25_000)).collect();
        let frames = block_on(compress(&chunks, 3));
        let input = chunks.concat();
        assert_eq!(frames.len(), input.len().div_ceil(FRAME_BYTES));
        let joined: Vec<u8> = frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        assert!(zstd::decode_all(&joined[..]).unwrap() == input);
        let mut decoder = FrameDecoder::new().unwrap();
        for ((bytes, length), expected) in frames.iter().zip(input.chunks(FRAME_BYTES)) {
            assert!(decoder.decode(bytes, usize::try_from(*length).unwrap()).unwrap() == expected);
        }
    }

    /// The levels of 200 frames that shrink by half and are taken more slowly than they are written.
    async fn levels_of(parts_full: bool) -> Vec<i32> {
        let bounds = LevelBounds::new(-5, 6).unwrap();
        let (mut writer, mut reader) = pipeline(bounds, 1, Box::new(move || parts_full)).unwrap();
        let read = tokio::spawn(async move {
            let mut levels = Vec::new();
            while let Some(item) = reader.next().await.unwrap() {
                match item {
                    FrameItem::Frame(frame) => {
                        levels.push(frame.level());
                        // The paused clock goes on when nothing else can: each frame is taken when the writer waits for it.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    FrameItem::BeginArchive(_) => {}
                    FrameItem::EndArchive => break,
                }
            }
            levels
        });
        let random = |n: usize| n.wrapping_mul(n | 1).wrapping_mul(2_654_435_761) >> 17;
        let data: Vec<u8> = (0..FRAME_BYTES).map(|n| if n & 64 == 0 { b' ' } else { random(n) as u8 }).collect();
        writer.begin_archive("base").await.unwrap();
        for _ in 0..200 {
            writer.write(&data).await.unwrap();
        }
        writer.end_archive().await.unwrap();
        read.await.unwrap()
    }

    #[test]
    fn short_of_processor_time_the_level_falls_and_short_of_a_network_it_rises() {
        let fell = block_on(levels_of(false));
        let rose = block_on(levels_of(true));
        assert_eq!((fell.first(), fell.last()), (Some(&1), Some(&-5)));
        assert_eq!((rose.first(), rose.last()), (Some(&1), Some(&6)));
    }

    #[test]
    fn a_frame_that_holds_more_than_it_may_takes_no_memory_for_it() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        let mut decoder = FrameDecoder::new().unwrap();
        assert!(bomb.len() < 16 << 10 && decoder.decode(&bomb, 1000).is_err());
        assert!(decoder.output.capacity() < 4096, "{}", decoder.output.capacity());
    }

    #[test]
    fn a_writer_whose_reader_is_gone_fails_instead_of_waiting() {
        block_on(async {
            let (mut writer, reader) = pipeline(LevelBounds::new(1, 1).unwrap(), 1, Box::new(|| false)).unwrap();
            drop(reader);
            let data = vec![7; 3 * FRAME_BYTES];
            assert!(matches!(writer.write(&data).await, Err(FrameError::Closed)));
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_input_comes_back(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20)) {
            let frames = block_on(compress(&chunks, 2));
            let (input, joined) = (chunks.concat(), frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<u8>>());
            // An empty archive has no frame at all; a tar archive is never empty.
            prop_assert_eq!(input.is_empty(), joined.is_empty());
            prop_assert!(input.is_empty() || zstd::decode_all(&joined[..]).unwrap() == input);
        }

        #[test]
        fn a_damaged_frame_is_noticed(content in prop::collection::vec(any::<u8>(), 1..3000), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let frames = block_on(compress(std::slice::from_ref(&content), 1));
            let mut damaged = frames[0].0.clone();
            damaged[at.index(frames[0].0.len())] ^= 1 << bit;
            let mut decoder = FrameDecoder::new().unwrap();
            prop_assert!(decoder.decode(&damaged, content.len()).map_or(true, |output| output == content));
            // It is of use afterwards.
            prop_assert_eq!(decoder.decode(&frames[0].0, content.len()).unwrap(), &content[..]);
        }
    }
}

//! Pieces of the archives between the walk and the readers: a row of bytes that are known and of ranges of files that are to be read.
//! Each is read, verified and summed by itself, so that several are at the same time.
//!
//! Nothing here knows about the order of a backup; nothing is written.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use pgherd_core::{lsn::Lsn, pg::page::is_sound};
use tokio::sync::mpsc;

use super::LocalError;
use crate::tar::{TAR_BLOCK, padding};

/// Longest chunk in bytes. A reader holds one, and so does each place between it and the compressors.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
const ZEROS: [u8; TAR_BLOCK] = [0; TAR_BLOCK];
/// Files that are open for one chunk at most.
const CHUNK_FILES: usize = 64;

/// A file as its header announces it: later changes of its length are not followed.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Path below the data directory, as the manifest has it.
    pub(super) path: String,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    /// Where it lies, for errors.
    pub(super) place: PathBuf,
    pub(super) content: Content,
    /// Number of the first page in its relation, where pages have checksums.
    pub(super) first_page: Option<u32>,
    /// A WAL segment: it must not get shorter, and the manifest does not list it.
    pub(super) is_segment: bool,
}

/// Where the bytes of a file come from.
#[derive(Debug)]
pub(super) enum Content {
    Opened(File),
    Known(Vec<u8>),
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Range { file: Arc<SourceFile>, offset: u64, length: usize },
}

/// A piece of an archive.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    parts: Vec<Part>,
    bytes: usize,
    files: usize,
}

/// What the walk hands on.
#[derive(Debug)]
pub(super) enum Step {
    /// An archive begins: `base.tar` or `<oid>.tar`, and the tablespace's path.
    Archive {
        name: String,
        path: String,
    },
    Chunk(Chunk),
}

/// CRC32C of a part of a file.
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) file: Arc<SourceFile>,
    pub(super) crc32c: u32,
    pub(super) length: usize,
    /// The file is complete with it.
    pub(super) last: bool,
}

/// A chunk that was read.
#[derive(Debug)]
pub(super) struct ReadChunk {
    pub(super) data: Buffer,
    pub(super) sums: Vec<Sum>,
}

/// Puts what an archive consists of into chunks and sends them. Waits while nobody takes them.
pub(super) struct ChunkWriter {
    steps: mpsc::Sender<Step>,
    current: Chunk,
    limit: usize,
    page_bytes: usize,
}

impl ChunkWriter {
    /// Chunks of at most `limit` bytes (up to [`CHUNK_BYTES`]) in which no page is cut in two.
    pub(super) fn new(steps: mpsc::Sender<Step>, limit: usize, page_bytes: usize) -> Self {
        let limit = limit.clamp(page_bytes + TAR_BLOCK, CHUNK_BYTES.max(page_bytes + TAR_BLOCK));
        Self { steps, current: Chunk::default(), limit, page_bytes }
    }

    pub(super) fn begin_archive(&mut self, name: String, path: String) -> Result<(), LocalError> {
        self.flush()?;
        self.send(Step::Archive { name, path })
    }

    /// Bytes as they are: headers and padding.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), LocalError> {
        if self.current.bytes + bytes.len() > self.limit {
            self.flush()?;
        }
        self.current.bytes += bytes.len();
        match self.current.parts.last_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.current.parts.push(Part::Bytes(bytes.to_vec())),
        }
        Ok(())
    }

    /// A whole file after its header, with what pads it to a block.
    pub(super) fn push_file(&mut self, file: SourceFile) -> Result<(), LocalError> {
        let file = Arc::new(file);
        let mut offset = 0;
        loop {
            let left = usize::try_from(file.size - offset).unwrap_or(usize::MAX);
            let room = self.limit.saturating_sub(self.current.bytes);
            let length = if left <= room { left } else { room - room % self.page_bytes };
            if (length == 0 && left > 0) || self.current.files >= CHUNK_FILES {
                self.flush()?;
                continue;
            }
            self.current.parts.push(Part::Range { file: Arc::clone(&file), offset, length });
            self.current.bytes += length;
            self.current.files += 1;
            offset += length as u64;
            if offset == file.size {
                break;
            }
        }
        let padding = usize::try_from(padding(file.size)).unwrap_or_default();
        self.push_bytes(ZEROS.get(..padding).unwrap_or_default())
    }

    /// Sends what was collected.
    pub(super) fn flush(&mut self) -> Result<(), LocalError> {
        if self.current.parts.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.current);
        self.send(Step::Chunk(chunk))
    }

    fn send(&self, step: Step) -> Result<(), LocalError> {
        self.steps.blocking_send(step).map_err(|_| LocalError::Stopped)
    }
}

/// How pages are judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRules {
    pub(super) page_bytes: usize,
    /// Pages that changed since are not judged.
    pub(super) start: Lsn,
}

/// Reads a chunk; verifies the pages in it. Blocks.
pub(super) fn read_chunk(chunk: Chunk, buffers: &Arc<Buffers>, rules: PageRules) -> Result<ReadChunk, LocalError> {
    let mut data = Buffers::take(buffers, chunk.bytes);
    let mut sums = Vec::with_capacity(chunk.files);
    let mut rest = data.bytes.get_mut(..chunk.bytes).unwrap_or_default();
    for part in chunk.parts {
        let length = match &part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Range { length, .. } => *length,
        };
        let (target, behind) = rest.split_at_mut(length.min(rest.len()));
        rest = behind;
        match part {
            Part::Bytes(bytes) => target.copy_from_slice(&bytes),
            Part::Range { file, offset, .. } => {
                read_range(&file, offset, target, rules)?;
                let last = offset + length as u64 == file.size;
                sums.push(Sum { crc32c: crc32c::crc32c(target), file, length, last });
            }
        }
    }
    Ok(ReadChunk { data, sums })
}

/// What the file has there; zeros for what it has lost meanwhile, which WAL replay makes good.
fn read_range(file: &SourceFile, offset: u64, target: &mut [u8], rules: PageRules) -> Result<(), LocalError> {
    let found = match &file.content {
        Content::Known(bytes) => {
            let from = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
            let length = from.len().min(target.len());
            target.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            length
        }
        Content::Opened(opened) => {
            let found = read_fully(opened, offset, target).map_err(LocalError::reading(&file.place))?;
            match file.first_page {
                None => found,
                Some(first) => {
                    verify_pages(file, opened, offset, target.get_mut(..found).unwrap_or_default(), first, rules)?
                }
            }
        }
    };
    if file.is_segment && found < target.len() {
        return Err(LocalError::WalChanged(file.path.clone()));
    }
    target.get_mut(found..).unwrap_or_default().fill(0);
    Ok(())
}

/// Judges each whole page; returns how many bytes are of use: fewer when the file was cut off there meanwhile.
fn verify_pages(
    file: &SourceFile,
    opened: &File,
    offset: u64,
    found: &mut [u8],
    first: u32,
    rules: PageRules,
) -> Result<usize, LocalError> {
    let length = found.len();
    for (number, page) in found.chunks_exact_mut(rules.page_bytes).enumerate() {
        let at = offset + (number * rules.page_bytes) as u64;
        let block = first.saturating_add(u32::try_from(at / rules.page_bytes as u64).unwrap_or(u32::MAX));
        if is_sound(page, block, rules.start) {
            continue;
        }
        // The server may be in the middle of writing it: then it has another LSN afterwards.
        if read_fully(opened, at, page).map_err(LocalError::reading(&file.place))? < rules.page_bytes {
            return Ok(number * rules.page_bytes);
        }
        if !is_sound(page, block, rules.start) {
            return Err(LocalError::CorruptPage { path: file.path.clone(), block });
        }
    }
    Ok(length)
}

/// Up to the end of the file.
fn read_fully(file: &File, offset: u64, target: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = target.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Buffers that come back to be filled again: as many as are in use at the same time, and no more.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// The bytes of a chunk.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    fn take(this: &Arc<Self>, used: usize) -> Buffer {
        let free = this.free.lock().ok().and_then(|mut free| free.pop());
        let mut bytes = free.unwrap_or_default();
        if bytes.len() < used {
            bytes.resize(used.max(CHUNK_BYTES), 0);
        }
        Buffer { bytes, used, home: Arc::clone(this) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Poisoned, the backup has failed already.
        if let Ok(mut free) = self.home.free.lock() {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Opens a file that a walk came upon; `None` when it is gone.
pub(super) fn open(place: &Path) -> Result<Option<File>, LocalError> {
    use std::os::unix::fs::OpenOptionsExt;
    // What was a file a moment ago is not to become a link to somewhere else.
    let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(place) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LocalError::reading(place)(error)),
    }
}

#[cfg(test)]
mod tests {
    use pgherd_core::pg::page::checksum;
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 8192;

    fn page(block: u32, lsn: u32) -> Vec<u8> {
        let mut page = vec![block as u8 + 1; PAGE];
        page[..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_ne_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    fn source(place: &Path, announced: u64, first_page: Option<u32>) -> SourceFile {
        SourceFile {
            path: "base/5/100".into(),
            size: announced,
            modified: 0,
            place: place.to_owned(),
            content: Content::Opened(open(place).unwrap().unwrap()),
            first_page,
            is_segment: false,
        }
    }

    /// The chunks, and for each file its length and sum.
    type Passed = (Vec<Vec<u8>>, Vec<(u64, u32)>);

    /// Everything that is written, read after `between`.
    fn pass(limit: usize, files: Vec<SourceFile>, between: impl FnOnce()) -> Result<Passed, LocalError> {
        let (steps, mut queue) = mpsc::channel(1000);
        let mut writer = ChunkWriter::new(steps, limit, PAGE);
        for file in files {
            writer.push_bytes(&[b'h'; TAR_BLOCK])?;
            writer.push_file(file)?;
        }
        writer.flush()?;
        drop(writer);
        between();
        let (buffers, rules) = (Arc::new(Buffers::default()), PageRules { page_bytes: PAGE, start: Lsn(100) });
        let (mut chunks, mut sums, mut sum) = (Vec::new(), Vec::new(), 0);
        while let Ok(Step::Chunk(chunk)) = queue.try_recv() {
            let read = read_chunk(chunk, &buffers, rules)?;
            chunks.push(read.data.as_ref().to_vec());
            for part in read.sums {
                sum = crc32c::crc32c_combine(sum, part.crc32c, part.length);
                if part.last {
                    sums.push((part.file.size, std::mem::take(&mut sum)));
                }
            }
        }
        assert_eq!(buffers.free.lock().unwrap().len(), usize::from(!chunks.is_empty()), "one buffer serves them all");
        Ok((chunks, sums))
    }

    #[test]
    fn a_file_keeps_the_length_of_its_header_whatever_becomes_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let pages: Vec<u8> = (0..40).flat_map(|block| page(block, 50)).collect();
        let announced = pages.len() as u64;
        let place = |name: &str| {
            let place = dir.path().join(name);
            std::fs::write(&place, &pages).unwrap();
            place
        };
        let (shrunk, grown, gone) = (place("shrunk"), place("grown"), place("gone"));
        let files = [&shrunk, &grown, &gone].map(|place| source(place, announced, Some(0))).into();
        let resize = |place: &Path, bytes| File::options().write(true).open(place).unwrap().set_len(bytes).unwrap();
        let between = || {
            resize(&shrunk, 3 * PAGE as u64 + 100);
            resize(&grown, announced + 9 * PAGE as u64);
            std::fs::remove_file(&gone).unwrap();
        };
        let (chunks, sums) = pass(100_000, files, between).unwrap();
        let header = [b'h'; TAR_BLOCK];
        let mut cut = pages.clone();
        cut[3 * PAGE + 100..].fill(0);
        let expected = [&header[..], &cut, &header, &pages, &header, &pages].concat();
        assert!(chunks.concat() == expected);
        let sum = |bytes: &[u8]| (announced, crc32c::crc32c(bytes));
        assert_eq!(sums, [sum(&cut), sum(&pages), sum(&pages)]);
    }

    #[test]
    fn a_page_that_does_not_fit_its_checksum_is_named_and_one_that_changed_since_the_start_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("pages");
        let mut pages: Vec<u8> = (0..40).flat_map(|block| page(131_072 + block, 50)).collect();
        pages[21 * PAGE..22 * PAGE].copy_from_slice(&page(131_072 + 21, 100));
        pages[21 * PAGE + 4000] ^= 1;
        std::fs::write(&place, &pages).unwrap();
        let read = |first| pass(CHUNK_BYTES, vec![source(&place, pages.len() as u64, first)], || ());
        read(Some(131_072)).unwrap();
        read(None).unwrap();
        let mut torn = pages.clone();
        torn[30 * PAGE + 4000] ^= 1;
        std::fs::write(&place, &torn).unwrap();
        let error = read(Some(131_072)).unwrap_err();
        assert!(matches!(&error, LocalError::CorruptPage { block, .. } if *block == 131_072 + 30), "{error:?}");
        read(None).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn chunks_put_together_are_the_archive_and_no_page_is_cut(
            sizes in prop::collection::vec(prop_oneof![0usize..3000, 0usize..300_000], 0..100), limit in 0usize..300_000,
        ) {
            let contents: Vec<Vec<u8>> = sizes.iter().map(|size| (0..*size).map(|n| (n / 7) as u8).collect()).collect();
            let known = |content: &Vec<u8>| SourceFile {
                path: "x".into(),
                size: content.len() as u64,
                modified: 0,
                place: PathBuf::new(),
                content: Content::Known(content.clone()),
                first_page: None,
                is_segment: true,
            };
            let (chunks, sums) = pass(limit, contents.iter().map(known).collect(), || ()).unwrap();
            let mut expected = Vec::new();
            for content in &contents {
                expected.extend_from_slice(&[b'h'; TAR_BLOCK]);
                expected.extend_from_slice(content);
                expected.resize(expected.len().next_multiple_of(TAR_BLOCK), 0);
            }
            prop_assert!(chunks.concat() == expected);
            prop_assert!(chunks.iter().all(|chunk| chunk.len() <= limit.max(PAGE + TAR_BLOCK)));
            let wanted: Vec<_> = contents.iter().map(|content| (content.len() as u64, crc32c::crc32c(content))).collect();
            prop_assert_eq!(sums, wanted);
        }
    }
}

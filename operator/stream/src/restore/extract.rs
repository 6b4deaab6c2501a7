//! Decodes frames and writes what they hold into files, piece by piece in any order; keeps each piece's CRC32C so that whole
//! files can be checked at the end. Without a target it only checks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{RestoreError, plan::FrameRun, target::Target};
use crate::{frames::FrameDecoder, index::IndexEntry};

/// A piece of a file.
#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: u64,
    length: u64,
    crc32c: u32,
}

/// Files of one archive that are being written by several threads.
#[derive(Debug)]
pub(super) struct Extraction {
    target: Option<Arc<Target>>,
    /// By their place in the archive, not overlapping.
    files: Vec<IndexEntry>,
    pieces: Mutex<HashMap<usize, Vec<Piece>>>,
    /// Those that are not in use: as many as runs were ever written at the same time.
    decoders: Mutex<Vec<FrameDecoder>>,
}

impl Extraction {
    pub(super) fn new(target: Option<Arc<Target>>, files: Vec<IndexEntry>) -> Self {
        Self { target, files, pieces: Mutex::new(HashMap::new()), decoders: Mutex::new(Vec::new()) }
    }

    /// Makes the files that have no content, which no frame would make.
    pub(super) fn make_empty_files(&self) -> Result<(), RestoreError> {
        let Some(target) = &self.target else { return Ok(()) };
        for file in self.files.iter().filter(|file| file.size == 0) {
            target.open(&file.path, file.mode)?;
        }
        Ok(())
    }

    /// Decodes the frames of a run and writes them; returns the decoded bytes.
    pub(super) fn write_run(&self, key: &str, run: &FrameRun, body: &[u8]) -> Result<u64, RestoreError> {
        let died = |_| RestoreError::Inconsistent("a writer died".to_owned());
        let idle = self.decoders.lock().map_err(|_| died(()))?.pop();
        let begin = |source| RestoreError::Frame { key: key.to_owned(), offset: run.offset, source };
        let mut decoder = idle.map_or_else(FrameDecoder::new, Ok).map_err(begin)?;
        let (mut at, mut tar_offset) = (0usize, run.tar_offset);
        for (stored, decoded) in &run.frames {
            let damaged = |source| RestoreError::Frame { key: key.to_owned(), offset: run.offset + at as u64, source };
            let (stored, decoded) = (*stored as usize, *decoded as usize);
            let frame = body.get(at..at + stored).unwrap_or_default();
            self.write_decoded(decoder.decode(frame, decoded).map_err(damaged)?, tar_offset)?;
            at += stored;
            tar_offset += decoded as u64;
        }
        self.decoders.lock().map_err(|_| died(()))?.push(decoder);
        Ok(tar_offset - run.tar_offset)
    }

    fn write_decoded(&self, bytes: &[u8], tar_offset: u64) -> Result<(), RestoreError> {
        let end = tar_offset + bytes.len() as u64;
        let first = self.files.partition_point(|file| file.offset + file.size <= tar_offset);
        let mut found = Vec::new();
        for (number, file) in self.files.iter().enumerate().skip(first).take_while(|(_, file)| file.offset < end) {
            let from = file.offset.max(tar_offset);
            let to = (file.offset + file.size).min(end);
            if from >= to {
                continue;
            }
            let range = usize::try_from(from - tar_offset).unwrap_or(0)..usize::try_from(to - tar_offset).unwrap_or(0);
            let content = bytes.get(range).unwrap_or_default();
            let offset = from - file.offset;
            if let Some(target) = &self.target {
                let open = target.open(&file.path, file.mode)?;
                target.write_at(&open, &file.path, content, offset)?;
            }
            let piece = Piece { offset, length: content.len() as u64, crc32c: crc32c::crc32c(content) };
            found.push((number, piece));
        }
        // A poisoned lock means that another thread panicked: then nothing can be trusted.
        let mut pieces = self.pieces.lock().map_err(|_| RestoreError::Inconsistent("a writer died".to_owned()))?;
        for (number, piece) in found {
            pieces.entry(number).or_default().push(piece);
        }
        Ok(())
    }

    /// Checks every file against its checksum and gives their number.
    pub(super) fn verify(self) -> Result<u64, RestoreError> {
        let inconsistent = |_| RestoreError::Inconsistent("a writer died".to_owned());
        let mut pieces = self.pieces.into_inner().map_err(inconsistent)?;
        for (number, file) in self.files.iter().enumerate() {
            let mut written = pieces.remove(&number).unwrap_or_default();
            written.sort_by_key(|piece| piece.offset);
            let (mut length, mut crc32c) = (0u64, 0u32);
            for piece in written {
                if piece.offset != length {
                    return Err(RestoreError::Inconsistent(format!("{} has a hole at {length}", file.path)));
                }
                crc32c = combine(crc32c, length, piece);
                length += piece.length;
            }
            if length != file.size || crc32c != file.crc32c {
                let path = file.path.clone();
                return Err(RestoreError::Damaged { path, expected: file.crc32c, found: crc32c });
            }
        }
        Ok(self.files.len() as u64)
    }
}

fn combine(crc32c: u32, length: u64, piece: Piece) -> u32 {
    if length == 0 {
        return piece.crc32c;
    }
    crc32c::crc32c_combine(crc32c, piece.crc32c, usize::try_from(piece.length).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        restore::writers::Writer,
        tar::{TarKind, tests::archive},
    };
    use proptest::prelude::*;

    fn entries(files: &[(String, Vec<u8>)]) -> Vec<IndexEntry> {
        let mut offset = 0;
        let entry = |(path, content): &(String, Vec<u8>)| {
            let entry = IndexEntry {
                path: path.clone(),
                kind: TarKind::File,
                mode: 0o600,
                size: content.len() as u64,
                offset: offset + 512,
                crc32c: crc32c::crc32c(content),
            };
            offset += 512 + (content.len() as u64).next_multiple_of(512);
            entry
        };
        files.iter().map(entry).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn files_come_back_whatever_the_order_of_the_frames(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..8),
            frame_bytes in 100usize..2500,
            order in any::<prop::sample::Index>(),
        ) {
            let files: Vec<_> = contents.into_iter().enumerate().map(|(i, c)| (format!("d{}/f{i}", i % 3), c)).collect();
            let tar = archive(&files);
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("pgdata");
            let target = Arc::new(Target::prepare(&root, Writer::alone()).unwrap());
            let extraction = Extraction::new(Some(target), entries(&files));
            extraction.make_empty_files().unwrap();
            let mut runs = Vec::new();
            for (number, chunk) in tar.chunks(frame_bytes).enumerate() {
                let body = zstd::bulk::compress(chunk, 1).unwrap();
                let frame = (u32::try_from(body.len()).unwrap(), u32::try_from(chunk.len()).unwrap());
                let tar_offset = (number * frame_bytes) as u64;
                runs.push((FrameRun { object: 0, offset: 0, stored: body.len() as u64, frames: vec![frame], tar_offset }, body));
            }
            let middle = order.index(runs.len());
            runs.rotate_left(middle);
            for (run, body) in runs.iter().rev() {
                extraction.write_run("key", run, body).unwrap();
            }
            extraction.verify().unwrap();
            for (path, content) in &files {
                prop_assert_eq!(&std::fs::read(root.join(path)).unwrap(), content);
            }
        }
    }

    #[test]
    fn a_wrong_byte_or_a_missing_frame_is_noticed() {
        let files = vec![("a".to_owned(), vec![1u8; 600]), ("b".to_owned(), vec![2u8; 600])];
        let mut tar = archive(&files);
        let dir = tempfile::tempdir().unwrap();
        let extract = |tar: &[u8], name: &str| {
            let extraction = Extraction::new(
                Some(Arc::new(Target::prepare(&dir.path().join(name), Writer::alone()).unwrap())),
                entries(&files),
            );
            let body = zstd::bulk::compress(tar, 1).unwrap();
            let frame = (u32::try_from(body.len()).unwrap(), u32::try_from(tar.len()).unwrap());
            let run = FrameRun { object: 0, offset: 0, stored: body.len() as u64, frames: vec![frame], tar_offset: 0 };
            extraction.write_run("key", &run, &body).unwrap();
            extraction.verify().map(|_| ())
        };
        extract(&tar, "good").unwrap();
        assert!(matches!(extract(&tar[..600], "short"), Err(RestoreError::Damaged { .. })));
        tar[700] ^= 1;
        assert!(matches!(extract(&tar, "flipped"), Err(RestoreError::Damaged { path, .. }) if path == "a"));
    }
}

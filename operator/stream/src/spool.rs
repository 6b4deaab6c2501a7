//! Text that is written once and read later, in memory and compressed: what is told of each file until a backup's end. Of the index and
//! of a manifest about 16 bytes a file are left. No I/O.

use std::{
    collections::VecDeque,
    io::{self, BufReader, Read, Write},
};

use bytes::{Buf, Bytes};
use zstd::{Decoder, Encoder};

/// Higher ones save a tenth, and take more memory for themselves than that where files are few.
const LEVEL: i32 = 1;

/// Compresses what is written to it; [`Encoder::finish`] gives the spool.
pub(crate) type SpoolWriter = Encoder<'static, Spool>;

/// zstd frames one after the other, which are zstd again. A clone shares them; what is read of one is free when no clone has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spool(VecDeque<Bytes>);

impl Spool {
    /// A new one, to be filled.
    pub(crate) fn writer() -> io::Result<SpoolWriter> {
        let mut writer = Encoder::new(Self::default(), LEVEL)?;
        writer.include_checksum(true)?;
        Ok(writer)
    }

    /// Adds frames.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// The text again.
    pub(crate) fn decode(self) -> io::Result<impl Read + Send> {
        Decoder::with_buffer(BufReader::new(self))
    }

    /// What it consists of, compressed.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Bytes> {
        self.0.into_iter()
    }
}

impl Write for Spool {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.push_back(Bytes::copy_from_slice(piece));
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Spool {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.0.front_mut() else { return Ok(0) };
        let read = piece.reader().read(into)?;
        if piece.is_empty() {
            self.0.pop_front();
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(text: &[u8]) -> Spool {
        let mut writer = Spool::writer().unwrap();
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_was_written_in_turns_is_read_as_one() {
        let long: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let mut all = spool(&long);
        all.append(spool(b""));
        all.append(spool(b"end"));
        let (mut text, copy) = (Vec::new(), all.clone());
        all.decode().unwrap().read_to_end(&mut text).unwrap();
        assert!(text == [&long[..], b"end"].concat());
        assert_eq!(zstd::decode_all(&copy.into_pieces().collect::<Vec<_>>().concat()[..]).unwrap(), text);
    }
}

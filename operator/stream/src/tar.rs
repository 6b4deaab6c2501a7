//! A read-only scanner for the tar archives that PostgreSQL sends (plain ustar), fed with pieces of any size.
//!
//! It names the entries and computes the CRC32C of each file while the bytes pass; it keeps no file content. It accepts
//! no path that leads out of the data directory.

use serde::{Deserialize, Serialize};

/// Size of a header, and what content is padded to.
pub(crate) const TAR_BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TarKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this place.
    Symlink(String),
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Relative path without a slash at its end and without `.` and `..`.
    pub path: String,
    /// What it is.
    pub kind: TarKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of content; zero for anything but a file.
    pub size: u64,
    /// Where the content begins in the archive.
    pub offset: u64,
}

/// What the scanner found in the input.
#[derive(Debug, PartialEq, Eq)]
pub enum TarPiece<'a> {
    /// An entry begins.
    Entry(TarEntry),
    /// Content of the file that began last; never empty.
    Data(&'a [u8]),
    /// The file that began last is complete.
    EndOfFile {
        /// CRC32C of its content.
        crc32c: u32,
    },
}

/// Why an archive is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is wrong: this is not a tar archive or it is damaged.
    #[error("the tar header at byte {offset} is damaged")]
    Header {
        /// Where in the archive.
        offset: u64,
    },
    /// A number in a header is not a number.
    #[error("the tar header at byte {offset} has a malformed {field}")]
    Number {
        /// Where in the archive.
        offset: u64,
        /// Which field.
        field: &'static str,
    },
    /// The path is absolute, leads upwards, or is empty.
    #[error("the archive holds the unsafe path \"{0}\"")]
    UnsafePath(String),
    /// The path is not UTF-8.
    #[error("the archive holds a path that is not UTF-8: \"{0}\"")]
    NotUtf8(String),
    /// A kind of entry that PostgreSQL does not send.
    #[error("the archive holds \"{path}\" of the unknown type {kind:#04x}")]
    Kind {
        /// The entry.
        path: String,
        /// Its type flag.
        kind: u8,
    },
    /// Bytes follow the end mark.
    #[error("the archive goes on behind its end")]
    BehindEnd,
    /// The archive stops before its end mark.
    #[error("the archive ends early, after {0} bytes")]
    Truncated(u64),
}

#[derive(Debug)]
enum State {
    Header,
    Data { left: u64, padding: u64, crc32c: u32 },
    Padding(u64),
    End,
}

/// The scanner. Give it the archive's bytes in order, then call [`TarScanner::finish`].
#[derive(Debug)]
pub struct TarScanner {
    state: State,
    header: Box<[u8; TAR_BLOCK]>,
    filled: usize,
    zero_blocks: u8,
    position: u64,
}

impl Default for TarScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl TarScanner {
    /// A scanner at the start of an archive.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Header, header: Box::new([0; TAR_BLOCK]), filled: 0, zero_blocks: 0, position: 0 }
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes from the front of `input` up to the next piece; `None` when the input is used up.
    ///
    /// # Errors
    /// [`TarError`]; the scanner is of no use afterwards.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarPiece<'a>>, TarError> {
        loop {
            match &mut self.state {
                State::Data { left: 0, padding, crc32c } => {
                    let crc32c = *crc32c;
                    self.state = State::Padding(*padding);
                    return Ok(Some(TarPiece::EndOfFile { crc32c }));
                }
                State::Padding(0) => self.state = State::Header,
                _ if input.is_empty() => return Ok(None),
                State::Data { left, crc32c, .. } => {
                    let data = take(input, *left);
                    *left -= data.len() as u64;
                    *crc32c = crc32c::crc32c_append(*crc32c, data);
                    self.position += data.len() as u64;
                    return Ok(Some(TarPiece::Data(data)));
                }
                State::Padding(left) => {
                    let skipped = take(input, *left).len() as u64;
                    *left -= skipped;
                    self.position += skipped;
                }
                State::Header => {
                    if let Some(entry) = self.take_header(input)? {
                        return Ok(Some(TarPiece::Entry(entry)));
                    }
                }
                State::End => {
                    if input.iter().any(|byte| *byte != 0) {
                        return Err(TarError::BehindEnd);
                    }
                    self.position += input.len() as u64;
                    *input = &[];
                }
            }
        }
    }

    /// Checks that the archive came to its end mark of two zero blocks.
    ///
    /// # Errors
    /// [`TarError::Truncated`].
    pub fn finish(self) -> Result<(), TarError> {
        match self.state {
            State::End if self.position.is_multiple_of(TAR_BLOCK as u64) => Ok(()),
            _ => Err(TarError::Truncated(self.position)),
        }
    }

    fn take_header(&mut self, input: &mut &[u8]) -> Result<Option<TarEntry>, TarError> {
        let piece = take(input, (TAR_BLOCK - self.filled) as u64);
        if let Some(space) = self.header.get_mut(self.filled..self.filled + piece.len()) {
            space.copy_from_slice(piece);
        }
        self.filled += piece.len();
        self.position += piece.len() as u64;
        if self.filled < TAR_BLOCK {
            return Ok(None);
        }
        self.filled = 0;
        if self.header.iter().all(|byte| *byte == 0) {
            self.zero_blocks += 1;
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(None);
        }
        if self.zero_blocks != 0 {
            return Err(TarError::BehindEnd);
        }
        let entry = parse_header(&self.header, self.position)?;
        if entry.path.is_empty() {
            // `./`, with which `tar -C folder -c .` begins.
            return Ok(None);
        }
        let padding = padding(entry.size);
        if entry.kind == TarKind::File {
            self.state = State::Data { left: entry.size, padding, crc32c: 0 };
        }
        Ok(Some(entry))
    }
}

/// Zeros between the end of a file of `size` bytes and the next header.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % TAR_BLOCK as u64
}

fn take<'a>(input: &mut &'a [u8], limit: u64) -> &'a [u8] {
    let length = usize::try_from(limit).unwrap_or(usize::MAX).min(input.len());
    let (taken, rest) = input.split_at(length);
    *input = rest;
    taken
}

/// Parses one header; `offset` is where its content begins.
fn parse_header(header: &[u8; TAR_BLOCK], offset: u64) -> Result<TarEntry, TarError> {
    let at = offset.saturating_sub(TAR_BLOCK as u64);
    let number = |field: &'static str, range: std::ops::Range<usize>| {
        header.get(range).and_then(parse_number).ok_or(TarError::Number { offset: at, field })
    };
    let sum: u64 =
        header.iter().enumerate().map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u64::from(*byte) }).sum();
    if number("checksum", 148..156)? != sum {
        return Err(TarError::Header { offset: at });
    }
    let name = text(header, 0..100)?;
    let prefix = if header.get(257..262) == Some(b"ustar") { text(header, 345..500)? } else { String::new() };
    let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    // PostgreSQL names one directory like this: `./pg_wal/archive_status`.
    let path = path.strip_prefix("./").map_or(path.clone(), str::to_owned);
    let size = number("size", 124..136)?;
    let mode = u32::try_from(number("mode", 100..108)? & 0o7777).unwrap_or(0o600);
    let (kind, path) = match header.get(156) {
        Some(b'0' | 0) => (TarKind::File, path),
        Some(b'5') => (TarKind::Directory, path.trim_end_matches('/').to_owned()),
        Some(b'2') => (TarKind::Symlink(text(header, 157..257)?), path),
        other => return Err(TarError::Kind { path, kind: other.copied().unwrap_or_default() }),
    };
    if !path.is_empty() || kind != TarKind::Directory {
        validate_path(&path)?;
    }
    // A directory or link has no content, whatever its size field says.
    let size = if kind == TarKind::File { size } else { 0 };
    if offset.checked_add(size).is_none() {
        return Err(TarError::Number { offset: at, field: "size" });
    }
    Ok(TarEntry { path, kind, mode, size, offset })
}

fn text(header: &[u8; TAR_BLOCK], range: std::ops::Range<usize>) -> Result<String, TarError> {
    let field = header.get(range).unwrap_or_default();
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let bytes = field.get(..end).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(TarError::NotUtf8(String::from_utf8_lossy(bytes).into_owned())),
    }
}

/// An octal number between blanks, or base-256 when the first bit is set (files of 8 GiB and more).
fn parse_number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        return rest
            .iter()
            .try_fold(u64::from(first & 0x7F), |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// Accepts only relative paths of plain components: nothing in them can lead out of a directory.
///
/// # Errors
/// [`TarError::UnsafePath`].
pub fn validate_path(path: &str) -> Result<(), TarError> {
    let plain = |component: &str| !matches!(component, "" | "." | "..") && !component.contains('\0');
    if path.split('/').all(plain) { Ok(()) } else { Err(TarError::UnsafePath(path.chars().take(256).collect())) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ustar header like PostgreSQL's.
    pub(crate) fn header(path: &str, kind: u8, size: u64, link: &str) -> [u8; TAR_BLOCK] {
        let mut block = [0u8; TAR_BLOCK];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        if size < 1 << 33 {
            block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
        } else {
            block[124..136].copy_from_slice(&[&[0x80, 0, 0, 0], &size.to_be_bytes()[..]].concat());
        }
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum::<u64>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// A whole archive of files.
    pub(crate) fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, content) in files {
            out.extend_from_slice(&header(path, b'0', content.len() as u64, ""));
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(TAR_BLOCK), 0);
        }
        out.resize(out.len() + 2 * TAR_BLOCK, 0);
        out
    }

    fn scan(chunks: &[&[u8]]) -> Result<Vec<(String, Vec<u8>, u32)>, TarError> {
        let (mut scanner, mut files) = (TarScanner::new(), Vec::new());
        let mut current = (String::new(), Vec::new());
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(piece) = scanner.next(&mut input)? {
                match piece {
                    TarPiece::Entry(entry) => current = (entry.path, Vec::new()),
                    TarPiece::Data(data) => current.1.extend_from_slice(data),
                    TarPiece::EndOfFile { crc32c } => files.push((current.0.clone(), current.1.clone(), crc32c)),
                }
            }
        }
        scanner.finish()?;
        Ok(files)
    }

    proptest! {
        #[test]
        fn any_split_of_an_archive_yields_the_same_files(
            files in prop::collection::vec(("[a-z]{1,8}(/[a-z]{1,8}){0,2}", prop::collection::vec(any::<u8>(), 0..1500)), 0..6),
            cuts in prop::collection::vec(1usize..700, 1..40),
        ) {
            let bytes = archive(&files);
            let mut chunks = Vec::new();
            let (mut rest, mut cut) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (head, tail) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            let expected: Vec<_> = files.iter().map(|(p, c)| (p.clone(), c.clone(), crc32c::crc32c(c))).collect();
            prop_assert_eq!(scan(&chunks).unwrap(), expected);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = scan(&[&bytes]);
        }

        /// The header's checksum is made right again: it is no defence against somebody who means it.
        #[test]
        fn a_changed_header_names_no_way_out_and_no_more_bytes_than_a_file_can_have(
            changes in prop::collection::vec((0usize..TAR_BLOCK, prop_oneof![any::<u8>(), Just(b'/'), Just(b'.'), Just(b'7')]), 1..12),
            content in prop::collection::vec(any::<u8>(), 0..700),
        ) {
            let mut bytes = archive(&[("base/1/1259".to_owned(), content)]);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let sum: u64 = bytes[..TAR_BLOCK].iter().enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let (mut scanner, mut input, mut passed) = (TarScanner::new(), &bytes[..], 0);
            while let Ok(Some(piece)) = scanner.next(&mut input) {
                match piece {
                    TarPiece::Entry(entry) => {
                        prop_assert!(validate_path(&entry.path).is_ok(), "{}", entry.path);
                        prop_assert!(entry.offset.checked_add(entry.size).is_some() && entry.mode <= 0o7777);
                    }
                    TarPiece::Data(data) => passed += data.len(),
                    TarPiece::EndOfFile { .. } => {}
                }
            }
            prop_assert!(passed <= bytes.len() && scanner.position() <= bytes.len() as u64);
        }

        #[test]
        fn a_truncated_archive_is_never_complete(content in prop::collection::vec(any::<u8>(), 0..2000), cut in any::<prop::sample::Index>()) {
            let bytes = archive(&[("file".to_owned(), content)]);
            let end = cut.index(bytes.len());
            prop_assert!(matches!(scan(&[&bytes[..end]]), Err(TarError::Truncated(_))));
        }
    }

    #[test]
    fn sizes_above_eight_gibibytes_are_read_in_base_256() {
        let size = (1u64 << 33) + 5;
        let block = header("big", b'0', size, "");
        let mut input = &block[..];
        let piece = TarScanner::new().next(&mut input).unwrap().unwrap();
        assert!(matches!(piece, TarPiece::Entry(entry) if entry.size == size && entry.offset == 512));
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "././a", "a/.", "", "./"] {
            let block = header(path, b'0', 0, "");
            assert!(matches!(TarScanner::new().next(&mut &block[..]), Err(TarError::UnsafePath(_))), "{path}");
        }
        for path in ["pg_wal/", "./pg_wal"] {
            let block = header(path, b'5', 0, "");
            let piece = TarScanner::new().next(&mut &block[..]).unwrap();
            assert!(matches!(piece, Some(TarPiece::Entry(entry)) if entry.path == "pg_wal"));
        }
        let root = [header("./", b'5', 0, ""), header("./PG_VERSION", b'0', 0, "")].concat();
        let piece = TarScanner::new().next(&mut &root[..]).unwrap();
        assert!(
            matches!(piece, Some(TarPiece::Entry(entry)) if entry.path == "PG_VERSION"),
            "its own folder is skipped"
        );
        let device = header("sda", b'4', 0, "");
        assert!(matches!(TarScanner::new().next(&mut &device[..]), Err(TarError::Kind { .. })));
    }
}

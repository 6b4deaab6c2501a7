//! The payload of an age file: chunks of 64 KiB under ChaCha20-Poly1305, the nonce a counter and a flag on the last chunk.
//!
//! A run of chunks can be opened without the others, where its place in the file and the file's end are known.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use super::{
    AgeError, Identity, Recipient,
    header::{FileKey, derive, open_header, seal_header},
};

/// Plain bytes of every chunk but the last.
pub const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
/// Bytes of a chunk in the file.
pub const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// Random bytes between header and chunks.
const SALT_BYTES: usize = 16;

/// Bytes of all chunks in the file that hold `plain` bytes; the header comes on top.
#[must_use]
pub fn sealed_bytes(plain: u64) -> u64 {
    plain + plain.div_ceil(CHUNK_BYTES as u64).max(1) * TAG_BYTES as u64
}

fn build_key(file_key: &FileKey, salt: &[u8]) -> Result<LessSafeKey, AgeError> {
    let key = derive(&file_key[..], salt, b"payload")?;
    UnboundKey::new(&CHACHA20_POLY1305, &key[..]).map(LessSafeKey::new).map_err(|_| AgeError::KeyExchange)
}

/// Unique under a file's key: every chunk has its number, and only one is the last.
fn build_nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    if let Some(counter) = nonce.get_mut(3..11) {
        counter.copy_from_slice(&number.to_be_bytes());
    }
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts a stream chunk by chunk, in one buffer of 64 KiB.
pub struct Sealer {
    key: LessSafeKey,
    number: u64,
    chunk: Vec<u8>,
    /// `chunk` was handed out and is not part of the next one.
    sealed: bool,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A new file under a new key. Gives also what the file begins with.
    ///
    /// # Errors
    /// [`AgeError::Recipients`], [`AgeError::KeyExchange`].
    pub fn begin(recipients: &[Recipient]) -> Result<(Self, Vec<u8>), AgeError> {
        let random = SystemRandom::new();
        let (mut file_key, mut salt) = (Zeroizing::new([0; 16]), [0; SALT_BYTES]);
        random.fill(&mut file_key[..]).and_then(|()| random.fill(&mut salt)).map_err(|_| AgeError::KeyExchange)?;
        let mut begin = seal_header(recipients, &file_key)?;
        begin.extend_from_slice(&salt);
        let key = build_key(&file_key, &salt)?;
        Ok((Self { key, number: 0, chunk: Vec::with_capacity(SEALED_CHUNK_BYTES), sealed: false }, begin))
    }

    /// Takes bytes from the front of `input`; gives a chunk when one is complete and not the last, else `None`: then all of
    /// `input` was taken.
    ///
    /// # Errors
    /// [`AgeError::Chunk`].
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, AgeError> {
        self.clear_sealed();
        let (now, later) = input.split_at((CHUNK_BYTES - self.chunk.len()).min(input.len()));
        self.chunk.extend_from_slice(now);
        *input = later;
        // A full chunk may still be the last one, and that is marked as such.
        if input.is_empty() { Ok(None) } else { self.seal(false).map(Some) }
    }

    /// Gives the last chunk, which may be empty only when all is.
    ///
    /// # Errors
    /// [`AgeError::Chunk`].
    pub fn finish(&mut self) -> Result<&[u8], AgeError> {
        self.clear_sealed();
        self.seal(true)
    }

    fn clear_sealed(&mut self) {
        if std::mem::take(&mut self.sealed) {
            self.chunk.clear();
        }
    }

    fn seal(&mut self, last: bool) -> Result<&[u8], AgeError> {
        let sealed = self.key.seal_in_place_append_tag(build_nonce(self.number, last), Aad::empty(), &mut self.chunk);
        sealed.map_err(|_| AgeError::Chunk(self.number))?;
        self.number += 1;
        self.sealed = true;
        Ok(&self.chunk)
    }
}

/// What opens the chunks of one file.
pub struct Opener {
    key: LessSafeKey,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl Opener {
    /// Reads what a file begins with. Gives also where its chunks begin.
    ///
    /// # Errors
    /// [`AgeError`].
    pub fn begin(identities: &[Identity], file: &[u8]) -> Result<(Self, usize), AgeError> {
        let (file_key, header) = open_header(identities, file)?;
        let salt = file.get(header..header + SALT_BYTES).ok_or(AgeError::Truncated)?;
        Ok((Self { key: build_key(&file_key, salt)? }, header + SALT_BYTES))
    }

    /// Opens a run of chunks in place: `chunks` begins with chunk number `first`, and ends with the file's last one if
    /// `ends`, else at the end of any other.
    ///
    /// # Errors
    /// [`AgeError::Chunk`] names the first that is damaged; [`AgeError::Truncated`].
    pub fn open(&self, first: u64, ends: bool, mut chunks: Vec<u8>) -> Result<Vec<u8>, AgeError> {
        let total = chunks.len();
        if total == 0 || (!ends && !total.is_multiple_of(SEALED_CHUNK_BYTES)) {
            return Err(AgeError::Truncated);
        }
        let (mut from, mut to, mut number) = (0, 0, first);
        while from < total {
            let end = (from + SEALED_CHUNK_BYTES).min(total);
            let damaged = AgeError::Chunk(number);
            let sealed = chunks.get_mut(from..end).ok_or(damaged)?;
            let opened = self.key.open_in_place(build_nonce(number, ends && end == total), Aad::empty(), sealed);
            let length = opened.map_err(|_| damaged)?.len();
            // An empty chunk would make two files of the same bytes.
            if length == 0 && number > 0 {
                return Err(damaged);
            }
            chunks.copy_within(from..from + length, to);
            (from, to, number) = (end, to + length, number + 1);
        }
        chunks.truncate(to);
        Ok(chunks)
    }
}

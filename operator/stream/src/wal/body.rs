//! What stands in the archive for a WAL file: its bytes in one zstd frame, in an age file where there are recipients; `.history`
//! files as they are. And what tells, without any key, whether two of them hold the same file.

use std::io;

use bytes::Bytes;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use super::WalError;
use crate::{
    age::{self, Recipient},
    encryption::KeyError,
};

/// No WAL file is larger when decoded: the largest segment.
const MAX_FILE_BYTES: usize = 1 << 30;
const LEVEL: i32 = 1;
const SALT_BYTES: usize = 16;

/// Name of the entry in an encrypted object's metadata that [`render_digest`] fills.
pub(super) const DIGEST_NOTE: &str = "pgherd-digest";

fn is_compressed(name: &str) -> bool {
    !name.ends_with(".history")
}

/// The object's bytes. `key` is for errors.
pub(super) fn encode(key: &str, name: &str, content: &[u8], recipients: &[Recipient]) -> Result<Bytes, WalError> {
    if !is_compressed(name) {
        return Ok(Bytes::copy_from_slice(content));
    }
    let compress = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        compressor.compress(content)
    };
    let body = compress().map_err(|source| WalError::Decode { key: key.to_owned(), source })?;
    if recipients.is_empty() {
        return Ok(Bytes::from(body));
    }
    Ok(Bytes::from(age::seal(recipients, &body).map_err(KeyError::Seal)?))
}

/// The WAL file of a plain, or decrypted, object.
pub(super) fn decode(key: &str, name: &str, body: Vec<u8>) -> Result<Vec<u8>, WalError> {
    if !is_compressed(name) {
        return Ok(body);
    }
    let decoded = content_size(&body).and_then(|size| zstd::bulk::decompress(&body, size));
    decoded.map_err(|source| WalError::Decode { key: key.to_owned(), source })
}

/// The decoded size by the frame's header, within reason.
fn content_size(frame: &[u8]) -> io::Result<usize> {
    let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= MAX_FILE_BYTES);
    size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no zstd frame with a usable content size"))
}

/// `<salt>:<HMAC-SHA-256 of the file under that salt>`, both in hexadecimal. Two encryptions of one file have nothing else in
/// common that can be seen without an identity. ADR 0004 says what it gives away.
pub(super) fn render_digest(content: &[u8]) -> Result<String, WalError> {
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| KeyError::Seal(age::AgeError::KeyExchange))?;
    Ok(render_salted(&salt, content))
}

fn render_salted(salt: &[u8], content: &[u8]) -> String {
    let digest = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), content);
    format!("{}:{}", render_hex(salt), render_hex(digest.as_ref()))
}

/// Whether a digest is of these bytes; `None` when it is no digest of this form.
pub(super) fn fits_digest(digest: &str, content: &[u8]) -> Option<bool> {
    let (salt, hex) = digest.split_once(':')?;
    let salt = parse_hex(salt).filter(|salt| salt.len() == SALT_BYTES)?;
    (hex.len() == 64).then(|| render_salted(&salt, content) == digest)
}

fn render_hex(bytes: &[u8]) -> String {
    crate::manifest::render_hex(bytes)
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::wal::WalName;
    use crate::wal::segment::{tests::segment, validate_segment};
    use proptest::prelude::*;

    const NAME: &str = "000000010000000000000003";

    #[test]
    fn a_body_that_says_it_is_larger_than_any_segment_is_refused_unread() {
        // The head of a frame with a content size of 8 bytes, and one raw block.
        for size in [(1u64 << 30) + 1, u64::MAX] {
            let frame = [&[0x28, 0xB5, 0x2F, 0xFD, 0xE0][..], &size.to_le_bytes(), &[0x09, 0, 0, b'x']].concat();
            assert!(matches!(decode("k", NAME, frame), Err(WalError::Decode { key, .. }) if key == "k"), "{size}");
        }
        // What is flushed before its end does not know its size.
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(b"without its size").unwrap();
        encoder.flush().unwrap();
        assert!(decode("k", NAME, encoder.finish().unwrap()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_body_is_the_same_segment_or_an_error(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<Option<prop::sample::Index>>(),
        ) {
            let good = segment(1, 0x30_0000, 77);
            let mut body = encode("k", NAME, &good, &[]).unwrap().to_vec();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            if let Ok(decoded) = decode("k", NAME, body) {
                prop_assert!(decoded == good);
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_segment_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode("k", NAME, bytes.clone());
            let _ = fits_digest(&String::from_utf8_lossy(&bytes), b"wal");
            prop_assert!(validate_segment(&bytes, NAME, WalName::parse(NAME).unwrap(), "77").is_err());
        }
    }

    #[test]
    fn a_digest_fits_the_same_bytes_only_and_never_looks_the_same() {
        let (one, again) = (render_digest(b"wal").unwrap(), render_digest(b"wal").unwrap());
        assert_ne!(one, again);
        for digest in [&one, &again] {
            assert_eq!(fits_digest(digest, b"wal"), Some(true));
            assert_eq!(fits_digest(digest, b"wa1"), Some(false));
        }
        for wrong in ["", ":", "00:11", "sha256", &one[1..], &one[..90], "\u{e4}\u{e4}:x"] {
            assert_eq!(fits_digest(wrong, b"wal"), None, "{wrong}");
        }
    }
}

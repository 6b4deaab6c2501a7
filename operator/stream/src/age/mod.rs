//! The age file format, version 1 (<https://age-encryption.org/v1>), with X25519 recipients: enough to write files that
//! `age -d` opens, to open what `age -r` wrote, and to open any run of chunks of a file without the rest of it.
//!
//! Only the framing is ours. The cipher, the key derivation and the MAC are ring's, the curve is curve25519-dalek's. Nothing
//! here reads a file, logs, or shows a secret in an error. ADR 0004 says why this is not the `age` crate.

mod header;
mod keys;
mod payload;

pub use header::{MAX_HEADER_BYTES, MAX_RECIPIENTS, open_header, seal_header};
pub use keys::{Identity, KeyTextError, Recipient};
pub use payload::{CHUNK_BYTES, Opener, SEALED_CHUNK_BYTES, Sealer, sealed_bytes};

/// Why a file cannot be opened or made. Nothing in it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    /// The header is not one of age's version 1.
    #[error("it does not begin with the header of an age file: {0}")]
    Header(&'static str),
    /// No identity opens it.
    #[error("none of the identities opens it")]
    NoMatch,
    /// The header was changed after it was made.
    #[error("its header is damaged: the MAC is wrong")]
    Mac,
    /// A chunk was changed, moved or cut off.
    #[error("chunk {0} of its payload is damaged")]
    Chunk(u64),
    /// The payload ends where no payload can end.
    #[error("its payload is cut off")]
    Truncated,
    /// The system has no random numbers, or a recipient is no point of the curve.
    #[error("the key exchange failed")]
    KeyExchange,
    /// Nobody could ever open it, or too many.
    #[error("there must be 1 to {MAX_RECIPIENTS} recipients")]
    Recipients,
}

/// Makes a whole age file of `plain`.
///
/// # Errors
/// [`AgeError`].
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> Result<Vec<u8>, AgeError> {
    let (mut sealer, mut file) = Sealer::begin(recipients)?;
    file.reserve(plain.len() + plain.len() / CHUNK_BYTES * 16 + 16);
    let mut input = plain;
    while let Some(chunk) = sealer.push(&mut input)? {
        file.extend_from_slice(chunk);
    }
    file.extend_from_slice(sealer.finish()?);
    Ok(file)
}

/// Opens a whole age file, in the memory that it came in.
///
/// # Errors
/// [`AgeError`].
pub fn open(identities: &[Identity], mut file: Vec<u8>) -> Result<Vec<u8>, AgeError> {
    let (opener, start) = Opener::begin(identities, &file)?;
    file.drain(..start);
    opener.open(0, true, file)
}

#[cfg(test)]
mod tests;

//! The header of an age file: the file key, wrapped once for each recipient, and a MAC over all of it.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral},
    hkdf, hmac,
    rand::SystemRandom,
};
use zeroize::Zeroizing;

use super::{AgeError, Identity, Recipient};

/// A header longer than this is refused.
pub const MAX_HEADER_BYTES: usize = 64 << 10;
/// A file has no more recipients than this: their header fits into [`MAX_HEADER_BYTES`].
pub const MAX_RECIPIENTS: usize = 500;

const VERSION: &str = "age-encryption.org/v1";
const WRAP_LABEL: &[u8] = b"age-encryption.org/v1/X25519";
/// Columns of a full line of Base64.
const COLUMNS: usize = 64;
const KEY_BYTES: usize = 32;

/// What encrypts the payload's key; new for each file.
pub(super) type FileKey = Zeroizing<[u8; 16]>;

/// Wraps the file key for each recipient and gives the header.
///
/// # Errors
/// [`AgeError::Recipients`], [`AgeError::KeyExchange`].
pub fn seal_header(recipients: &[Recipient], file_key: &[u8; 16]) -> Result<Vec<u8>, AgeError> {
    if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
        return Err(AgeError::Recipients);
    }
    let mut header = format!("{VERSION}\n");
    for recipient in recipients {
        let (share, wrapped) = wrap(recipient, file_key)?;
        let encode = |bytes: &[u8]| BASE64_STANDARD_NO_PAD.encode(bytes);
        header.push_str(&format!("-> X25519 {}\n{}\n", encode(&share), encode(&wrapped)));
    }
    header.push_str("---");
    let mac = BASE64_STANDARD_NO_PAD.encode(hmac::sign(&mac_key(file_key)?, header.as_bytes()));
    header.push_str(&format!(" {mac}\n"));
    Ok(header.into_bytes())
}

/// Finds the file key with one of the identities. Gives it with the header's length in bytes.
///
/// # Errors
/// [`AgeError`].
pub fn open_header(identities: &[Identity], file: &[u8]) -> Result<(FileKey, usize), AgeError> {
    let header = parse(file)?;
    let mut file_key = None;
    for stanza in header.stanzas.iter().filter(|stanza| stanza.is("X25519")) {
        let (share, body) = stanza.x25519()?;
        for identity in identities {
            let shared = identity.agree(&share).ok_or(AgeError::Header("a share that leads to no key"))?;
            let key = derive_wrap_key(&shared[..], &share, &identity.recipient().0)?;
            if file_key.is_none() {
                file_key = unwrap(&key, &body)?;
            }
        }
    }
    let file_key = file_key.ok_or(AgeError::NoMatch)?;
    hmac::verify(&mac_key(&file_key)?, header.authenticated, &header.mac).map_err(|_| AgeError::Mac)?;
    Ok((file_key, header.bytes))
}

/// HKDF-SHA-256 to 32 bytes.
pub(super) fn derive(secret: &[u8], salt: &[u8], label: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, AgeError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let label = [label];
    let expanded = extracted.expand(&label, hkdf::HKDF_SHA256).map_err(|_| AgeError::KeyExchange)?;
    expanded.fill(&mut key[..]).map_err(|_| AgeError::KeyExchange)?;
    Ok(key)
}

fn mac_key(file_key: &[u8; 16]) -> Result<hmac::Key, AgeError> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &derive(file_key, &[], b"header")?[..]))
}

fn derive_wrap_key(shared: &[u8], share: &[u8; 32], point: &[u8; 32]) -> Result<LessSafeKey, AgeError> {
    let key = derive(shared, &[share.as_slice(), point].concat(), WRAP_LABEL)?;
    UnboundKey::new(&CHACHA20_POLY1305, &key[..]).map(LessSafeKey::new).map_err(|_| AgeError::KeyExchange)
}

/// The key is used once, so the nonce is zero, as the format says.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn wrap(recipient: &Recipient, file_key: &[u8; 16]) -> Result<([u8; 32], Vec<u8>), AgeError> {
    let exchange = |_| AgeError::KeyExchange;
    let ephemeral = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(exchange)?;
    let share = ephemeral.compute_public_key().map_err(exchange)?;
    let share: [u8; 32] = share.as_ref().try_into().map_err(|_| AgeError::KeyExchange)?;
    let theirs = UnparsedPublicKey::new(&X25519, recipient.0);
    let key = agree_ephemeral(ephemeral, &theirs, |shared| derive_wrap_key(shared, &share, &recipient.0));
    let mut wrapped = file_key.to_vec();
    let sealed = key.map_err(exchange)??.seal_in_place_append_tag(zero_nonce(), Aad::empty(), &mut wrapped);
    sealed.map_err(exchange)?;
    Ok((share, wrapped))
}

/// `None` when the stanza is for somebody else.
fn unwrap(key: &LessSafeKey, body: &[u8; 32]) -> Result<Option<FileKey>, AgeError> {
    let mut body = Zeroizing::new(*body);
    let Ok(opened) = key.open_in_place(zero_nonce(), Aad::empty(), &mut body[..]) else { return Ok(None) };
    let opened: &[u8] = opened;
    let key: [u8; 16] = opened.try_into().map_err(|_| AgeError::Header("a file key of another length"))?;
    Ok(Some(Zeroizing::new(key)))
}

struct Stanza<'a> {
    args: Vec<&'a str>,
    body: Vec<u8>,
}

impl Stanza<'_> {
    fn is(&self, kind: &str) -> bool {
        self.args.first().is_some_and(|found| *found == kind)
    }

    fn x25519(&self) -> Result<([u8; 32], [u8; 32]), AgeError> {
        let wrong = AgeError::Header("an X25519 recipient of another form");
        let [_, share] = self.args.as_slice() else { return Err(wrong) };
        let share = decode_line(share)?.try_into().map_err(|_| wrong)?;
        Ok((share, self.body.as_slice().try_into().map_err(|_| wrong)?))
    }
}

struct Header<'a> {
    stanzas: Vec<Stanza<'a>>,
    /// What the MAC is over.
    authenticated: &'a [u8],
    mac: Vec<u8>,
    bytes: usize,
}

/// Lines up to and with the one of the MAC.
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, AgeError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(AgeError::Header("it ends too early"))?;
        self.at += end + 1;
        let line = rest.get(..end).unwrap_or_default();
        std::str::from_utf8(line).map_err(|_| AgeError::Header("it is no text"))
    }
}

fn parse(file: &[u8]) -> Result<Header<'_>, AgeError> {
    let text = file.get(..MAX_HEADER_BYTES).unwrap_or(file);
    let mut lines = Lines { text, at: 0 };
    if lines.next()? != VERSION {
        return Err(AgeError::Header("another version or no age file"));
    }
    let mut stanzas = Vec::new();
    loop {
        let begin = lines.at;
        let line = lines.next()?;
        if let Some(mac) = line.strip_prefix("--- ") {
            let mac = decode_line(mac)?;
            if mac.len() != 32 || stanzas.is_empty() {
                return Err(AgeError::Header("no recipient, or a MAC of another length"));
            }
            // A passphrase stands alone: beside it no recipient proves anything.
            if stanzas.len() > 1 && stanzas.iter().any(|stanza: &Stanza<'_>| stanza.is("scrypt")) {
                return Err(AgeError::Header("a passphrase beside recipients"));
            }
            let authenticated = text.get(..begin + 3).unwrap_or_default();
            return Ok(Header { stanzas, authenticated, mac, bytes: lines.at });
        }
        stanzas.push(parse_stanza(line, &mut lines)?);
    }
}

fn parse_stanza<'a>(line: &'a str, lines: &mut Lines<'a>) -> Result<Stanza<'a>, AgeError> {
    let args = line.strip_prefix("-> ").ok_or(AgeError::Header("a line that belongs to no recipient"))?;
    let args: Vec<&str> = args.split(' ').collect();
    if args.iter().any(|arg| arg.is_empty() || !arg.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(AgeError::Header("a recipient with foreign characters"));
    }
    let mut body = Vec::new();
    loop {
        let line = lines.next()?;
        if line.len() > COLUMNS {
            return Err(AgeError::Header("a line that is too long"));
        }
        body.extend(decode_line(line)?);
        // Only a shorter line, which may be empty, ends the body.
        if line.len() < COLUMNS {
            return Ok(Stanza { args, body });
        }
    }
}

/// Base64 without padding, in its one form.
fn decode_line(text: &str) -> Result<Vec<u8>, AgeError> {
    BASE64_STANDARD_NO_PAD.decode(text).map_err(|_| AgeError::Header("Base64 that is not in order"))
}

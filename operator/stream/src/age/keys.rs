//! Recipients (`age1…`, public) and identities (`AGE-SECRET-KEY-1…`, secret) as age writes them, and what X25519 makes of them.

use std::{fmt, str::FromStr};

use bech32::{Bech32, Hrp, primitives::decode::CheckedHrpstring};
use curve25519_dalek::montgomery::MontgomeryPoint;
use zeroize::Zeroizing;

const RECIPIENT_HRP: &str = "age";
const IDENTITY_HRP: &str = "age-secret-key-";
const KEY_BYTES: usize = 32;

/// A text is no key. Says nothing of the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    /// Not Bech32, or mistyped: its checksum is wrong.
    #[error("its checksum is wrong or it has foreign characters: it is mistyped or cut off")]
    Bech32,
    /// Another kind of key.
    #[error("it does not begin with {0}")]
    Kind(&'static str),
    /// Not 32 bytes, or not in the one form that age writes.
    #[error("it is not as age-keygen writes it")]
    Form,
    /// A point that every secret leads to nothing with.
    #[error("it is not a usable point of the curve")]
    Point,
}

/// Who can open a file: the public half of an [`Identity`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub(super) [u8; KEY_BYTES]);

/// The secret half. It is wiped when dropped, and never shown.
pub struct Identity {
    secret: Zeroizing<[u8; KEY_BYTES]>,
    recipient: Recipient,
}

impl FromStr for Recipient {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let point = *parse_key(text, RECIPIENT_HRP, "age1")?;
        let recipient = Self(point);
        // The one text of a point is in lower case and has no bits to spare.
        if recipient.to_string() != text {
            return Err(KeyTextError::Form);
        }
        // Multiplied with anything these give zero: no key could be agreed on.
        if MontgomeryPoint(point).mul_clamped([0x5a; KEY_BYTES]).0 == [0; KEY_BYTES] {
            return Err(KeyTextError::Point);
        }
        Ok(recipient)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bech32::encode_to_fmt::<Bech32, _>(f, Hrp::parse_unchecked(RECIPIENT_HRP), &self.0).map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity of {}", self.recipient)
    }
}

impl FromStr for Identity {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Err(KeyTextError::Form);
        }
        parse_key(text, IDENTITY_HRP, "AGE-SECRET-KEY-1").map(Self::of)
    }
}

impl Identity {
    fn of(secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let recipient = Recipient(MontgomeryPoint::mul_base_clamped(*secret).0);
        Self { secret, recipient }
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// What this identity and the owner of `share` have in common; `None` for a share that leads to nothing.
    pub(super) fn agree(&self, share: &[u8; KEY_BYTES]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let shared = Zeroizing::new(MontgomeryPoint(*share).mul_clamped(*self.secret).0);
        (*shared != [0; KEY_BYTES]).then_some(shared)
    }
}

fn parse_key(text: &str, hrp: &str, begins: &'static str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyTextError> {
    // Told before the checksum: a key of another kind, or a password, is no mistyped key.
    if !text.get(..begins.len()).is_some_and(|head| head.eq_ignore_ascii_case(begins)) {
        return Err(KeyTextError::Kind(begins));
    }
    let parsed = CheckedHrpstring::new::<Bech32>(text).map_err(|_| KeyTextError::Bech32)?;
    if !parsed.hrp().as_str().eq_ignore_ascii_case(hrp) {
        return Err(KeyTextError::Kind(begins));
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let mut bytes = parsed.byte_iter();
    for slot in key.iter_mut() {
        *slot = bytes.next().ok_or(KeyTextError::Form)?;
    }
    if bytes.next().is_some() { Err(KeyTextError::Form) } else { Ok(key) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pair by the reference implementation; public since the first draft of the format.
    pub(crate) const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    pub(crate) const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn a_pair_of_the_reference_implementation_is_read_and_belongs_together() {
        let identity: Identity = IDENTITY.parse().unwrap();
        assert_eq!(identity.recipient().to_string(), RECIPIENT);
        assert_eq!(RECIPIENT.parse::<Recipient>().unwrap(), identity.recipient());
        assert!(!format!("{identity:?}").contains("SECRET"));
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let mistyped = RECIPIENT.replace("zvky", "zvkv");
        assert_eq!(mistyped.parse::<Recipient>(), Err(KeyTextError::Bech32));
        assert_eq!(RECIPIENT[..61].parse::<Recipient>(), Err(KeyTextError::Bech32));
        assert_eq!(RECIPIENT.to_uppercase().parse::<Recipient>(), Err(KeyTextError::Form));
        assert_eq!("ssh-ed25519 AAAA".parse::<Recipient>(), Err(KeyTextError::Kind("age1")));
        assert_eq!(IDENTITY.parse::<Recipient>(), Err(KeyTextError::Kind("age1")), "a secret where all can read it");
        assert!(matches!(RECIPIENT.parse::<Identity>(), Err(KeyTextError::Form)));
        assert!(matches!("hunter2".parse::<Identity>(), Err(KeyTextError::Form)));
        assert!(matches!(IDENTITY.to_lowercase().parse::<Identity>(), Err(KeyTextError::Form)));
        assert!(matches!("".parse::<Identity>(), Err(KeyTextError::Kind(_))));
        let short = bech32::encode::<Bech32>(Hrp::parse_unchecked("age"), &[7; 31]).unwrap();
        assert_eq!(short.parse::<Recipient>(), Err(KeyTextError::Form));
        let zero = bech32::encode::<Bech32>(Hrp::parse_unchecked("age"), &[0; 32]).unwrap();
        assert_eq!(zero.parse::<Recipient>(), Err(KeyTextError::Point));
    }
}

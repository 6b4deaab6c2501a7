//! Which keys a location is written and read with, and errors that name what to do about a missing or wrong one.
//!
//! Recipients are public and stand in the configuration. Identities are read from their file where they are needed, each time
//! anew, so that a changed file is seen; they are never kept, logged, or part of an error.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use pgherd_core::backup::{AGE_METHOD, BackupRecord, EncryptionRecord, StoreConfig};
use zeroize::Zeroizing;

use crate::age::{AgeError, Identity, KeyTextError, Recipient};

/// A file of identities is not larger: some 800 of them.
const MAX_IDENTITY_FILE: u64 = 64 << 10;

/// Why something cannot be encrypted or decrypted as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The configuration names a recipient that is none.
    #[error("the age recipient \"{text}\" cannot be used: {problem}; it must be an age1… of age-keygen")]
    Recipient {
        /// As it was given; empty where it could be a secret.
        text: String,
        /// What is wrong.
        problem: KeyTextError,
    },
    /// Something encrypted is to be read and nothing says with what.
    #[error(
        "{what} is encrypted for {recipients}, and no identity file is configured (--age-identity-file, identityFile, encryption.identitySecretRef)"
    )]
    NoIdentity {
        /// What was to be read.
        what: String,
        /// Recipients, where they are known.
        recipients: String,
    },
    /// The identity file cannot be read.
    #[error("reading the age identity file {}", path.display())]
    IdentityFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The identity file holds something else.
    #[error("the age identity file {} is not usable: {problem}", path.display())]
    IdentityText {
        /// The file.
        path: PathBuf,
        /// What is wrong, without what it holds.
        problem: String,
    },
    /// The identity belongs to somebody else.
    #[error("{what} is encrypted for {recipients}; the identity file {} opens only what is encrypted for {held}", path.display())]
    WrongIdentity {
        /// What was to be read.
        what: String,
        /// Recipients, where they are known.
        recipients: String,
        /// The identity file.
        path: PathBuf,
        /// The recipients that its identities belong to.
        held: String,
    },
    /// What is written could not be read again where it is configured so.
    #[error("the identity file {} opens none of the recipients {recipients}: what is written could not be read again; give the identity of one of them", path.display())]
    Unpaired {
        /// The identity file.
        path: PathBuf,
        /// The configured recipients.
        recipients: String,
    },
    /// An object is no age file, or damaged.
    #[error("the object {key} cannot be decrypted: {problem}")]
    Object {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: AgeError,
    },
    /// Making an age file failed.
    #[error("encrypting failed")]
    Seal(#[source] AgeError),
}

/// The keys of a store's configuration.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    recipients: Vec<Recipient>,
    identity_file: Option<PathBuf>,
}

/// Identities, with the file that they came from.
#[derive(Debug)]
pub struct Identities {
    all: Vec<Identity>,
    path: PathBuf,
}

impl Keys {
    /// Reads the recipients of a configuration; no file is opened.
    ///
    /// # Errors
    /// [`KeyError::Recipient`].
    pub fn of(config: &StoreConfig) -> Result<Self, KeyError> {
        let Some(encryption) = &config.encryption else { return Ok(Self::default()) };
        let recipients = encryption.recipients.iter().map(|text| parse_recipient(text)).collect::<Result<_, _>>()?;
        Ok(Self { recipients, identity_file: encryption.identity_file.as_ref().map(PathBuf::from) })
    }

    /// For whom what is written is encrypted; nobody when it is plain.
    #[must_use]
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// What is written is encrypted.
    #[must_use]
    pub fn seals(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// An identity file is configured.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.identity_file.is_some()
    }

    /// What a backup's record says of it; none for a plain one.
    #[must_use]
    pub fn record(&self) -> Option<EncryptionRecord> {
        let recipients = self.recipients.iter().map(ToString::to_string).collect();
        self.seals().then(|| EncryptionRecord { method: AGE_METHOD.to_owned(), recipients })
    }

    /// Reads the identities that `what`, encrypted for `recipients` (may be unknown), is opened with.
    ///
    /// # Errors
    /// [`KeyError`] names the file, never what it holds.
    pub fn identities(&self, what: &str, recipients: &[String]) -> Result<Identities, KeyError> {
        let missing = || KeyError::NoIdentity { what: what.to_owned(), recipients: render_recipients(recipients) };
        Identities::read(self.identity_file.as_deref().ok_or_else(missing)?)
    }

    /// The identities that open a backup; none for a plain one.
    ///
    /// # Errors
    /// [`KeyError`]; a wrong identity is told by the record alone.
    pub fn identities_for(&self, record: &BackupRecord) -> Result<Option<Identities>, KeyError> {
        let Some(encryption) = &record.encryption else { return Ok(None) };
        let what = format!("the backup {}", record.id);
        let identities = self.identities(&what, &encryption.recipients)?;
        if identities.all.iter().any(|own| encryption.recipients.contains(&own.recipient().to_string())) {
            return Ok(Some(identities));
        }
        Err(identities.wrong(&what, &encryption.recipients))
    }

    /// Refuses to write what the configured identity could not read again. A file that is not there yet proves nothing: it may
    /// come with the next start of a pod, and nothing must wait for that.
    ///
    /// # Errors
    /// [`KeyError::Unpaired`].
    pub fn validate_pair(&self) -> Result<(), KeyError> {
        let (true, Some(path)) = (self.seals(), &self.identity_file) else { return Ok(()) };
        let Ok(identities) = Identities::read(path) else { return Ok(()) };
        if identities.all.iter().any(|own| self.recipients.contains(&own.recipient())) {
            return Ok(());
        }
        let recipients: Vec<String> = self.recipients.iter().map(ToString::to_string).collect();
        Err(KeyError::Unpaired { path: path.clone(), recipients: render_recipients(&recipients) })
    }
}

impl Identities {
    fn read(path: &Path) -> Result<Self, KeyError> {
        let mut text = Zeroizing::new(String::new());
        let read = File::open(path).and_then(|file| file.take(MAX_IDENTITY_FILE).read_to_string(&mut text));
        read.map_err(|source| KeyError::IdentityFile { path: path.to_owned(), source })?;
        let unusable = |problem: String| KeyError::IdentityText { path: path.to_owned(), problem };
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
            return Err(unusable("it is encrypted itself, and nobody is there to type a passphrase".to_owned()));
        }
        let mut all = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let parsed = line.parse::<Identity>();
                all.push(parsed.map_err(|problem| {
                    unusable(format!("line {} is no AGE-SECRET-KEY-1… of age-keygen: {problem}", number + 1))
                })?);
            }
        }
        if all.is_empty() {
            return Err(unusable("it has no line AGE-SECRET-KEY-1…".to_owned()));
        }
        Ok(Self { all, path: path.to_owned() })
    }

    /// The identities.
    #[must_use]
    pub fn all(&self) -> &[Identity] {
        &self.all
    }

    /// The error of an object that these identities do not open.
    #[must_use]
    pub fn explain(&self, key: &str, recipients: &[String], error: AgeError) -> KeyError {
        match error {
            AgeError::NoMatch => self.wrong(&format!("the object {key}"), recipients),
            problem => KeyError::Object { key: key.to_owned(), problem },
        }
    }

    fn wrong(&self, what: &str, recipients: &[String]) -> KeyError {
        let held: Vec<String> = self.all.iter().map(|identity| identity.recipient().to_string()).collect();
        KeyError::WrongIdentity {
            what: what.to_owned(),
            recipients: render_recipients(recipients),
            path: self.path.clone(),
            held: held.join(", "),
        }
    }
}

/// Reads one `age1…`.
///
/// # Errors
/// [`KeyError::Recipient`]; it does not repeat what looks like a secret.
pub fn parse_recipient(text: &str) -> Result<Recipient, KeyError> {
    let parsed = text.parse::<Recipient>();
    parsed.map_err(|problem| {
        let public = text.starts_with("age1") && text.len() <= 80;
        KeyError::Recipient { text: if public { text.to_owned() } else { "(not shown)".to_owned() }, problem }
    })
}

fn render_recipients(recipients: &[String]) -> String {
    if recipients.is_empty() { "somebody else".to_owned() } else { recipients.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_core::backup::EncryptionConfig;

    const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    const OTHER: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    fn keys(recipients: &[&str], identity_file: Option<&Path>) -> Result<Keys, KeyError> {
        let encryption = EncryptionConfig {
            recipients: recipients.iter().map(|text| (*text).to_owned()).collect(),
            identity_file: identity_file.map(|path| path.display().to_string()),
        };
        Keys::of(&StoreConfig {
            endpoint: String::new(),
            bucket: String::new(),
            prefix: String::new(),
            region: None,
            path_style: true,
            credentials_dir: String::new(),
            ca_file: None,
            encryption: Some(encryption),
        })
    }

    #[test]
    fn a_key_that_cannot_be_used_is_told_without_showing_it() {
        let error = keys(&["age1nonsense"], None).unwrap_err().to_string();
        assert!(error.contains("age1nonsense"), "{error}");
        let error = keys(&[IDENTITY], None).unwrap_err().to_string();
        assert!(!error.contains("SECRET-KEY-1GF"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        for (text, told) in [
            ("", "has no line"),
            ("# only a comment\n", "has no line"),
            ("AGE-SECRET-KEY-1GFPYYS\n", "line 1"),
            ("# a comment\n\nhunter2\n", "line 3"),
            ("age-encryption.org/v1\n-> scrypt a 18\n", "encrypted itself"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = keys(&[], Some(&path)).unwrap().identities("the object x", &[]).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(path.to_str().unwrap()), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("GFPYYS"), "{error}");
        }
    }

    #[test]
    fn a_wrong_or_missing_identity_names_the_recipients_and_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let needed = [OTHER.to_owned()];
        let error = keys(&[], None).unwrap().identities("the backup x", &needed).unwrap_err().to_string();
        assert!(error.contains(OTHER) && error.contains("no identity file"), "{error}");
        let error = keys(&[], Some(&path)).unwrap().identities("the backup x", &needed).unwrap_err();
        assert!(matches!(&error, KeyError::IdentityFile { path: found, .. } if *found == path), "{error}");
        std::fs::write(&path, format!("# created: today\n{IDENTITY}\n")).unwrap();
        let identities = keys(&[], Some(&path)).unwrap().identities("the backup x", &needed).unwrap();
        let error = identities.explain("a/b", &needed, AgeError::NoMatch).to_string();
        assert!([OTHER, RECIPIENT, "a/b", path.to_str().unwrap()].iter().all(|text| error.contains(text)), "{error}");
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        keys(&[RECIPIENT], Some(&path)).unwrap().validate_pair().unwrap();
        std::fs::write(&path, IDENTITY).unwrap();
        keys(&[RECIPIENT, OTHER], Some(&path)).unwrap().validate_pair().unwrap();
        keys(&[], Some(&path)).unwrap().validate_pair().unwrap();
        let error = keys(&[OTHER], Some(&path)).unwrap().validate_pair().unwrap_err();
        assert!(matches!(error, KeyError::Unpaired { .. }), "{error}");
    }
}

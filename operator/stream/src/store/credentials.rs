//! Credentials from files, read anew for every request: a rotated Secret needs no restart, and nothing is kept here.

use std::{fs, io, path::PathBuf};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};

use super::error::StoreError;

/// A credentials file is missing or unreadable.
#[derive(Debug, thiserror::Error)]
#[error("reading {}", path.display())]
pub(super) struct CredentialsFileError {
    pub(super) path: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

impl From<CredentialsFileError> for StoreError {
    fn from(error: CredentialsFileError) -> Self {
        Self::CredentialsFile { path: error.path, source: error.source }
    }
}

/// A folder with `accessKeyId`, `secretAccessKey` and optionally `sessionToken`.
#[derive(Clone, Debug)]
pub(super) struct FileCredentials {
    pub(super) folder: PathBuf,
}

impl FileCredentials {
    /// Reads the files.
    pub(super) fn read(&self) -> Result<Credentials, CredentialsFileError> {
        let access_key = self.read_file("accessKeyId")?;
        let secret_key = self.read_file("secretAccessKey")?;
        let token = match self.read_file("sessionToken") {
            Ok(token) => Some(token).filter(|token| !token.is_empty()),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Credentials::new(access_key, secret_key, token, None, "files"))
    }

    fn read_file(&self, name: &str) -> Result<String, CredentialsFileError> {
        let path = self.folder.join(name);
        // A line end is easily added by hand; it is never part of a key.
        let text = fs::read_to_string(&path).map_err(|source| CredentialsFileError { path, source })?;
        Ok(text.trim().to_owned())
    }
}

impl ProvideCredentials for FileCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(self.read().map_err(CredentialsError::provider_error))
    }
}

//! Credentials from files, read anew for every request: a rotated Secret needs no restart. Of the last ones is kept what tells
//! that they have changed: a request that was on its way with those of before is sent again.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use aws_smithy_runtime_api::client::{
    interceptors::context::InterceptorContext,
    retries::classifiers::{ClassifyRetry, RetryAction},
};

use super::{client::ATTEMPT_TIMEOUT, error::StoreError};

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
    folder: PathBuf,
    last: Arc<Mutex<Option<Last>>>,
}

/// What the files held last.
#[derive(Debug)]
struct Last {
    /// Shows no secret when it is printed.
    credentials: Credentials,
    /// When something else stood there before; None for the first ones.
    changed_at: Option<Instant>,
}

impl FileCredentials {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, last: Arc::default() }
    }

    /// Reads the files.
    pub(super) fn read(&self) -> Result<Credentials, CredentialsFileError> {
        let credentials = self.read_files()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_mut() {
            Some(known) if known.credentials == credentials => {}
            Some(known) => *known = Last { credentials: credentials.clone(), changed_at: Some(Instant::now()) },
            None => *last = Some(Last { credentials: credentials.clone(), changed_at: None }),
        }
        Ok(credentials)
    }

    /// A request that ends now may have been signed with other credentials than those of now.
    fn changed_lately(&self) -> bool {
        if self.read().is_err() {
            return false;
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().and_then(|last| last.changed_at).is_some_and(|at| at.elapsed() <= ATTEMPT_TIMEOUT)
    }

    fn read_files(&self) -> Result<Credentials, CredentialsFileError> {
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

impl ClassifyRetry for FileCredentials {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let refused = context.response().is_some_and(|response| matches!(response.status().as_u16(), 401 | 403));
        if refused && self.changed_lately() { RetryAction::transient_error() } else { RetryAction::NoActionIndicated }
    }

    fn name(&self) -> &'static str {
        "credentials that were rotated meanwhile"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_credentials_are_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("accessKeyId", "a");
        write("secretAccessKey", "first");
        let credentials = FileCredentials::new(folder.path().to_owned());
        assert!(!credentials.changed_lately(), "the first ones");
        write("secretAccessKey", "first\n");
        assert!(!credentials.changed_lately(), "a line end is no part of them");
        write("secretAccessKey", "second");
        assert!(credentials.changed_lately());
        fs::remove_file(folder.path().join("accessKeyId")).unwrap();
        assert!(!credentials.changed_lately(), "without files there is nothing to try again with");
        assert!(!format!("{credentials:?}").contains("second"));
    }
}

//! The cluster's certificates: copied from the mounted Secret to files that PostgreSQL and libpq accept (owned by this
//! user, mode 0600), and loaded for the agent's own server. Makes no certificate.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// The files of the Secret that instances use.
pub const FILES: [&str; 5] = ["ca.crt", "tls.crt", "tls.key", "replication.crt", "replication.key"];

/// Why the certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or written.
    #[error("failed to {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM of the right kind.
    #[error("failed to parse {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The certificate, its key or the CA can't be used together.
    #[error("the certificates can't be used: {0}")]
    Unusable(String),
}

/// Copies the certificates if any of them differs; true when something changed. Certificate and key are read before
/// either is written, so that a half-changed pair is unlikely, and the next call mends it.
///
/// # Errors
/// [`TlsError`] when one is missing or can't be copied.
pub fn apply_certificates(source: &Path, target: &Path) -> Result<bool, TlsError> {
    let read = |name: &str| {
        let path = source.join(name);
        fs::read(&path).map(|content| (name.to_owned(), content)).map_err(|source| TlsError::Io {
            action: "read",
            path,
            source,
        })
    };
    let files = FILES.iter().map(|name| read(name)).collect::<Result<Vec<_>, _>>()?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(target);
    made.map_err(|source| TlsError::Io { action: "create", path: target.to_owned(), source })?;
    let mut changed = false;
    for (name, content) in files {
        let path = target.join(&name);
        if fs::read(&path).is_ok_and(|present| present == content) {
            continue;
        }
        write_private(&path, &content).map_err(|source| TlsError::Io { action: "write", path, source })?;
        changed = true;
    }
    Ok(changed)
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    fs::rename(temporary, path)
}

fn read_chain(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    read.map_err(|source| TlsError::Pem { path, source })
}

fn read_key(path: PathBuf) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::Pem { path, source })
}

fn read_roots(folder: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(folder.join("ca.crt"))? {
        roots.add(certificate).map_err(|error| TlsError::Unusable(error.to_string()))?;
    }
    Ok(roots)
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}

/// The agent's server side: a client must show a certificate of the cluster's CA.
///
/// # Errors
/// [`TlsError`].
pub fn build_server_config(folder: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(read_roots(folder)?), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier.build().map_err(unusable)?)
        .with_single_cert(read_chain(folder.join("tls.crt"))?, read_key(folder.join("tls.key"))?)
        .map_err(unusable)?;
    Ok(Arc::new(config))
}

/// The client side for other instances' PostgreSQL, with the replication certificate.
///
/// # Errors
/// [`TlsError`].
pub fn build_client_config(folder: &Path) -> Result<ClientConfig, TlsError> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(read_roots(folder)?)
        .with_client_auth_cert(read_chain(folder.join("replication.crt"))?, read_key(folder.join("replication.key"))?)
        .map_err(unusable)
}

/// The common name of a certificate's subject; None when it has none or can't be parsed.
#[must_use]
pub fn parse_common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

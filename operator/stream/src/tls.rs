//! TLS for connections to PostgreSQL: verify-full against a private CA, optionally with a client certificate.
//!
//! ring is the only cryptography provider, given explicitly: no process-wide default is read or installed.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

/// Files for a verified connection to PostgreSQL. They are read at every connect, so a renewed certificate needs no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresTls {
    /// PEM bundle of the CAs to trust; nothing else is trusted.
    pub ca_file: PathBuf,
    /// PEM chain of the client certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM private key of the client certificate (PKCS#8, PKCS#1 or SEC1).
    pub key_file: Option<PathBuf>,
}

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM, or lacks what it should hold.
    #[error("{} holds no usable PEM item", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: pem::Error,
    },
    /// The CA file holds no certificate.
    #[error("{} holds no CA certificate", .0.display())]
    NoCertificateAuthority(PathBuf),
    /// Only one of certificate and key is given.
    #[error("a client certificate needs both the certificate file and the key file")]
    HalfClientCertificate,
    /// rustls refused the certificate or the key.
    #[error("the certificates are not usable")]
    Rustls(#[from] rustls::Error),
    /// The name to verify is not a host name or an address.
    #[error("\"{0}\" is not a valid server name")]
    ServerName(String),
}

impl PostgresTls {
    /// Reads the files and builds a configuration that verifies the chain and the host name.
    ///
    /// # Errors
    /// [`TlsError`] names the file or the certificate that cannot be used.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&self.ca_file)? {
            roots.add(certificate)?;
        }
        if roots.is_empty() {
            return Err(TlsError::NoCertificateAuthority(self.ca_file.clone()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => {
                let chain = read_certificates(certificate)?;
                let text = std::fs::read(key).map_err(|source| TlsError::Read { path: key.clone(), source })?;
                let key = PrivateKeyDer::from_pem_slice(&text)
                    .map_err(|source| TlsError::Pem { path: key.clone(), source })?;
                builder.with_client_auth_cert(chain, key)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(TlsError::HalfClientCertificate),
        };
        Ok(Arc::new(config))
    }
}

fn read_certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = std::fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_ca_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.crt");
        let tls = PostgresTls { ca_file: ca_file.clone(), cert_file: None, key_file: None };
        assert!(matches!(tls.client_config(), Err(TlsError::Read { path, .. }) if path == ca_file));
        std::fs::write(&ca_file, "no pem here").unwrap();
        assert!(matches!(tls.client_config(), Err(TlsError::NoCertificateAuthority(_))));
    }
}

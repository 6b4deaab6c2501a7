//! Whom the HTTPS client of the object store trusts: a private CA bundle alone, or the public roots of the image, or those
//! compiled in. Everything is parsed here first, because the SDK panics on a certificate that it cannot read.

use std::fs;

use aws_smithy_http_client::tls::TrustStore;
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::error::StoreError;

/// Where images keep their public roots.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Builds the trust store.
///
/// # Errors
/// [`StoreError::Config`] for a CA file without a usable certificate.
pub(super) fn build_trust_store(ca_file: Option<&str>) -> Result<TrustStore, StoreError> {
    let certificates = match ca_file {
        Some(path) => read_private_bundle(path)?,
        None => read_public_roots(),
    };
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        pem.push_str(&BASE64_STANDARD.encode(&certificate));
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    Ok(TrustStore::empty().with_pem_certificate(pem))
}

fn read_private_bundle(path: &str) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let text = fs::read(path).map_err(|error| StoreError::Config(format!("reading the CA file {path}: {error}")))?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::Config(format!("the CA file {path} is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(StoreError::Config(format!("the CA file {path} holds no certificate")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| {
            StoreError::Config(format!("the CA file {path} holds an unusable certificate: {error}"))
        })?;
    }
    Ok(certificates)
}

fn read_public_roots() -> Vec<CertificateDer<'static>> {
    for path in SYSTEM_BUNDLES {
        let Ok(text) = fs::read(path) else { continue };
        let mut roots = RootCertStore::empty();
        let usable = |certificate: &CertificateDer<'static>| roots.add(certificate.clone()).is_ok();
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text).flatten().filter(usable).collect();
        if !certificates.is_empty() {
            return certificates;
        }
    }
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_private_bundle_is_an_error_and_not_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        let text = path.to_str().unwrap();
        assert!(build_trust_store(Some(text)).is_err());
        for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            fs::write(&path, content).unwrap();
            assert!(matches!(build_trust_store(Some(text)), Err(StoreError::Config(_))), "{content}");
        }
    }

    #[test]
    fn the_roots_compiled_in_are_usable() {
        let mut roots = RootCertStore::empty();
        let (good, bad) = roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        assert!(good > 50 && bad == 0);
    }
}

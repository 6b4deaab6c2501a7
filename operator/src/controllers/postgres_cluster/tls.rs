//! The cluster's private CA and the certificates that it signs: which of them are kept and which are made anew. Pure but
//! for random keys; the Secrets are read and written by [`super::secrets`].
//!
//! A CA that can't be read is never replaced: every pod trusts it.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use pgherd_core::instance::{OPERATOR_CN, REPLICATION_ROLE};
use pgherd_crds::names;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Data of a Secret.
pub type SecretData = BTreeMap<String, Vec<u8>>;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());
/// Clocks of nodes differ.
const SKEW: Duration = Duration::from_secs(5 * 60);

const CA_CRT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const OPERATOR: [&str; 2] = ["operator.crt", "operator.key"];
const SERVER: [&str; 2] = ["tls.crt", "tls.key"];
const REPLICATION: [&str; 2] = ["replication.crt", "replication.key"];

/// Certificates can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA Secret is there, but not usable.
    #[error(
        "its key {key} is not usable ({detail}); restore the Secret, or delete it together with the -tls Secret so that a new CA is made"
    )]
    UnusableCa {
        /// The key of the Secret.
        key: &'static str,
        /// Why.
        detail: String,
    },
    /// A certificate could not be made.
    #[error("failed to make a certificate")]
    Generate(#[source] rcgen::Error),
}

/// The operator's identity towards the agents of one cluster: PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorIdentity {
    /// The cluster's CA.
    pub ca_pem: String,
    /// Client certificate with CN `pgherd-operator`.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl fmt::Debug for OperatorIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorIdentity").finish_non_exhaustive()
    }
}

/// Data of the two Secrets as they should be. What was valid is byte-equal to what was there.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificates {
    /// Of `<cluster>-ca`.
    pub ca: SecretData,
    /// Of `<cluster>-tls`.
    pub tls: SecretData,
}

impl Certificates {
    /// The operator's identity.
    #[must_use]
    pub fn identity(&self) -> OperatorIdentity {
        let text =
            |key: &str| self.ca.get(key).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
        OperatorIdentity { ca_pem: text(CA_CRT), certificate_pem: text(OPERATOR[0]), key_pem: text(OPERATOR[1]) }
    }
}

/// The certificates of a cluster: what is there and valid is kept, what is missing or two thirds through its life is made.
///
/// # Errors
/// [`TlsError`].
pub fn plan_certificates(
    cluster: &str,
    namespace: &str,
    ca: Option<&SecretData>,
    tls: Option<&SecretData>,
    now: Timestamp,
) -> Result<Certificates, TlsError> {
    let mut ca = match ca {
        Some(data) => {
            check_ca(data)?;
            data.clone()
        }
        None => make_ca(cluster, namespace, now)?,
    };
    let issuer = issuer(&ca)?;
    let ca_pem = ca.get(CA_CRT).cloned().unwrap_or_default();
    if !is_fresh(ca.get(OPERATOR[0]), ca.get(OPERATOR[1]), &[], now) {
        insert_leaf(&mut ca, OPERATOR, &issuer, Leaf::client(OPERATOR_CN), now)?;
    }
    // A certificate that was signed by another CA is worth nothing, whatever its dates say.
    let mut tls = tls.filter(|data| data.get(CA_CRT) == Some(&ca_pem)).cloned().unwrap_or_default();
    tls.insert(CA_CRT.to_owned(), ca_pem);
    let hosts = server_hosts(cluster, namespace);
    if !is_fresh(tls.get(SERVER[0]), tls.get(SERVER[1]), &hosts, now) {
        insert_leaf(&mut tls, SERVER, &issuer, Leaf::server(cluster, hosts), now)?;
    }
    if !is_fresh(tls.get(REPLICATION[0]), tls.get(REPLICATION[1]), &[], now) {
        insert_leaf(&mut tls, REPLICATION, &issuer, Leaf::client(REPLICATION_ROLE), now)?;
    }
    Ok(Certificates { ca, tls })
}

/// Every name that a client or an agent may use.
fn server_hosts(cluster: &str, namespace: &str) -> Vec<String> {
    let pods = names::pods_service(cluster);
    let mut hosts = vec![format!("*.{pods}.{namespace}.svc"), format!("*.{pods}.{namespace}.svc.cluster.local")];
    for service in [names::rw_service(cluster), names::ro_service(cluster), names::r_service(cluster)] {
        for suffix in [
            String::new(),
            format!(".{namespace}"),
            format!(".{namespace}.svc"),
            format!(".{namespace}.svc.cluster.local"),
        ] {
            hosts.push(format!("{service}{suffix}"));
        }
    }
    hosts.push("localhost".to_owned());
    hosts
}

fn pem_text<'a>(data: &'a SecretData, key: &'static str) -> Result<&'a str, TlsError> {
    let bytes = data.get(key).ok_or_else(|| TlsError::UnusableCa { key, detail: "it is missing".to_owned() })?;
    std::str::from_utf8(bytes).map_err(|_| TlsError::UnusableCa { key, detail: "it is not text".to_owned() })
}

fn check_ca(data: &SecretData) -> Result<(), TlsError> {
    pem_text(data, CA_CRT)?;
    issuer(data).map(|_| ())
}

fn issuer(data: &SecretData) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let unusable = |key| move |error: rcgen::Error| TlsError::UnusableCa { key, detail: error.to_string() };
    let key = KeyPair::from_pem(pem_text(data, CA_KEY)?).map_err(unusable(CA_KEY))?;
    Issuer::from_ca_cert_pem(pem_text(data, CA_CRT)?, key).map_err(unusable(CA_CRT))
}

fn make_ca(cluster: &str, namespace: &str, now: Timestamp) -> Result<SecretData, TlsError> {
    let key = KeyPair::generate().map_err(TlsError::Generate)?;
    let mut params = CertificateParams::default();
    set_validity(&mut params, now, CA_LIFE);
    params.distinguished_name.push(DnType::CommonName, format!("pgherd CA of {namespace}/{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).map_err(TlsError::Generate)?;
    Ok([(CA_CRT.to_owned(), certificate.pem().into_bytes()), (CA_KEY.to_owned(), key.serialize_pem().into_bytes())]
        .into())
}

struct Leaf {
    common_name: String,
    hosts: Vec<String>,
    usage: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    fn client(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            hosts: Vec::new(),
            usage: vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    fn server(cluster: &str, hosts: Vec<String>) -> Self {
        Self { common_name: cluster.to_owned(), hosts, usage: vec![ExtendedKeyUsagePurpose::ServerAuth] }
    }
}

fn insert_leaf(
    data: &mut SecretData,
    [certificate_key, private_key]: [&str; 2],
    issuer: &Issuer<'static, KeyPair>,
    leaf: Leaf,
    now: Timestamp,
) -> Result<(), TlsError> {
    let key = KeyPair::generate().map_err(TlsError::Generate)?;
    let mut params = CertificateParams::new(leaf.hosts).map_err(TlsError::Generate)?;
    set_validity(&mut params, now, LEAF_LIFE);
    params.distinguished_name.push(DnType::CommonName, leaf.common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = leaf.usage;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).map_err(TlsError::Generate)?;
    data.insert(certificate_key.to_owned(), certificate.pem().into_bytes());
    data.insert(private_key.to_owned(), key.serialize_pem().into_bytes());
    Ok(())
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let since_epoch = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch.saturating_sub(SKEW);
    params.not_after = epoch + since_epoch + life;
    params.distinguished_name = rcgen::DistinguishedName::new();
}

/// True if certificate and key can be read, belong together, cover `hosts` and are not two thirds through their life.
fn is_fresh(certificate: Option<&Vec<u8>>, key: Option<&Vec<u8>>, hosts: &[String], now: Timestamp) -> bool {
    let (Some(certificate), Some(key)) = (certificate, key) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&pem.contents) else { return false };
    let Some(key) = std::str::from_utf8(key).ok().and_then(|text| KeyPair::from_pem(text).ok()) else { return false };
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return false;
    }
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let renew_at = from + (to - from) / 3 * 2;
    let extension = parsed.subject_alternative_name().ok().flatten();
    let covers = |host: &String| {
        let names = extension.iter().flat_map(|extension| &extension.value.general_names);
        names.into_iter().any(|name| matches!(name, GeneralName::DNSName(known) if known == host))
    };
    (from..renew_at).contains(&now.as_second()) && hosts.iter().all(covers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + days * 86_400).unwrap()
    }

    fn fresh() -> Certificates {
        plan_certificates("shop", "web", None, None, at(0)).unwrap()
    }

    #[test]
    fn what_is_valid_is_kept_byte_for_byte() {
        let first = fresh();
        let second = plan_certificates("shop", "web", Some(&first.ca), Some(&first.tls), at(59)).unwrap();
        assert!(first == second);
    }

    #[test]
    fn leaves_are_renewed_at_two_thirds_of_their_life_under_the_same_ca() {
        let first = fresh();
        let second = plan_certificates("shop", "web", Some(&first.ca), Some(&first.tls), at(61)).unwrap();
        assert_eq!(first.ca[CA_CRT], second.ca[CA_CRT]);
        for (before, after, key) in [
            (&first.tls, &second.tls, "tls.crt"),
            (&first.tls, &second.tls, "tls.key"),
            (&first.tls, &second.tls, "replication.crt"),
            (&first.ca, &second.ca, "operator.crt"),
        ] {
            assert_ne!(before[key], after[key], "{key}");
        }
    }

    #[test]
    fn another_ca_makes_all_leaves_anew() {
        let first = fresh();
        let other = fresh();
        let mixed = plan_certificates("shop", "web", Some(&other.ca), Some(&first.tls), at(1)).unwrap();
        assert_eq!(mixed.tls[CA_CRT], other.ca[CA_CRT]);
        assert_ne!(mixed.tls["tls.crt"], first.tls["tls.crt"]);
    }

    #[test]
    fn a_ca_that_cannot_be_read_is_an_error_and_is_not_replaced() {
        let mut broken = fresh().ca;
        broken.insert(CA_KEY.into(), b"nonsense".to_vec());
        let error = plan_certificates("shop", "web", Some(&broken), None, at(1)).err().unwrap();
        assert!(error.to_string().contains("ca.key"), "{error}");
        broken.remove(CA_CRT);
        assert!(plan_certificates("shop", "web", Some(&broken), None, at(1)).is_err());
    }

    #[test]
    fn a_key_that_belongs_to_another_certificate_is_made_anew() {
        let first = fresh();
        let mut tls = first.tls.clone();
        tls.insert("tls.key".into(), fresh().tls["tls.key"].clone());
        let second = plan_certificates("shop", "web", Some(&first.ca), Some(&tls), at(1)).unwrap();
        assert_ne!(second.tls["tls.crt"], first.tls["tls.crt"]);
        assert_eq!(second.tls["replication.crt"], first.tls["replication.crt"]);
    }

    #[test]
    fn the_server_certificate_names_pods_and_services() {
        let hosts = server_hosts("shop", "web");
        for host in ["*.shop-pods.web.svc", "shop-rw", "shop-ro.web.svc", "shop-r.web.svc.cluster.local", "localhost"] {
            assert!(hosts.iter().any(|known| known == host), "{host}");
        }
        let tls = fresh().tls;
        assert!(is_fresh(tls.get("tls.crt"), tls.get("tls.key"), &hosts, at(0)));
        assert!(!is_fresh(tls.get("tls.crt"), tls.get("tls.key"), &["elsewhere".to_owned()], at(0)));
    }

    #[test]
    fn the_identity_does_not_print_its_key() {
        assert_eq!(format!("{:?}", fresh().identity()), "OperatorIdentity { .. }");
    }
}

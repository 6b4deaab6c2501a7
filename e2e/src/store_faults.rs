//! A way to the object store on which things go wrong as a test wants: a pod in the test's namespace that clusters take for
//! their store. It ends TLS with a certificate of its own CA and hands each request on to MinIO; what befalls which request is
//! said through the API server's pod proxy.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    kubectl::{apply, kubectl},
};

/// The Service, the pod, and the Secret of its certificate; `<NAME>-ca` is what clusters trust.
pub const NAME: &str = "store-proxy";
const PORT: u16 = 9000;

/// What befalls a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StoreFault {
    /// The connection ends before anything is answered; the store never hears of it.
    Down,
    /// The answer comes later by so many milliseconds.
    Late(u64),
    /// Answered with this status and error code, such as 503 `SlowDown`; the store never hears of it.
    Refuse(u16, ErrorCode),
    /// The store does what it is asked to, and the answer is lost.
    LostAnswer,
    /// The answer breaks off in the middle of its body.
    CutAnswer,
    /// A bit in the middle of the answer's body is another one.
    FlipAnswer,
    /// A bit in the middle of the request's body is another one.
    FlipRequest,
}

/// Error codes of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// Too many requests.
    SlowDown,
    /// No right to do this.
    AccessDenied,
    /// Credentials that were good once.
    ExpiredToken,
    /// Anything.
    InternalError,
}

/// Which requests a fault befalls, and how many of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// What befalls them.
    pub fault: StoreFault,
    /// The method; any if empty.
    pub method: String,
    /// What is in the path or the query; all of it.
    pub contains: Vec<String>,
    /// How many requests; None for all.
    pub times: Option<u32>,
}

impl Rule {
    /// A fault of every request.
    #[must_use]
    pub fn always(fault: StoreFault) -> Self {
        Self { fault, method: String::new(), contains: Vec::new(), times: None }
    }

    /// A fault of requests of this method that contain all of these.
    #[must_use]
    pub fn of(fault: StoreFault, method: &str, contains: &[&str]) -> Self {
        Self {
            method: method.into(),
            contains: contains.iter().map(ToString::to_string).collect(),
            ..Self::always(fault)
        }
    }

    /// The same, but only so many times.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// `line` is like `PUT /bucket/key?partNumber=1 HTTP/1.1`.
    #[must_use]
    pub fn applies(&self, line: &str) -> bool {
        let (method, rest) = line.split_once(' ').unwrap_or_default();
        (self.method.is_empty() || self.method == method) && self.contains.iter().all(|part| rest.contains(part))
    }
}

/// The running proxy.
#[derive(Clone)]
pub struct StoreProxy {
    client: Client,
    namespace: String,
}

impl StoreProxy {
    /// Starts it, or finds it running. The Secrets of [`crate::store::provide_credentials`] must be there.
    ///
    /// # Errors
    /// The pod was not ready in time.
    pub async fn start(client: &Client, namespace: &str) -> Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        if secrets.get_opt(NAME).await?.is_none() {
            let made = make_certificate(&format!("{NAME}.{namespace}.svc"))?;
            let ca = BTreeMap::from([("ca.crt", made.ca)]);
            put_secret(&secrets, &format!("{NAME}-ca"), ca).await?;
            put_secret(&secrets, NAME, BTreeMap::from([("tls.crt", made.certificate), ("tls.key", made.key)])).await?;
        }
        apply(namespace, include_str!("store_proxy.yaml")).await?;
        let ready = format!("pod/{NAME}");
        kubectl(namespace, &["wait", &ready, "--for=condition=Ready", "--timeout=120s"]).await?;
        let proxy = Self { client: client.clone(), namespace: namespace.into() };
        proxy.heal().await?;
        Ok(proxy)
    }

    /// The `objectStore` of a spec, as lines indented by `indent` spaces.
    #[must_use]
    pub fn object_store_yaml(namespace: &str, indent: usize) -> String {
        crate::store::object_store_yaml(indent)
            .replace(crate::store::ENDPOINT, &format!("https://{NAME}.{namespace}.svc:{PORT}"))
            .replace("{name: minio-ca}", &format!("{{name: {NAME}-ca}}"))
    }

    /// From now on these faults befall requests, the first that applies to one; earlier ones end.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn befall(&self, rules: &[Rule]) -> Result<()> {
        self.call("POST", "rules", serde_json::to_vec(rules)?).await.map(drop)
    }

    /// Ends all faults.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn heal(&self) -> Result<()> {
        self.befall(&[]).await
    }

    /// How many requests the present faults befell.
    ///
    /// # Errors
    /// The pod did not answer.
    pub async fn hits(&self) -> Result<u64> {
        Ok(self.call("GET", "hits", Vec::new()).await?.trim().parse()?)
    }

    async fn call(&self, method: &str, path: &str, body: Vec<u8>) -> Result<String> {
        let uri = format!("/api/v1/namespaces/{}/pods/{NAME}:8080/proxy/{path}", self.namespace);
        let request = http::Request::builder().method(method).uri(uri);
        Ok(self.client.request_text(request.header("Content-Type", "application/json").body(body)?).await?)
    }
}

async fn put_secret(secrets: &Api<Secret>, name: &str, data: BTreeMap<&str, String>) -> Result<()> {
    let data = data.into_iter().map(|(key, value)| (key.to_string(), ByteString(value.into_bytes()))).collect();
    let metadata = kube::core::ObjectMeta { name: Some(name.into()), ..Default::default() };
    let secret = Secret { metadata, data: Some(data), ..Default::default() };
    secrets.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(secret)).await?;
    Ok(())
}

/// PEM texts.
struct Made {
    ca: String,
    certificate: String,
    key: String,
}

fn make_certificate(host: &str) -> Result<Made> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, format!("CA of {host}"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = Issuer::new(ca.clone(), KeyPair::generate()?);
    let ca = ca.self_signed(issuer.key())?.pem();
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![host.to_string()])?.signed_by(&key, &issuer)?.pem();
    Ok(Made { ca, certificate, key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_applies_by_method_and_by_all_of_its_parts() {
        let rule = Rule::of(StoreFault::LostAnswer, "POST", &["/base/", "uploadId"]);
        assert!(rule.applies("POST /b/f/base/1/base.tar.zst.0000?uploadId=1 HTTP/1.1"));
        assert!(!rule.applies("PUT /b/f/base/1/base.tar.zst.0000?uploadId=1 HTTP/1.1"));
        assert!(!rule.applies("POST /b/f/base/1/base.tar.zst.0000?uploads= HTTP/1.1"));
        assert!(Rule::always(StoreFault::Down).applies("GET / HTTP/1.1"));
    }

    #[test]
    fn clusters_are_led_to_the_proxy_and_trust_it() {
        let yaml = StoreProxy::object_store_yaml("faults", 4);
        assert!(yaml.contains("endpoint: https://store-proxy.faults.svc:9000\n"), "{yaml}");
        assert!(yaml.contains("caSecretRef: {name: store-proxy-ca}\n"), "{yaml}");
    }
}

//! The client against a real TLS server with certificates of a throw-away CA.

use std::net::Ipv4Addr;

use http::Response;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use pgherd_core::register::{MemberId, Term};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A throw-away CA.
pub(crate) struct Pki {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The operator's identity.
    pub(crate) fn identity(&self) -> OperatorIdentity {
        let (certificate_pem, key_pem) = self.issue("pgherd-operator");
        OperatorIdentity { ca_pem: self.ca.clone(), certificate_pem, key_pem }
    }

    fn client(&self) -> AgentClient {
        let OperatorIdentity { ca_pem, certificate_pem, key_pem } = self.identity();
        AgentClient::new(ca_pem.as_bytes(), certificate_pem.as_bytes(), key_pem.as_bytes()).unwrap()
    }

    /// An agent that gives `answer` to every request.
    async fn serve(&self, name: &str, status: u16, answer: String) -> AgentAddress {
        let port = self.serve_on(name, (Ipv4Addr::LOCALHOST, 0), move |_| (status, answer.clone())).await;
        AgentAddress { port, ..AgentAddress::new("shop", "ns", "shop-1", Ipv4Addr::LOCALHOST.into()) }
    }

    /// An agent on this address that answers a path as `answer` says. Returns its port.
    pub(crate) async fn serve_on<F>(&self, name: &str, address: (Ipv4Addr, u16), answer: F) -> u16
    where
        F: Fn(&str) -> (u16, String) + Clone + Send + Sync + 'static,
    {
        let (certificate, key) = self.issue(name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (status, answer) = answer(request.uri().path());
                        async move { Response::builder().status(status).body(Full::new(Bytes::from(answer))) }
                    });
                    // Without keep-alive the server closes after each answer: pooled connections are dead.
                    let _ =
                        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        port
    }
}

fn report(pod: &str) -> String {
    let history = pgherd_core::timeline::TimelineHistory::root(pgherd_core::timeline::TimelineId(1));
    let lsn = pgherd_core::lsn::Lsn(16);
    let report = SealReport {
        member: MemberId("m".into()),
        pod: pod.into(),
        sealed_term: Term(2),
        term: Term(1),
        history,
        received_lsn: lsn,
        replayed_lsn: lsn,
    };
    serde_json::to_string(&report).unwrap()
}

const SEAL: SealRequest = SealRequest { term: Term(2) };

#[tokio::test]
async fn a_sealed_agent_reports_also_when_its_idle_connection_was_closed() {
    let pki = Pki::new();
    let agent = pki.serve("shop-1.shop-pods.ns.svc", 200, report("shop-1")).await;
    let client = pki.client();
    for _ in 0..3 {
        assert_eq!(client.seal(&agent, &SEAL).await.unwrap().sealed_term, Term(2));
    }
}

#[tokio::test]
async fn an_agents_no_is_not_silence() {
    let pki = Pki::new();
    let agent = pki.serve("shop-1.shop-pods.ns.svc", 409, r#"{"error":"sealed at 3"}"#.into()).await;
    let error = pki.client().seal(&agent, &SEAL).await.unwrap_err();
    assert_eq!(error, AgentCallError::Refused { pod: "shop-1".into(), status: 409, message: "sealed at 3".into() });
}

#[tokio::test]
async fn another_pod_at_the_address_is_not_believed() {
    let pki = Pki::new();
    let agent = pki.serve("shop-1.shop-pods.ns.svc", 200, report("shop-2")).await;
    assert!(matches!(pki.client().seal(&agent, &SEAL).await, Err(AgentCallError::Unreachable { .. })));
}

#[tokio::test]
async fn a_server_of_another_name_or_another_ca_is_not_talked_to() {
    let pki = Pki::new();
    let agent = pki.serve("shop-1.shop-pods.other.svc", 200, report("shop-1")).await;
    assert!(matches!(pki.client().seal(&agent, &SEAL).await, Err(AgentCallError::Unreachable { .. })));
    let agent = pki.serve("shop-1.shop-pods.ns.svc", 200, report("shop-1")).await;
    assert!(matches!(Pki::new().client().seal(&agent, &SEAL).await, Err(AgentCallError::Unreachable { .. })));
}

#[tokio::test]
async fn nobody_listening_is_unreachable_within_the_time() {
    let address = AgentAddress { port: 1, ..AgentAddress::new("shop", "ns", "shop-1", Ipv4Addr::LOCALHOST.into()) };
    let started = std::time::Instant::now();
    assert!(matches!(Pki::new().client().wake(&address).await, Err(AgentCallError::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(1));
}

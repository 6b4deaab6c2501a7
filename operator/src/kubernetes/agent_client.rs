//! Talks to the agents over mTLS with the operator's client certificate. A connection goes straight to the pod's address
//! while the pod's DNS name is verified, so that a slow DNS delays no failover.
//!
//! It decides nothing; "did not answer" and "answered no" are different errors, because only the first may mean that a
//! node is lost.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use pgherd_core::instance::{
    AGENT_PORT, AgentError, ArchiveBarrier, InstanceStatus, RestoreAnswer, RestoreQuestion, SealReport, SealRequest,
    WalSpan,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;

use crate::controllers::postgres_cluster::tls::OperatorIdentity;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
const SEAL_TIMEOUT: Duration = Duration::from_secs(12);
const REBUILD_TIMEOUT: Duration = Duration::from_secs(15);
const BARRIER_TIMEOUT: Duration = Duration::from_secs(90);
/// Nothing that an agent says is longer.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Connections kept for one pod; more than one only while a seal is awaited.
const MAX_IDLE: usize = 2;

/// The client could not be made from the Secret's keys.
#[derive(Debug, thiserror::Error)]
pub enum AgentClientError {
    /// A PEM text is malformed.
    #[error("{what} is not valid PEM")]
    Pem {
        /// Which key of the Secret.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate, key or CA are not usable.
    #[error("the operator's client certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

/// A request to an agent failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentCallError {
    /// No answer: not connected, no TLS, or not in time.
    #[error("{pod} does not answer: {reason}")]
    Unreachable {
        /// The pod.
        pod: String,
        /// At what it failed.
        reason: String,
    },
    /// The agent answered with an error.
    #[error("{pod} refused ({status}): {message}")]
    Refused {
        /// The pod.
        pod: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The agent's answer is not what this version understands.
    #[error("{pod} answered something unexpected: {reason}")]
    Garbled {
        /// The pod.
        pod: String,
        /// Why it was not understood.
        reason: String,
    },
}

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgentAddress {
    /// The pod's name.
    pub pod: String,
    /// The DNS name that its certificate must carry.
    pub host: String,
    /// `status.podIP`.
    pub ip: IpAddr,
    /// The port; [`AGENT_PORT`] but in tests.
    pub port: u16,
}

impl AgentAddress {
    /// The address of a pod of a cluster.
    #[must_use]
    pub fn new(cluster: &str, namespace: &str, pod: &str, ip: IpAddr) -> Self {
        let host = pgherd_crds::names::pod_host(cluster, namespace, pod);
        Self { pod: pod.to_owned(), host, ip, port: AGENT_PORT }
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// Another way to the agents than TLS over TCP: for the simulation. Bounds in time and what an answer means stay here.
pub trait AgentTransport: Send + Sync {
    /// One request; answers with the HTTP status and the body, or says why there is no answer.
    fn exchange<'a>(
        &'a self,
        agent: &'a AgentAddress,
        method: &'a Method,
        path: &'a str,
        body: &'a Bytes,
    ) -> BoxFuture<'a, Result<(StatusCode, Bytes), String>>;
}

/// The clients of all clusters, by the cluster's UID: each cluster has its own CA, and keeps its connections from round
/// to round.
#[derive(Default)]
pub struct AgentClients {
    by_cluster: std::sync::Mutex<BTreeMap<String, (OperatorIdentity, Arc<AgentClient>)>>,
    transport: Option<Arc<dyn AgentTransport>>,
}

impl AgentClients {
    /// Clients that reach the agents by this transport.
    #[must_use]
    pub fn over(transport: Arc<dyn AgentTransport>) -> Self {
        Self { by_cluster: std::sync::Mutex::default(), transport: Some(transport) }
    }

    /// The client of a cluster; made anew when the identity is another one than before.
    ///
    /// # Errors
    /// [`AgentClientError`] when the identity cannot be used.
    pub fn of(&self, cluster_uid: &str, identity: &OperatorIdentity) -> Result<Arc<AgentClient>, AgentClientError> {
        let mut clients = self.by_cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((known, client)) = clients.get(cluster_uid)
            && known == identity
        {
            return Ok(Arc::clone(client));
        }
        let (ca, certificate, key) = (&identity.ca_pem, &identity.certificate_pem, &identity.key_pem);
        let client = AgentClient::new(ca.as_bytes(), certificate.as_bytes(), key.as_bytes())?;
        let client = Arc::new(AgentClient { transport: self.transport.clone(), ..client });
        clients.insert(cluster_uid.to_owned(), (identity.clone(), Arc::clone(&client)));
        Ok(client)
    }

    /// Forgets all clusters but these.
    pub fn retain(&self, cluster_uids: &[String]) {
        let mut clients = self.by_cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        clients.retain(|uid, _| cluster_uids.contains(uid));
    }
}

/// The agents of one cluster.
pub struct AgentClient {
    tls: TlsConnector,
    idle: Mutex<BTreeMap<AgentAddress, Vec<Connection>>>,
    transport: Option<Arc<dyn AgentTransport>>,
}

impl AgentClient {
    /// A client that trusts the cluster's CA alone and shows the operator's certificate (all PEM).
    ///
    /// # Errors
    /// [`AgentClientError`] when the PEM texts are malformed or don't fit together.
    pub fn new(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, AgentClientError> {
        let certificates = |what, pem| {
            CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| AgentClientError::Pem { what, source })
        };
        let mut roots = RootCertStore::empty();
        for root in certificates("ca.crt", ca)? {
            roots.add(root)?;
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|source| AgentClientError::Pem { what: "operator.key", source })?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates("operator.crt", certificate)?, key)?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), idle: Mutex::default(), transport: None })
    }

    /// `GET /v1/status`, within 1 s.
    ///
    /// # Errors
    /// [`AgentCallError`].
    pub async fn status(&self, agent: &AgentAddress) -> Result<InstanceStatus, AgentCallError> {
        let status: InstanceStatus = self.call(agent, Method::GET, "/v1/status", Bytes::new(), STATUS_TIMEOUT).await?;
        check_pod(agent, &status.pod)?;
        Ok(status)
    }

    /// `POST /v1/seal`, within 12 s: the agent answers once the promise is kept.
    ///
    /// # Errors
    /// [`AgentCallError`]; any error means that it must not be counted as sealed.
    pub async fn seal(&self, agent: &AgentAddress, request: &SealRequest) -> Result<SealReport, AgentCallError> {
        let report: SealReport =
            self.call(agent, Method::POST, "/v1/seal", render_body(agent, request)?, SEAL_TIMEOUT).await?;
        check_pod(agent, &report.pod)?;
        Ok(report)
    }

    /// `POST /v1/archive-barrier`, within 90 s. Where `span` is named, what the archive lacks of it is looked at too.
    ///
    /// # Errors
    /// [`AgentCallError`].
    pub async fn archive_barrier(
        &self,
        agent: &AgentAddress,
        span: Option<WalSpan>,
    ) -> Result<ArchiveBarrier, AgentCallError> {
        let body = render_body(agent, &span)?;
        self.call(agent, Method::POST, "/v1/archive-barrier", body, BARRIER_TIMEOUT).await
    }

    /// `POST /v1/wake`: the agent reads the register now.
    ///
    /// # Errors
    /// [`AgentCallError`]; harmless, because the agent polls the register anyway.
    pub async fn wake(&self, agent: &AgentAddress) -> Result<(), AgentCallError> {
        self.request(agent, Method::POST, "/v1/wake", Bytes::new(), STATUS_TIMEOUT).await.map(|_| ())
    }

    /// `POST /v1/restore-check`, within 1 s: the answer, or that it is being looked at.
    ///
    /// # Errors
    /// [`AgentCallError`].
    pub async fn check_restore(
        &self,
        agent: &AgentAddress,
        question: &RestoreQuestion,
    ) -> Result<RestoreAnswer, AgentCallError> {
        let body = render_body(agent, question)?;
        self.call(agent, Method::POST, "/v1/restore-check", body, STATUS_TIMEOUT).await
    }

    /// `POST /v1/rebuild`, within 15 s: the data directory was moved aside, and a new one follows.
    ///
    /// # Errors
    /// [`AgentCallError`].
    pub async fn rebuild(&self, agent: &AgentAddress) -> Result<(), AgentCallError> {
        self.request(agent, Method::POST, "/v1/rebuild", Bytes::new(), REBUILD_TIMEOUT).await.map(|_| ())
    }

    /// Forgets the connections to pods that are not in `agents`.
    pub async fn retain(&self, agents: &[AgentAddress]) {
        self.idle.lock().await.retain(|known, _| agents.contains(known));
    }

    async fn call<T: DeserializeOwned>(
        &self,
        agent: &AgentAddress,
        method: Method,
        path: &'static str,
        body: Bytes,
        within: Duration,
    ) -> Result<T, AgentCallError> {
        let answer = self.request(agent, method, path, body, within).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| AgentCallError::Garbled { pod: agent.pod.clone(), reason: format!("{path}: {error}") })
    }

    async fn request(
        &self,
        agent: &AgentAddress,
        method: Method,
        path: &'static str,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, AgentCallError> {
        let reason = format!("{path} took longer than {} ms", within.as_millis());
        timeout(within, self.exchange(agent, &method, path, &body))
            .await
            .unwrap_or(Err(AgentCallError::Unreachable { pod: agent.pod.clone(), reason }))
    }

    /// One exchange, over an idle connection where there is one. All requests may be repeated safely, therefore one that
    /// failed on an old connection is sent again over a new one.
    async fn exchange(
        &self,
        agent: &AgentAddress,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Bytes, AgentCallError> {
        if let Some(transport) = &self.transport {
            let answer = transport.exchange(agent, method, path, body).await;
            let (status, answer) =
                answer.map_err(|reason| AgentCallError::Unreachable { pod: agent.pod.clone(), reason })?;
            return parse_answer(agent, status, answer);
        }
        let pooled = self.idle.lock().await.get_mut(agent).and_then(Vec::pop);
        if let Some(connection) = pooled {
            match self.send(connection, agent, method, path, body).await {
                Err(AgentCallError::Unreachable { .. }) => {}
                outcome => return outcome,
            }
        }
        let connection = self.connect(agent).await?;
        self.send(connection, agent, method, path, body).await
    }

    async fn send(
        &self,
        mut connection: Connection,
        agent: &AgentAddress,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Bytes, AgentCallError> {
        let unreachable = |reason: String| AgentCallError::Unreachable { pod: agent.pod.clone(), reason };
        connection.ready().await.map_err(|error| unreachable(error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &agent.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| unreachable(error.to_string()))?;
        let response = connection.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| unreachable(format!("its answer broke off: {error}")))?
            .to_bytes();
        let mut idle = self.idle.lock().await;
        let connections = idle.entry(agent.clone()).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(connection);
        }
        drop(idle);
        parse_answer(agent, status, answer)
    }

    async fn connect(&self, agent: &AgentAddress) -> Result<Connection, AgentCallError> {
        let unreachable = |reason: String| AgentCallError::Unreachable { pod: agent.pod.clone(), reason };
        let name = ServerName::try_from(agent.host.clone()).map_err(|error| unreachable(error.to_string()))?;
        let opened = async {
            let stream = TcpStream::connect((agent.ip, agent.port)).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(name, stream).await
        };
        let stream = timeout(CONNECT_TIMEOUT, opened)
            .await
            .map_err(|_| unreachable(format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis())))?
            .map_err(|error| unreachable(error.to_string()))?;
        let (connection, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        tokio::spawn(async move {
            // The error is seen by whoever uses the connection next.
            let _ = driver.await;
        });
        Ok(connection)
    }
}

/// All pods of a cluster carry the same certificate, and an address can have passed to another pod.
fn check_pod(agent: &AgentAddress, answered: &str) -> Result<(), AgentCallError> {
    if answered == agent.pod {
        return Ok(());
    }
    let reason = format!("at its address {} the pod {answered} answers", agent.ip);
    Err(AgentCallError::Unreachable { pod: agent.pod.clone(), reason })
}

fn render_body<T: Serialize>(agent: &AgentAddress, body: &T) -> Result<Bytes, AgentCallError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| AgentCallError::Garbled { pod: agent.pod.clone(), reason: error.to_string() })
}

fn parse_answer(agent: &AgentAddress, status: StatusCode, answer: Bytes) -> Result<Bytes, AgentCallError> {
    if status.is_success() {
        return Ok(answer);
    }
    let message = serde_json::from_slice::<AgentError>(&answer)
        .map_or_else(|_| String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned(), |error| error.error);
    Err(AgentCallError::Refused { pod: agent.pod.clone(), status: status.as_u16(), message })
}

#[cfg(test)]
pub(crate) mod tests;

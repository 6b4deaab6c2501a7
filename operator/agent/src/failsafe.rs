//! Asking the peers to vouch while the API server can't be reached. All are asked at once, each with a time of its own, so
//! that a slow one delays nobody; whether the promises are enough is decided in [`pgherd_core::failsafe`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::{Body, to_bytes};
use futures::future::BoxFuture;
use http::{Method, Request, header};
use hyper_util::rt::TokioIo;
use pgherd_core::{
    failsafe::{Failsafe, Promise, Shortfall, build_others, may_go_on},
    instance::{AgentError, VouchRequest},
    register::{Register, Term},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    actions::describe_chain,
    agent::Agent,
    clock::Boottime,
    layout::{Layout, slot_name},
    tls::{TlsError, build_client_config},
};

/// One peer, from looking its name up to its answer.
const PEER_TIMEOUT: Duration = Duration::from_millis(1_200);
/// No answer is longer.
const MAX_ANSWER_BYTES: usize = 1 << 16;
/// The promise outlasts the asker's deadline by this much, in milliseconds: SIGQUIT, a second later SIGKILL.
pub const OUTLAST_MS: u64 = 2_000;

/// The cluster's DNS may be away together with the API server; then the last known address must do.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(400);

/// Where the peers were last found. All pods show the same certificate, but a promise says whose it is.
#[derive(Debug, Default)]
pub struct AddressBook {
    known: Mutex<BTreeMap<String, SocketAddr>>,
}

impl AddressBook {
    fn note(&self, pod: &str, address: SocketAddr) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), address);
    }

    /// The addresses to try: what the name stands for now, or what it stood for last.
    async fn resolve(&self, pod: &str, host: &str, port: u16) -> Vec<SocketAddr> {
        let found = timeout(RESOLVE_TIMEOUT, lookup_host((host, port))).await;
        let found: Vec<SocketAddr> = found.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default();
        match found.first() {
            Some(first) => {
                self.note(pod, *first);
                found
            }
            None => self.known.lock().unwrap_or_else(PoisonError::into_inner).get(pod).copied().into_iter().collect(),
        }
    }
}

/// The way to the peers: TLS over TCP, and another one in the simulation. Bounds in time and what promises mean stay here.
pub trait PeerTransport: Send + Sync {
    /// Asks one peer to vouch.
    fn vouch<'a>(&'a self, peer: &'a str, request: &'a VouchRequest) -> BoxFuture<'a, Result<Promise, PeerError>>;
}

/// TLS over TCP, with the certificates as they are now.
struct TlsPeers {
    tls: Arc<ClientConfig>,
    layout: Layout,
    cluster: String,
    namespace: String,
    book: Arc<AddressBook>,
}

impl TlsPeers {
    fn of(agent: &Agent) -> Result<Self, FailsafeError> {
        Ok(Self {
            tls: Arc::new(build_client_config(&agent.layout.tls())?),
            layout: agent.layout.clone(),
            cluster: agent.config().cluster.clone(),
            namespace: agent.identity.namespace.clone(),
            book: Arc::clone(&agent.addresses),
        })
    }
}

impl PeerTransport for TlsPeers {
    fn vouch<'a>(&'a self, peer: &'a str, request: &'a VouchRequest) -> BoxFuture<'a, Result<Promise, PeerError>> {
        Box::pin(async move {
            let (host, port) = self.layout.peer_agent(&self.cluster, &self.namespace, peer);
            let addresses = self.book.resolve(peer, &host, port).await;
            ask(Arc::clone(&self.tls), peer, &host, &addresses, request).await
        })
    }
}

/// Looks the peers' addresses up while all is well.
pub async fn note_addresses(agent: Arc<Agent>) {
    if agent.peers.is_some() {
        return;
    }
    let Some(register) = agent.register.borrow().as_ref().map(|seen| seen.lease.register.clone()) else { return };
    let Some(others) = observe_others(&agent, &register) else { return };
    for pod in others {
        let (host, port) = agent.layout.peer_agent(&agent.config().cluster, &agent.identity.namespace, &pod);
        let _ = agent.addresses.resolve(&pod, &host, port).await;
    }
}

/// Why a peer did not vouch.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or no TLS with its name.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The exchange broke off.
    #[error("the exchange broke off: {0}")]
    Exchange(String),
    /// It answered no.
    #[error("refused: {0}")]
    Refused(String),
    /// It answered something else.
    #[error("an unusable answer: {0}")]
    Garbled(String),
}

/// Why the holder may not go on.
#[derive(Debug, thiserror::Error)]
pub enum FailsafeError {
    /// The certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The register was never read, or PostgreSQL does not say who else has data.
    #[error("it is not known who else would have to vouch")]
    Unknown,
    /// Too few promised. `refusals` are for people.
    #[error("{shortfall}{}", render_refusals(.refusals))]
    Shortfall {
        /// What is missing.
        shortfall: Shortfall,
        /// What the peers said.
        refusals: Vec<(String, String)>,
    },
}

fn render_refusals(refusals: &[(String, String)]) -> String {
    let mut texts: Vec<String> = refusals.iter().map(|(pod, why)| format!("{pod}: {why}")).collect();
    texts.sort();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join("; ")) }
}

/// Asks every peer to vouch for the holder of `term`. Returns as soon as enough have promised, with their pods and the
/// time from before the first request was sent; the others go on being asked meanwhile.
///
/// # Errors
/// [`FailsafeError`].
pub async fn ask_peers(
    agent: &Agent,
    register: &Register,
    term: Term,
) -> Result<(Boottime, Vec<String>), FailsafeError> {
    let others = observe_others(agent, register).ok_or(FailsafeError::Unknown)?;
    let asked_at = Boottime::now();
    let for_ms = agent.config().timings.fence_ms.saturating_add(OUTLAST_MS);
    let mut answers = send_requests(agent, &others, term, for_ms)?;
    let (mut promises, mut refusals) = (Vec::new(), Vec::new());
    loop {
        let input = Failsafe { register, others: &others, promises: &promises, at_least_ms: for_ms };
        let shortfall = match may_go_on(&input) {
            Ok(()) => return Ok((asked_at, promises.into_iter().map(|promise| promise.pod).collect())),
            Err(shortfall) => shortfall,
        };
        match answers.recv().await {
            Some((_, Ok(promise))) => promises.push(promise),
            Some((pod, Err(error))) => refusals.push((pod, error.to_string())),
            None => return Err(FailsafeError::Shortfall { shortfall, refusals }),
        }
    }
}

/// The pods that may have data of this cluster. None when PostgreSQL does not say which slots there are and a commit waits
/// for nobody: a replica that is being removed has no other trace.
fn observe_others(agent: &Agent, register: &Register) -> Option<BTreeSet<String>> {
    let config = agent.config();
    let prefix = format!("{}_", slot_name(&config.cluster));
    let pod = |slot: &String| Some(format!("{}-{}", config.cluster, slot.strip_prefix(&prefix)?.parse::<u32>().ok()?));
    let known: Vec<String> = match agent.sample() {
        Some(sample) => sample.slots.iter().filter_map(|(slot, _)| pod(slot)).collect(),
        None if register.quorum.acks > 0 && register.quorum_to_apply().acks > 0 => Vec::new(),
        None => return None,
    };
    Some(build_others(register, &config.cluster, config.instances, &known, &agent.identity.pod))
}

type Answer = (String, Result<Promise, PeerError>);

/// One task a peer; the channel ends when all have answered or failed.
fn send_requests(
    agent: &Agent,
    others: &BTreeSet<String>,
    term: Term,
    for_ms: u64,
) -> Result<mpsc::UnboundedReceiver<Answer>, FailsafeError> {
    let (sender, answers) = mpsc::unbounded_channel();
    if others.is_empty() {
        return Ok(answers);
    }
    let (pod, pod_uid) = (agent.identity.pod.clone(), agent.identity.pod_uid.clone());
    let request = VouchRequest { term, pod, pod_uid, for_ms };
    let transport: Arc<dyn PeerTransport> = match &agent.peers {
        Some(transport) => Arc::clone(transport),
        None => Arc::new(TlsPeers::of(agent)?),
    };
    for peer in others {
        let (sender, transport, request, peer) =
            (sender.clone(), Arc::clone(&transport), request.clone(), peer.clone());
        drop(tokio::spawn(async move {
            let answer = timeout(PEER_TIMEOUT, transport.vouch(&peer, &request)).await;
            // Nobody listens any more once enough have promised.
            let _ = sender.send((peer, answer.unwrap_or(Err(PeerError::Timeout))));
        }));
    }
    Ok(answers)
}

async fn ask(
    tls: Arc<ClientConfig>,
    pod: &str,
    host: &str,
    addresses: &[SocketAddr],
    request: &VouchRequest,
) -> Result<Promise, PeerError> {
    let unknown = |error| PeerError::Connect(io::Error::new(io::ErrorKind::InvalidInput, error));
    let name = ServerName::try_from(host.to_owned()).map_err(unknown)?;
    let stream = TcpStream::connect(addresses).await.map_err(PeerError::Connect)?;
    stream.set_nodelay(true).map_err(PeerError::Connect)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(PeerError::Connect)?;
    let broken = |error: hyper::Error| PeerError::Exchange(describe_chain(&error));
    let (mut connection, driver) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(broken)?;
    // Its error is seen by the request.
    let driver = tokio::spawn(driver);
    let outcome = exchange(&mut connection, pod, host, request).await;
    driver.abort();
    outcome
}

async fn exchange(
    connection: &mut hyper::client::conn::http1::SendRequest<Body>,
    pod: &str,
    host: &str,
    request: &VouchRequest,
) -> Result<Promise, PeerError> {
    let body = serde_json::to_vec(request).map_err(|error| PeerError::Garbled(error.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/vouch")
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|error| PeerError::Exchange(error.to_string()))?;
    let response =
        connection.send_request(request).await.map_err(|error| PeerError::Exchange(describe_chain(&error)))?;
    let status = response.status();
    let body = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await;
    let body = body.map_err(|error| PeerError::Exchange(error.to_string()))?;
    if !status.is_success() {
        let said = serde_json::from_slice::<AgentError>(&body).map(|error| error.error);
        return Err(PeerError::Refused(said.unwrap_or_else(|_| status.to_string())));
    }
    let promise: Promise = serde_json::from_slice(&body).map_err(|error| PeerError::Garbled(error.to_string()))?;
    // An address can have passed to another pod, and all pods show the same certificate.
    if promise.pod == pod { Ok(promise) } else { Err(PeerError::Garbled(format!("{} answers there", promise.pod))) }
}

//! The agent's HTTPS API. Every client shows a certificate of the cluster's CA; only the operator's may change anything.
//! The status is a copy of what is known, so it is answered at once even when PostgreSQL is frozen.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Extension, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use pgherd_core::{
    failsafe::Promise,
    instance::{
        AgentError, ArchiveBarrier, InstanceStatus, OPERATOR_CN, REPLICATION_ROLE, RestoreAnswer, RestoreQuestion,
        SealRequest, VouchRequest, WalSpan,
    },
    local_backup::{LOCAL_BACKUP_PATH, LocalBackupRequest},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    actions::{
        describe_chain,
        rebuild::{RebuildError, rebuild},
        seal::{SealError, seal},
    },
    agent::Agent,
    barrier::{BarrierError, find_missing, pass_archive_barrier},
    local_backup::{LocalBackupError, begin},
    restore_check,
    tls::{build_server_config, parse_common_name},
    vouch::{VouchError, vouch},
};

/// A TLS handshake may take this long.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A client that acknowledges nothing for this long is gone, and with it what lasts as long as its connection.
const USER_TIMEOUT_MS: u32 = 30_000;

/// Common name of the client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClientName(String);

/// Serves the API; never ends. Certificates that changed are used from the next connection on.
pub async fn serve(agent: Arc<Agent>, mut certificates: watch::Receiver<u64>) {
    loop {
        match bind_any(agent.layout.api_port).await {
            Ok(listener) => serve_on(Arc::clone(&agent), listener, &mut certificates).await,
            Err(error) => {
                tracing::error!(error = %error, port = agent.layout.api_port, "the agent's port can't be opened")
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Listens on every address; on IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// When the port is taken, for example.
pub async fn bind_any(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// Serves on a listener until it fails.
pub async fn serve_on(agent: Arc<Agent>, listener: TcpListener, certificates: &mut watch::Receiver<u64>) {
    let folder = agent.layout.tls();
    let mut acceptor = None;
    let router = build_router(agent);
    loop {
        if acceptor.is_none() || certificates.has_changed().unwrap_or_default() {
            certificates.mark_unchanged();
            match build_server_config(&folder) {
                Ok(config) => acceptor = Some(TlsAcceptor::from(config)),
                Err(error) => tracing::error!(error = %describe_chain(&error), "keeping the last server certificate"),
            }
        }
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "failed to accept a connection");
                return;
            }
        };
        if let Err(error) = setsockopt(&stream, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS) {
            tracing::debug!(error = %error, "no bound for what a client does not acknowledge");
        }
        let Some(acceptor) = acceptor.clone() else { continue };
        drop(tokio::spawn(serve_connection(acceptor, stream, router.clone())));
    }
}

async fn serve_connection(acceptor: TlsAcceptor, stream: TcpStream, router: Router) {
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let chain = stream.get_ref().1.peer_certificates();
    let Some(name) = chain.and_then(|chain| chain.first()).and_then(parse_common_name) else { return };
    let service = TowerToHyperService::new(router.layer(Extension(ClientName(name))));
    let connection = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = connection.http1_only().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error = %error, "a connection ended early");
    }
}

/// The API's paths.
fn build_router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/status", get(show_status))
        .route("/v1/seal", post(post_seal))
        .route("/v1/vouch", post(post_vouch))
        .route("/v1/archive-barrier", post(post_barrier))
        .route("/v1/rebuild", post(post_rebuild))
        .route("/v1/restore-check", post(post_restore_check))
        .route("/v1/wake", post(post_wake))
        .route(LOCAL_BACKUP_PATH, post(post_backup))
        .with_state(agent)
}

/// An error answer.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(AgentError { error: self.1 })).into_response()
    }
}

fn check_operator(client: &ClientName) -> Result<(), Refusal> {
    if client.0 == OPERATOR_CN {
        Ok(())
    } else {
        Err(Refusal(StatusCode::FORBIDDEN, "only the operator may do this".to_owned()))
    }
}

async fn show_status(State(agent): State<Arc<Agent>>) -> Json<InstanceStatus> {
    let mut status = agent.board.status();
    status.vouch = agent.vouches.show(status.member.as_ref());
    Json(status)
}

async fn post_seal(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
    Json(request): Json<SealRequest>,
) -> Result<Response, Refusal> {
    check_operator(&client)?;
    let report = seal(&agent, request.term).await.map_err(|error| {
        let code = match &error {
            SealError::Promised { .. } | SealError::Leads(_) | SealError::Vouching(_) => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        tracing::warn!(error = %error, term = %request.term, "not sealed");
        Refusal(code, error.to_string())
    })?;
    Ok(Json(report).into_response())
}

/// Any instance of the cluster may ask for a promise.
async fn post_vouch(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
    Json(request): Json<VouchRequest>,
) -> Result<Json<Promise>, Refusal> {
    if ![OPERATOR_CN, REPLICATION_ROLE].contains(&client.0.as_str()) {
        return Err(Refusal(StatusCode::FORBIDDEN, "only the cluster's own instances may do this".to_owned()));
    }
    let promise = vouch(&agent, &request).await.map_err(|error| {
        let code = match &error {
            VouchError::Malformed(_) => StatusCode::BAD_REQUEST,
            VouchError::Refused(_) => StatusCode::CONFLICT,
            VouchError::Write { .. } | VouchError::Unreadable => StatusCode::SERVICE_UNAVAILABLE,
        };
        tracing::warn!(error = %describe_chain(&error), term = %request.term, pod = request.pod, "not vouched for");
        Refusal(code, describe_chain(&error))
    })?;
    Ok(Json(promise))
}

async fn post_barrier(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
    body: Bytes,
) -> Result<Json<ArchiveBarrier>, Refusal> {
    check_operator(&client)?;
    // An operator of before sends no body.
    let span: Option<WalSpan> = match body.is_empty() {
        true => None,
        false => serde_json::from_slice(&body)
            .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("the span of WAL is malformed: {error}")))?,
    };
    let refuse = |error: BarrierError| {
        let code = match &error {
            BarrierError::NotPrimary | BarrierError::NoStore | BarrierError::Elsewhere(..) => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal(code, describe_chain(&error))
    };
    let barrier = pass_archive_barrier(&agent).await.map_err(refuse)?;
    let missing = match &span {
        Some(span) if barrier.archived => Some(find_missing(&agent, span).await.map_err(refuse)?),
        _ => None,
    };
    Ok(Json(ArchiveBarrier { missing, ..barrier }))
}

async fn post_rebuild(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
) -> Result<StatusCode, Refusal> {
    check_operator(&client)?;
    rebuild(&agent).await.map_err(|error| {
        let code = match &error {
            RebuildError::Refused(_) => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        tracing::warn!(error = %describe_chain(&error), "not built anew");
        Refusal(code, describe_chain(&error))
    })?;
    Ok(StatusCode::NO_CONTENT)
}

async fn post_restore_check(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
    Json(question): Json<RestoreQuestion>,
) -> Result<Json<RestoreAnswer>, Refusal> {
    check_operator(&client)?;
    Ok(Json(restore_check::answer(&agent, question).await))
}

async fn post_wake(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
) -> Result<StatusCode, Refusal> {
    check_operator(&client)?;
    let read = crate::lease::refresh(&agent).await;
    read.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    agent.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// The Jobs that make backups show the certificate that replicas show; what they may read by replication they may have read here.
async fn post_backup(
    State(agent): State<Arc<Agent>>,
    Extension(client): Extension<ClientName>,
    Json(request): Json<LocalBackupRequest>,
) -> Result<Response, Refusal> {
    if client.0 != REPLICATION_ROLE {
        return Err(Refusal(StatusCode::FORBIDDEN, "only a backup's Job may do this".to_owned()));
    }
    let lines = begin(&agent, request).await.map_err(|error| {
        let code = match &error {
            LocalBackupError::Refused(_) | LocalBackupError::Busy => StatusCode::CONFLICT,
            LocalBackupError::Start(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        tracing::warn!(error = %describe_chain(&error), "no backup from local files");
        Refusal(code, describe_chain(&error))
    })?;
    let pieces = futures::stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|piece| (Ok::<_, Infallible>(piece), lines))
    });
    Ok(Body::from_stream(pieces).into_response())
}

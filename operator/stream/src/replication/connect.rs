//! Connecting: TCP or a unix socket, TLS verified by host name, authentication by certificate or SCRAM-SHA-256.
//!
//! A cleartext or MD5 password is never sent.

use std::{fs, io, sync::Arc, time::Duration};

use fallible_iterator::FallibleIterator;
use nix::sys::socket::{setsockopt, sockopt};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::{
    ConnectOptions,
    error::ReplicationError,
    wire::{ByteStream, Wire, parse_server_error},
};
use crate::tls::TlsError;

const WHAT: &str = "the start of the session";
/// Every server has it, unless somebody dropped it.
const DEFAULT_DATABASE: &str = "postgres";
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;
/// Data that was sent and not acknowledged for this long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connected and authenticated session.
pub(super) type Session = Wire<Box<dyn ByteStream>>;

/// What a session understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionKind {
    /// Replication commands; SQL too where a database is named.
    Replication,
    /// SQL alone, in the database that is named or in `postgres`.
    Sql,
}

/// Connects within `connect_timeout` and leaves the session ready for a command.
pub(super) async fn connect(options: &ConnectOptions, kind: SessionKind) -> Result<Session, ReplicationError> {
    let timeout = options.connect_timeout;
    tokio::time::timeout(timeout, async {
        let stream = open_stream(options).await?;
        let mut wire = Wire::new(stream);
        start_session(&mut wire, options, kind).await?;
        Ok(wire)
    })
    .await
    .map_err(|_| ReplicationError::Timeout { what: "session", after: timeout })?
}

async fn open_stream(options: &ConnectOptions) -> Result<Box<dyn ByteStream>, ReplicationError> {
    if options.host.starts_with('/') {
        let address = format!("{}/.s.PGSQL.{}", options.host.trim_end_matches('/'), options.port);
        let stream = UnixStream::connect(&address).await;
        return Ok(Box::new(stream.map_err(|source| ReplicationError::Connect { address, source })?));
    }
    let address = format!("{}:{}", options.host, options.port);
    let failed = |source| ReplicationError::Connect { address: address.clone(), source };
    // The configuration is read first: unusable files must not look like a network problem.
    let config = options.tls.as_ref().map(|tls| tls.client_config()).transpose()?;
    let stream = TcpStream::connect((options.host.as_str(), options.port)).await.map_err(failed)?;
    prepare_socket(&stream).map_err(failed)?;
    match config {
        None => Ok(Box::new(stream)),
        Some(config) => start_tls(stream, config, &options.server_name, address).await,
    }
}

fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds(KEEPALIVE_IDLE))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds(KEEPALIVE_INTERVAL))?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(seconds(USER_TIMEOUT) * 1000))?;
    Ok(())
}

async fn start_tls(
    mut stream: TcpStream,
    config: Arc<ClientConfig>,
    server_name: &str,
    address: String,
) -> Result<Box<dyn ByteStream>, ReplicationError> {
    let name =
        ServerName::try_from(server_name.to_owned()).map_err(|_| TlsError::ServerName(server_name.to_owned()))?;
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // One byte and not more: anything sent before the handshake would be taken for data of the TLS session.
    if stream.read_u8().await? != b'S' {
        return Err(ReplicationError::TlsRefused(address));
    }
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream =
        connector.connect(name, stream).await.map_err(|source| ReplicationError::Handshake { address, source })?;
    Ok(Box::new(stream))
}

async fn start_session(
    wire: &mut Session,
    options: &ConnectOptions,
    kind: SessionKind,
) -> Result<(), ReplicationError> {
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("application_name", options.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    // No setting of the role or the server may end a session that only waits: a slot, or a backup, would end with it.
    parameters.extend(["statement_timeout", "lock_timeout", "idle_session_timeout"].map(|setting| (setting, "0")));
    match (kind, options.database.as_deref()) {
        (SessionKind::Sql, database) => parameters.push(("database", database.unwrap_or(DEFAULT_DATABASE))),
        (SessionKind::Replication, Some(database)) => {
            parameters.extend([("database", database), ("replication", "database")]);
        }
        (SessionKind::Replication, None) => parameters.push(("replication", "true")),
    }
    wire.send(|buffer| frontend::startup_message(parameters, buffer)).await?;
    loop {
        match wire.read(WHAT).await? {
            Message::AuthenticationOk
            | Message::ParameterStatus(_)
            | Message::BackendKeyData(_)
            | Message::NoticeResponse(_) => {}
            Message::AuthenticationSasl(body) => authenticate_scram(wire, &body, options).await?,
            Message::AuthenticationCleartextPassword => return Err(refused("cleartext password")),
            Message::AuthenticationMd5Password(_) => return Err(refused("MD5 password")),
            Message::ErrorResponse(body) => return Err(parse_server_error(body.fields())?.into()),
            Message::ReadyForQuery(_) => return Ok(()),
            _ => return Err(refused("an unsupported kind of")),
        }
    }
}

fn refused(method: &'static str) -> ReplicationError {
    ReplicationError::AuthenticationRefused(method)
}

async fn authenticate_scram(
    wire: &mut Session,
    body: &AuthenticationSaslBody,
    options: &ConnectOptions,
) -> Result<(), ReplicationError> {
    let malformed = |error: io::Error| ReplicationError::Protocol(error.to_string());
    let mut mechanisms = body.mechanisms();
    let mut offered = false;
    while let Some(mechanism) = mechanisms.next().map_err(malformed)? {
        offered |= mechanism == SCRAM_SHA_256;
    }
    let path = options.password_file.clone().filter(|_| offered).ok_or_else(|| refused("password"))?;
    let text = fs::read(&path).map_err(|source| ReplicationError::PasswordFile { path, source })?;
    let mut scram = ScramSha256::new(text.trim_ascii_end(), ChannelBinding::unsupported());
    wire.send(|buffer| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), buffer)).await?;
    let challenge = read_sasl(wire).await?;
    scram.update(&challenge).map_err(ReplicationError::Scram)?;
    wire.send(|buffer| frontend::sasl_response(scram.message(), buffer)).await?;
    let verdict = read_sasl(wire).await?;
    scram.finish(&verdict).map_err(ReplicationError::Scram)
}

async fn read_sasl(wire: &mut Session) -> Result<Vec<u8>, ReplicationError> {
    match wire.read(WHAT).await? {
        Message::AuthenticationSaslContinue(body) => Ok(body.data().to_vec()),
        Message::AuthenticationSaslFinal(body) => Ok(body.data().to_vec()),
        Message::ErrorResponse(body) => Err(parse_server_error(body.fields())?.into()),
        _ => Err(ReplicationError::Protocol("the SCRAM exchange was broken off".into())),
    }
}

//! The Job's side: asks the agent beside the data directory for a backup and hears how it goes. The backup lasts as long as the
//! connection, so that one whose Job is gone is gone as well.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{Response, body::Incoming};
use hyper_util::rt::TokioIo;
use pgherd_core::{
    instance::AgentError,
    local_backup::{LOCAL_BACKUP_PATH, LocalBackupRequest},
};
use pgherd_stream::{backup::BackupProgress, tls::TlsError};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Line;
use crate::{
    jobs::backup::{
        CONNECT_TIMEOUT, build_tls,
        config::{BackupJobConfig, LocalConfig, SourceConfig},
        failure::describe_failure,
        outcome::{BackupFailure, BackupOutcome},
    },
    telemetry::error_chain,
};

/// The agent has only to start a process.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Something is said every other second.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Nothing that is said is longer.
const MAX_LINE: usize = 1 << 20;

/// Why the agent's backup came to no end.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the certificates for the agent cannot be used")]
    Tls(#[from] TlsError),
    #[error("connecting to the agent at {0}")]
    Connect(String, #[source] io::Error),
    #[error("talking to the agent")]
    Http(#[from] hyper::Error),
    #[error("asking the agent")]
    Request(#[from] http::Error),
    #[error("the request for the agent")]
    Render(#[source] serde_json::Error),
    #[error("the agent does not answer")]
    NoAnswer,
    #[error("the agent refused ({0}): {1}")]
    Refused(StatusCode, String),
    #[error("the agent has said nothing for a minute")]
    Silent,
    #[error("the agent says what this version does not understand")]
    Garbled(#[source] serde_json::Error),
    #[error("the agent says more than belongs on a line")]
    TooLong,
    #[error("the backup broke off: its process ended without a word, or the instance did")]
    BrokeOff,
}

impl AskError {
    /// Another attempt streams, whatever this was.
    fn describe(&self) -> BackupFailure {
        let reason = match self {
            Self::Silent | Self::Garbled(_) | Self::TooLong | Self::BrokeOff => "LocalBackupLost",
            _ => "LocalBackupNotBegun",
        };
        BackupFailure { reason: reason.to_owned(), error: error_chain(self), retry: true }
    }
}

/// Has the agent make the backup; returns its outcome, or why there is none.
pub(in crate::jobs::backup) async fn back_up_by_agent(
    config: &BackupJobConfig,
    local: LocalConfig,
    progress: watch::Sender<BackupProgress>,
    cancel: &CancellationToken,
) -> BackupOutcome {
    tokio::select! {
        biased;
        () = cancel.cancelled() => BackupOutcome::Failed(describe_failure(&pgherd_stream::backup::BackupError::Cancelled)),
        outcome = converse(config, local, &progress) => match outcome {
            Ok(outcome) => outcome,
            Err(error) => BackupOutcome::Failed(error.describe()),
        },
    }
}

async fn converse(
    config: &BackupJobConfig,
    local: LocalConfig,
    progress: &watch::Sender<BackupProgress>,
) -> Result<BackupOutcome, AskError> {
    let request = LocalBackupRequest {
        backup_uid: config.backup_uid.clone(),
        attempt: config.attempt,
        location: config.location.clone(),
        min_level: config.compression.and_then(|levels| levels.min_level),
        max_level: config.compression.and_then(|levels| levels.max_level),
        max_rate: config.max_rate,
    };
    let request = Bytes::from(serde_json::to_vec(&request).map_err(AskError::Render)?);
    // The connection ends with its driver.
    let (response, _driver) = ask(&config.source, local.agent_port, request).await?;
    hear(response.into_body(), progress).await
}

/// Sends the request; what drives the connection comes with the answer.
async fn ask(
    source: &SourceConfig,
    port: u16,
    request: Bytes,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), AskError> {
    let connector = TlsConnector::from(build_tls(source).client_config()?);
    let name = ServerName::try_from(source.host.clone()).map_err(|_| TlsError::ServerName(source.host.clone()))?;
    let address = format!("{}:{port}", source.host);
    let opened = timeout(CONNECT_TIMEOUT, async {
        let stream = TcpStream::connect((source.host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        connector.connect(name, stream).await
    });
    let opened = opened.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = opened.map_err(|error| AskError::Connect(address, error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // Whoever waits for the answer sees the error.
        let _ = connection.await;
    }));
    let request = Request::builder()
        .method(Method::POST)
        .uri(LOCAL_BACKUP_PATH)
        .header(header::HOST, &source.host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(request))?;
    let response = timeout(BEGIN_TIMEOUT, sender.send_request(request)).await.map_err(|_| AskError::NoAnswer)??;
    let status = response.status();
    if status.is_success() {
        return Ok((response, driver));
    }
    let body =
        timeout(BEGIN_TIMEOUT, response.into_body().collect()).await.map_err(|_| AskError::NoAnswer)??.to_bytes();
    let said = serde_json::from_slice::<AgentError>(&body).map(|error| error.error);
    let said = said.unwrap_or_else(|_| match status {
        StatusCode::NOT_FOUND => "it is of a version that knows no such backups".to_owned(),
        _ => String::from_utf8_lossy(body.get(..body.len().min(300)).unwrap_or_default()).into_owned(),
    });
    Err(AskError::Refused(status, said))
}

/// Passes on how far the backup is, until it says how it ended.
async fn hear(mut body: Incoming, progress: &watch::Sender<BackupProgress>) -> Result<BackupOutcome, AskError> {
    let mut lines = Lines::default();
    loop {
        let frame = timeout(SILENCE_TIMEOUT, body.frame()).await.map_err(|_| AskError::Silent)?;
        let frame = frame.ok_or(AskError::BrokeOff)?.map_err(|_| AskError::BrokeOff)?;
        let Ok(data) = frame.into_data() else { continue };
        for line in lines.add(&data)? {
            match line {
                Line::Progress(line) => progress.send_modify(|progress| line.apply(progress)),
                Line::Outcome(outcome) => return Ok(outcome),
            }
        }
    }
}

/// Lines from pieces that end anywhere.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
}

impl Lines {
    fn add(&mut self, piece: &[u8]) -> Result<Vec<Line>, AskError> {
        self.rest.extend_from_slice(piece);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            lines.push(serde_json::from_slice(&line).map_err(AskError::Garbled)?);
        }
        if self.rest.len() > MAX_LINE { Err(AskError::TooLong) } else { Ok(lines) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ProgressLine, *};
    use crate::{
        controllers::{backup::tests::location, postgres_cluster::tls::OperatorIdentity},
        jobs::backup::outcome::tests::summary,
        kubernetes::agent_client::tests::Pki,
    };

    #[test]
    fn lines_come_in_pieces_and_what_never_ends_is_refused() {
        let progress = Line::Progress(ProgressLine { bytes_done: 7, ..ProgressLine::default() });
        let outcome = Line::Outcome(BackupOutcome::Completed(Box::new(summary())));
        let said: Vec<u8> = [&progress, &outcome]
            .iter()
            .flat_map(|line| [serde_json::to_vec(line).unwrap(), vec![b'\n']].concat())
            .collect();
        for size in [1, 3, said.len()] {
            let mut lines = Lines::default();
            let heard: Vec<Line> = said.chunks(size).flat_map(|piece| lines.add(piece).unwrap()).collect();
            assert_eq!(heard, [progress.clone(), outcome.clone()]);
        }
        let mut lines = Lines::default();
        assert!(matches!(lines.add(&vec![b' '; MAX_LINE + 1]), Err(AskError::TooLong)));
        assert!(matches!(Lines::default().add(b"no\n"), Err(AskError::Garbled(_))));
    }

    /// What a Job makes of an agent that answers so; and the bytes of the last progress.
    async fn ask_one_that_answers(status: u16, answer: Vec<&Line>, more: &str) -> (BackupOutcome, u64) {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
        let OperatorIdentity { ca_pem, certificate_pem, key_pem } = pki.identity();
        for (name, pem) in [("ca.crt", ca_pem), ("replication.crt", certificate_pem), ("replication.key", key_pem)] {
            std::fs::write(dir.path().join(name), pem).unwrap();
        }
        let lines = answer.iter().map(|line| serde_json::to_string(line).unwrap() + "\n");
        let answer = lines.collect::<String>() + more;
        let port = pki
            .serve_on("localhost", (std::net::Ipv4Addr::LOCALHOST, 0), move |path| {
                assert_eq!(path, LOCAL_BACKUP_PATH);
                (status, answer.clone())
            })
            .await;
        let config = BackupJobConfig {
            namespace: "prod".into(),
            backup: "b".into(),
            backup_uid: "u".into(),
            attempt: 1,
            source: SourceConfig {
                pod: "shop-1".into(),
                host: "localhost".into(),
                port: 5432,
                user: "pgherd".into(),
                tls_dir: dir.path().display().to_string(),
            },
            location: location(),
            compression: None,
            max_rate: None,
            incremental: None,
            local: None,
        };
        let (sender, receiver) = watch::channel(BackupProgress::default());
        let local = LocalConfig { agent_port: port };
        let outcome = back_up_by_agent(&config, local, sender, &CancellationToken::new()).await;
        let done = receiver.borrow().bytes_done;
        (outcome, done)
    }

    #[tokio::test]
    async fn an_outcome_comes_from_the_agent_and_all_else_is_a_failure_that_says_why() {
        let progress = Line::Progress(ProgressLine { bytes_done: 7, ..ProgressLine::default() });
        let completed = BackupOutcome::Completed(Box::new(summary()));
        let outcome = Line::Outcome(completed.clone());
        assert_eq!(ask_one_that_answers(200, vec![&progress, &outcome], "").await, (completed, 7));
        for (status, more, reason, said) in [
            (200, "", "LocalBackupLost", "broke off"),
            (200, "{\"outcome\"", "LocalBackupLost", "broke off"),
            (200, "words\n", "LocalBackupLost", "does not understand"),
            (409, r#"{"error":"not now: it is being rebuilt"}"#, "LocalBackupNotBegun", "being rebuilt"),
            (404, "", "LocalBackupNotBegun", "of a version that knows no such backups"),
        ] {
            let answer = if status == 200 { vec![&progress] } else { vec![] };
            let (outcome, _) = ask_one_that_answers(status, answer, more).await;
            let BackupOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
            assert_eq!((failure.reason.as_str(), failure.retry), (reason, true), "{}", failure.error);
            assert!(failure.error.contains(said), "{}", failure.error);
        }
    }

    #[test]
    fn whatever_went_wrong_another_attempt_follows() {
        let refused = AskError::Refused(StatusCode::CONFLICT, "not now".to_owned()).describe();
        assert_eq!((refused.reason.as_str(), refused.retry), ("LocalBackupNotBegun", true));
        let lost = AskError::BrokeOff.describe();
        assert_eq!((lost.reason.as_str(), lost.retry), ("LocalBackupLost", true));
    }
}

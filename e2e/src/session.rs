//! Connections as the application makes them: by TLS, with its password, and with an eye on the one warning that matters: a
//! commit whose wait for replicas was cancelled is acknowledged, and yet nobody can know whether it lasts.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pgherd_e2e::{Result, appends::Outcome};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Statement, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A commit that takes longer than this is given up as unknown: the connection may be dead without a word.
const COMMIT_PATIENCE: Duration = Duration::from_secs(3);

/// Knows how to connect.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
}

impl Connector {
    /// `host` is what the certificate is checked against, and what is looked up unless `address` is given.
    pub(crate) fn new(host: &str, address: Option<IpAddr>, credentials: &Path, ca: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(credentials.join(name));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let mut config = Config::new();
        config
            .host(host)
            .port(5432)
            .user(read("username")?)
            .password(read("password")?)
            .dbname(read("dbname")?)
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .connect_timeout(Duration::from_secs(1))
            .tcp_user_timeout(COMMIT_PATIENCE)
            .application_name("pgherd-e2e-writer");
        if let Some(address) = address {
            config.hostaddr(address);
        }
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }

    /// Connections to an instance that takes writes, or none.
    pub(crate) fn only_to_primary(mut self) -> Self {
        self.config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        self
    }

    /// A session; `patience` bounds the whole way to it.
    pub(crate) async fn connect(&self, patience: Duration) -> Result<Session> {
        let connect = self.config.connect(self.tls.clone());
        let (client, connection) = tokio::time::timeout(patience, connect).await??;
        let cancelled = Arc::new(AtomicBool::new(false));
        tokio::spawn(drive(connection, Arc::clone(&cancelled)));
        Ok(Session { client, cancelled })
    }
}

/// Drives a connection and notes cancelled waits. Its errors are those that the client sees at its next call.
async fn drive<S, T>(mut connection: Connection<S, T>, cancelled: Arc<AtomicBool>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message
            && is_cancelled_wait(notice.message())
        {
            cancelled.store(true, Ordering::SeqCst);
        }
    }
}

/// "canceling wait for synchronous replication due to user request" (01000) or "canceling the wait for synchronous
/// replication and terminating connection" (57P01).
fn is_cancelled_wait(message: &str) -> bool {
    message.contains("wait for synchronous replication")
}

/// A connection.
pub(crate) struct Session {
    pub(crate) client: Client,
    cancelled: Arc<AtomicBool>,
}

/// What became of a statement, with the error if the session is of no use any more.
pub(crate) struct Attempt {
    pub(crate) outcome: Outcome,
    pub(crate) cancelled: bool,
    pub(crate) error: Option<pgherd_e2e::Error>,
}

impl Session {
    /// Runs a statement in a transaction of its own and tells what became of it.
    pub(crate) async fn attempt(&self, statement: &Statement, values: &[&(dyn ToSql + Sync)]) -> Attempt {
        self.attempt_within(COMMIT_PATIENCE, statement, values).await
    }

    /// As [`Self::attempt`], given up after `patience`.
    pub(crate) async fn attempt_within(
        &self,
        patience: Duration,
        statement: &Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Attempt {
        let answer = tokio::time::timeout(patience, self.client.execute(statement, values)).await;
        // The warning comes before the answer, and is read by the same task.
        let cancelled = self.cancelled.swap(false, Ordering::SeqCst);
        let (outcome, error) = match answer {
            Ok(Ok(_)) if cancelled => (Outcome::Unknown, None),
            Ok(Ok(_)) => (Outcome::Acknowledged, None),
            // The server said no to this statement: nothing was written. A FATAL tells nothing of the kind: a session that
            // is ended while its commit waits for replicas may have committed.
            Ok(Err(error)) if is_plain_error(&error) => (Outcome::Failed, Some(error.into())),
            Ok(Err(error)) => (Outcome::Unknown, Some(error.into())),
            Err(elapsed) => (Outcome::Unknown, Some(elapsed.into())),
        };
        Attempt { outcome, cancelled, error }
    }
}

fn is_plain_error(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.severity() == "ERROR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_words_of_postgresql_for_a_cancelled_wait_are_known() {
        assert!(is_cancelled_wait("canceling wait for synchronous replication due to user request"));
        assert!(is_cancelled_wait("canceling the wait for synchronous replication and terminating connection"));
        assert!(!is_cancelled_wait("there is no transaction in progress"));
    }
}

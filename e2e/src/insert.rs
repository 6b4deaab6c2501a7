//! The writer itself: one row a transaction, each outcome entered in the ledger as acknowledged, failed or unknown.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pgherd_e2e::{
    Result,
    ledger::{self, LedgerReport, Verification},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::{Client, Config, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A commit that takes longer than this is given up as unknown: the connection may be dead without a word.
const COMMIT_PATIENCE: Duration = Duration::from_secs(3);

/// Inserts rows and remembers what became of each.
pub(crate) struct Writer {
    config: Config,
    tls: MakeRustlsConnect,
    state: Mutex<State>,
}

struct State {
    next: i64,
    acknowledged: BTreeSet<i64>,
    unknown: u64,
    failed: u64,
    last_ack: Instant,
    longest_gap: Duration,
    last_error: String,
    paused: bool,
}

impl Writer {
    pub(crate) fn new(host: String, credentials: &Path, ca: &Path) -> Result<Self> {
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
            .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite)
            .application_name("pgherd-e2e-writer");
        let state = State {
            next: 1,
            acknowledged: BTreeSet::new(),
            unknown: 0,
            failed: 0,
            last_ack: Instant::now(),
            longest_gap: Duration::ZERO,
            last_error: String::new(),
            paused: false,
        };
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in another task must not hide what was acknowledged before it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self) -> LedgerReport {
        let state = self.state();
        let since = if state.paused { Duration::ZERO } else { state.last_ack.elapsed() };
        LedgerReport {
            acknowledged: state.acknowledged.len() as u64,
            unknown: state.unknown,
            failed: state.failed,
            longest_gap_ms: millis(state.longest_gap.max(since)),
            since_last_ack_ms: millis(since),
            last_error: state.last_error.clone(),
        }
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let mut state = self.state();
        state.paused = paused;
        state.last_ack = Instant::now();
    }

    pub(crate) fn reset_gap(&self) {
        let mut state = self.state();
        state.longest_gap = Duration::ZERO;
    }

    pub(crate) async fn verify(&self) -> Result<Verification> {
        let client = self.connect().await?;
        // What is acknowledged is read first: a row written meanwhile can then only be in the table, never missing.
        let (acknowledged, sent) = {
            let state = self.state();
            (state.acknowledged.clone(), state.next)
        };
        let rows = client.query("SELECT id FROM ledger", &[]).await?;
        let present = rows.iter().map(|row| row.get(0)).collect();
        let sent = sent.max(self.state().next);
        Ok(ledger::verify(&acknowledged, &present, sent))
    }

    async fn connect(&self) -> Result<Client> {
        let connect = self.config.connect(self.tls.clone());
        let (client, connection) = tokio::time::timeout(Duration::from_secs(2), connect).await??;
        tokio::spawn(async move {
            // The client sees the same error at its next call and enters it in the ledger.
            drop(connection.await);
        });
        Ok(client)
    }

    async fn insert_until_error(&self, interval_ms: u64) -> Result<()> {
        let client = self.connect().await?;
        client
            .batch_execute(
                "SET lock_timeout = '2s'; CREATE TABLE IF NOT EXISTS ledger \
                 (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await?;
        let statement = client.prepare("INSERT INTO ledger (id) VALUES ($1)").await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(interval_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.state().paused {
                self.insert_one(&client, &statement).await?;
            }
        }
    }

    async fn insert_one(&self, client: &Client, statement: &Statement) -> Result<()> {
        let id = {
            let mut state = self.state();
            let id = state.next;
            state.next += 1;
            id
        };
        let outcome = tokio::time::timeout(COMMIT_PATIENCE, client.execute(statement, &[&id])).await;
        let mut state = self.state();
        match outcome {
            Ok(Ok(_)) => {
                state.longest_gap = state.longest_gap.max(state.last_ack.elapsed());
                state.last_ack = Instant::now();
                state.acknowledged.insert(id);
                Ok(())
            }
            // The server said no to this statement: nothing was written. A FATAL tells nothing of the kind: a session that
            // is ended while its commit waits for replicas may have committed.
            Ok(Err(error)) if is_plain_error(&error) => {
                state.failed += 1;
                Err(error.into())
            }
            Ok(Err(error)) => {
                state.unknown += 1;
                Err(error.into())
            }
            Err(elapsed) => {
                state.unknown += 1;
                Err(elapsed.into())
            }
        }
    }
}

/// Writes for ever; every error is kept for the report and followed by a new connection.
pub(crate) async fn run(writer: Arc<Writer>, interval_ms: u64) {
    loop {
        if let Err(error) = writer.insert_until_error(interval_ms).await {
            writer.state().last_error = error.to_string();
        }
        // How often a client tries again; the gap that is measured can't be finer than this.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_plain_error(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.severity() == "ERROR")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

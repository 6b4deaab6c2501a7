//! The program of the test image: inserts rows without pause and remembers which were acknowledged.
//!
//! `pgherd-e2e writer --host shop-rw.demo.svc` runs in a pod; the API server's pod proxy leads to its HTTP port 8080. The other
//! commands run on the machine of the nodes: a client inside a pod's network, a slow way to the API server, and one on which things go wrong. One more runs in a pod: the way to the
//! object store on which things go wrong.
#![forbid(unsafe_code)]

mod api_proxy;
mod insert;
mod lists;
mod probe;
mod relay;
mod session;
mod slow_proxy;
mod store_proxy;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use clap::{Args, Parser, Subcommand};
use insert::Writer;
use pgherd_e2e::{
    Result,
    ledger::{LedgerReport, Verification},
};
use session::Connector;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Target {
    /// The name to connect to; it is checked against the certificate.
    #[arg(long)]
    host: String,
    /// The address, if the name is not to be looked up.
    #[arg(long)]
    address: Option<IpAddr>,
    /// Folder with `username`, `password` and `dbname`.
    #[arg(long, default_value = "/etc/app")]
    credentials: PathBuf,
    /// The cluster's CA.
    #[arg(long, default_value = "/etc/ca/ca.crt")]
    ca: PathBuf,
}

impl Target {
    fn connector(&self) -> Result<Connector> {
        Connector::new(&self.host, self.address, &self.credentials, &self.ca)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Insert rows into `ledger`, one transaction each, and serve the ledger over HTTP.
    Writer {
        #[command(flatten)]
        target: Target,
        /// Milliseconds between two rows.
        #[arg(long, default_value_t = 10)]
        interval_ms: u64,
        /// Clients that append to lists besides, and one that reads.
        #[arg(long, default_value_t = 0)]
        appenders: u32,
    },
    /// Ask one instance each 100 ms whether it takes writes.
    Probe {
        #[command(flatten)]
        target: Target,
        /// Tells this pod's rows from those of others.
        #[arg(long)]
        name: String,
    },
    /// Hand connections on with a delay.
    SlowProxy {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
        /// Where to hand on to.
        #[arg(long)]
        to: SocketAddr,
        /// How much later the client's bytes come, in milliseconds.
        #[arg(long)]
        delay_ms: u64,
    },
    /// Hand requests on to the API server, and let a fault befall them.
    ApiProxy(api_proxy::Options),
    /// Hand requests on to an object store, and let faults befall them.
    StoreProxy {
        /// Folder with `tls.crt` and `tls.key`.
        #[arg(long)]
        certificate: PathBuf,
        /// The store's HOST:PORT.
        #[arg(long)]
        to: String,
        /// The CA of the store's certificate.
        #[arg(long)]
        ca: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a TLS provider was already installed")?;
    match Cli::parse().command {
        Command::Writer { target, interval_ms, appenders } => write(&target, interval_ms, appenders).await,
        Command::Probe { target, name } => probe::run(target.connector()?, name).await,
        Command::SlowProxy { listen, to, delay_ms } => {
            slow_proxy::run(listen, to, Duration::from_millis(delay_ms)).await
        }
        Command::ApiProxy(options) => api_proxy::run(options).await,
        Command::StoreProxy { certificate, to, ca } => store_proxy::run(&certificate, &to, &ca).await,
    }
}

async fn write(target: &Target, interval_ms: u64, appenders: u32) -> Result<()> {
    let writer = Arc::new(Writer::new(target.connector()?.only_to_primary()));
    tokio::spawn(insert::run(Arc::clone(&writer), interval_ms));
    for _ in 0..appenders {
        tokio::spawn(lists::run(Arc::clone(&writer)));
    }
    if appenders > 0 {
        tokio::spawn(insert::run_reader(Arc::clone(&writer)));
    }
    let routes = Router::new()
        .route("/ledger", get(async |State(writer): State<Arc<Writer>>| Json::<LedgerReport>(writer.report())))
        .route("/verify", get(verify))
        .route("/pause", post(async |State(writer): State<Arc<Writer>>| writer.set_paused(true)))
        .route("/resume", post(async |State(writer): State<Arc<Writer>>| writer.set_paused(false)))
        .route("/reset-gap", post(async |State(writer): State<Arc<Writer>>| writer.reset_gap()))
        .with_state(writer);
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", 8080)).await?;
    axum::serve(listener, routes).await?;
    Ok(())
}

async fn verify(State(writer): State<Arc<Writer>>) -> std::result::Result<Json<Verification>, (StatusCode, String)> {
    writer.verify().await.map(Json).map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

//! The program of the test image: inserts rows without pause and remembers which were acknowledged.
//!
//! `pgherd-e2e writer --host shop-rw.demo.svc` runs in a pod; the API server's pod proxy leads to its HTTP port 8080.
#![forbid(unsafe_code)]

mod insert;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use clap::{Parser, Subcommand};
use insert::Writer;
use pgherd_e2e::ledger::{LedgerReport, Verification};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Insert rows into `ledger`, one transaction each, and serve the ledger over HTTP.
    Writer {
        /// The Service to connect to; its name is checked against the certificate.
        #[arg(long)]
        host: String,
        /// Folder with `username`, `password` and `dbname`.
        #[arg(long, default_value = "/etc/app")]
        credentials: std::path::PathBuf,
        /// The cluster's CA.
        #[arg(long, default_value = "/etc/ca/ca.crt")]
        ca: std::path::PathBuf,
        /// Milliseconds between two rows.
        #[arg(long, default_value_t = 10)]
        interval_ms: u64,
    },
}

#[tokio::main]
async fn main() -> pgherd_e2e::Result<()> {
    let Command::Writer { host, credentials, ca, interval_ms } = Cli::parse().command;
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a TLS provider was already installed")?;
    let writer = Arc::new(Writer::new(host, &credentials, &ca)?);
    tokio::spawn(insert::run(Arc::clone(&writer), interval_ms));
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

async fn verify(State(writer): State<Arc<Writer>>) -> Result<Json<Verification>, (StatusCode, String)> {
    writer.verify().await.map(Json).map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

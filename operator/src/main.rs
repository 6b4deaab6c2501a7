//! Parses the command line and hands over. Nothing is decided here, and no runtime is started: `pgherd agent` must stay a
//! small process without one.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The only TLS provider of the tree. It fails only if one is installed already, which is then the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = pgherd::cli::Cli::parse();
    match pgherd::cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pgherd: {}", pgherd::telemetry::error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

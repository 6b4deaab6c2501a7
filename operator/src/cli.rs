//! The subcommands. Each builds the runtime that it needs, if it needs one.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::settings::OperatorArgs;

/// PostgreSQL on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the operator.
    Operator(OperatorArgs),
    /// Streams one base backup to the object store (runs in a Job).
    Backup {
        /// JSON file that says what to back up and where to.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints the custom resource definitions as YAML.
    Crds,
}

/// Runs the subcommand.
///
/// # Errors
/// What failed, for standard error.
pub fn run(cli: Cli) -> Result<ExitCode, Box<dyn Error>> {
    match cli.command {
        Command::Operator(args) => crate::operator::run(args),
        Command::Backup { config } => crate::jobs::run_backup(&config),
        Command::Crds => print_crds(),
    }
}

fn print_crds() -> Result<ExitCode, Box<dyn Error>> {
    use std::io::Write;

    let mut out = std::io::stdout().lock();
    for crd in pgherd_crds::all() {
        writeln!(out, "---\n{}", yaml_serde::to_string(&crd)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

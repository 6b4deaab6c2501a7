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
    /// PID 1 of a PostgreSQL container: starts the agent, reaps children, and kills PostgreSQL when the Lease is lost.
    Agent,
    /// The agent itself; started by `agent`.
    #[command(hide = true)]
    AgentMain,
    /// Copies this program into an instance's pod and writes its passwd entry (runs in the init container).
    AgentInstall,
    /// PostgreSQL's archive_command: hands a WAL file to the agent.
    ArchiveWal {
        /// Path of the file, relative to the data directory (%p).
        path: String,
        /// Its name (%f).
        name: String,
    },
    /// PostgreSQL's restore_command: asks the agent for a WAL file.
    RestoreWal {
        /// The file's name (%f).
        name: String,
        /// Where to put it, relative to the data directory (%p).
        path: String,
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
        Command::Agent => Ok(pgherd_agent::supervise()),
        Command::AgentMain => Ok(pgherd_agent::run_main()),
        Command::AgentInstall => Ok(pgherd_agent::install()),
        Command::ArchiveWal { path, name } => Ok(pgherd_agent::archive_wal(&path, &name)),
        Command::RestoreWal { name, path } => Ok(pgherd_agent::restore_wal(&name, &path)),
        Command::Crds => print_crds(),
    }
}

fn print_crds() -> Result<ExitCode, Box<dyn Error>> {
    use std::io::Write;

    let mut out = std::io::stdout().lock();
    for crd in pgherd_crds::all() {
        write!(out, "---\n{}", yaml_serde::to_string(&crd)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_operator_is_started_as_the_chart_does() {
        let args = ["pgherd", "operator", "--image=a", "--postgres-images=/etc/x.yaml", "--namespaces=a,b"];
        let Command::Operator(args) = Cli::try_parse_from(args).unwrap().command else { panic!("another command") };
        assert_eq!((args.namespaces, args.listen.port()), (vec!["a".to_owned(), "b".to_owned()], 8080));
    }

    #[test]
    fn wal_commands_take_their_arguments_in_postgresqls_order() {
        let parse = |args: [&str; 4]| Cli::try_parse_from(args).unwrap().command;
        let archive = parse(["pgherd", "archive-wal", "pg_wal/000000010000000000000001", "000000010000000000000001"]);
        assert!(
            matches!(archive, Command::ArchiveWal { path, name } if path.starts_with("pg_wal/") && !name.contains('/'))
        );
        let restore = parse(["pgherd", "restore-wal", "00000002.history", "pg_wal/RECOVERYHISTORY"]);
        assert!(
            matches!(restore, Command::RestoreWal { name, path } if path.starts_with("pg_wal/") && !name.contains('/'))
        );
    }
}

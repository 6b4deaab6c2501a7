//! The subcommands. Each builds the runtime that it needs, if it needs one.

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    jobs::standalone::{self, BackupArgs, FetchWalArgs, LocationArgs, PruneArgs, RestoreArgs, VerifyArgs},
    settings::OperatorArgs,
};

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
    /// Streams one base backup to the object store: by flags, or in a Job by its --config.
    Backup(BackupArgs),
    /// Restores a backup into a directory, verified while it is written.
    Restore(RestoreArgs),
    /// Reads a backup and checks every file against its manifest; with --start it restores it and starts PostgreSQL on it.
    Verify(VerifyArgs),
    /// Lists the backups in the store, one JSON object a line: of a cluster, or without --cluster of all clusters below the prefix.
    ListBackups(LocationArgs),
    /// Says which backups and WAL are beyond the retention; with --apply, or in a Job by its --config, it deletes them.
    Prune(PruneArgs),
    /// A restore_command for a data directory that was restored by hand.
    FetchWal(FetchWalArgs),
    /// PID 1 of a PostgreSQL container: starts the agent, reaps children, and kills PostgreSQL when the Lease is lost.
    Agent,
    /// The agent itself; started by `agent`.
    #[command(hide = true)]
    AgentMain,
    /// A backup of this instance from its own files; started by the agent, which says on standard input what to do.
    #[command(hide = true)]
    LocalBackup,
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
        Command::Backup(args) => match &args.config {
            Some(config) => crate::jobs::run_backup(config),
            None => standalone::backup(&args),
        },
        Command::Restore(args) => standalone::restore(&args),
        Command::Verify(args) => match &args.config {
            Some(config) => crate::jobs::verification::job::run(config),
            None => standalone::verify(&args),
        },
        Command::ListBackups(args) => standalone::list(&args),
        Command::Prune(args) => match &args.config {
            Some(config) => crate::jobs::prune::run(config),
            None => standalone::prune(&args),
        },
        Command::FetchWal(args) => Ok(standalone::fetch_wal(&args)),
        Command::Agent => Ok(pgherd_agent::supervise()),
        Command::AgentMain => Ok(pgherd_agent::run_main()),
        Command::LocalBackup => crate::jobs::backup::local::child::run(),
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
    fn a_backup_is_told_by_a_job_s_file_or_by_flags() {
        let parse = |args: &[&str]| Cli::try_parse_from(args).map(|cli| cli.command);
        let job = parse(&["pgherd", "backup", "--config", "/etc/pgherd/backup/backup.json"]).unwrap();
        assert!(matches!(job, Command::Backup(args) if args.config.is_some()));
        let flags = ["pgherd", "backup", "--host=/tmp", "--endpoint=http://m:9000", "--bucket=b", "--cluster=c"];
        assert!(parse(&flags).is_err(), "without credentials");
        let flags: Vec<&str> = flags.into_iter().chain(["--credentials-dir=/c", "--level=-3"]).collect();
        let by_hand = parse(&flags).unwrap();
        assert!(
            matches!(by_hand, Command::Backup(args) if args.config.is_none() && args.levels().is_ok_and(|levels| (levels.lowest(), levels.highest()) == (-3, -3)))
        );
        let location =
            ["pgherd", "restore", "--location=/l.json", "--target=/d", "--target-latest", "--tablespaces-in-place"];
        assert!(matches!(parse(&location).unwrap(), Command::Restore(args) if args.target_latest));
        let both = ["pgherd", "restore", "--location=/l.json", "--target=/d", "--target-latest", "--target-lsn=0/1"];
        assert!(parse(&both).is_err(), "two targets");
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

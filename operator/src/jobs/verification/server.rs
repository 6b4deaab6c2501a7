//! The server on a restored backup: its configuration, start, stop, and what pgherd itself asks it. It listens on a unix
//! socket alone, archives nothing, and ends recovery as soon as the backup is consistent.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use pgherd_agent::postgres::{
    binaries::{Binaries, ProgramError},
    sql::{SUPERUSER, Session, SqlError},
};
use pgherd_core::{
    backup::BackupRecord,
    lsn::Lsn,
    pg::{
        conf::SUBSCRIPTION_WORKERS,
        floor::Floor,
        quote::quote_conf_value,
        wal_size::{fitting_sizes, parse_segment_bytes},
    },
};
use tokio::process::{Child, Command};

use super::{Amcheck, Trial, VerifyError};

/// What pgherd asks is asked in the first of these that lets it in: either can have been dropped, or closed.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];
/// Part of the socket's name; nothing listens on the network.
const PORT: u16 = 5432;
/// One question to a server that recovers is answered or refused within this time.
const ASK: Duration = Duration::from_secs(5);
/// A question of pgherd's own to a server that is up.
const PATIENCE: Duration = Duration::from_secs(300);
/// A server that starts is asked this often.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// An immediate stop takes no longer; then the process is killed.
const STOP_SECONDS: &str = "20";
/// So much of what a program printed is told.
const LAST_LINES: usize = 4;
const MAX_CHARS: usize = 600;

/// A server that is up and has left recovery.
pub(super) struct ScratchServer {
    child: Child,
    trial: Trial,
}

/// Configures, starts, and waits until recovery has ended. Like a cluster that recovers, it starts a second time where the first one
/// ended: that removes what an unlogged index left in the backup that was built meanwhile.
pub(super) async fn start_server(trial: &Trial) -> Result<ScratchServer, VerifyError> {
    let control = trial.binaries.run("pg_controldata", &[trial.data.as_os_str()], &[]).await?;
    let path = trial.data.join("global/pg_control");
    let segment_bytes = parse_segment_bytes(&fs::read(&path).map_err(VerifyError::file("reading", &path))?);
    write_configuration(trial, &render_settings(trial, &control, segment_bytes))?;
    match start_once(trial).await {
        Err(VerifyError::Start(words)) => {
            tracing::warn!(words, "PostgreSQL ended and is started once more");
            start_once(trial).await
        }
        started => started,
    }
}

async fn start_once(trial: &Trial) -> Result<ScratchServer, VerifyError> {
    let log = trial.data.join("pgherd-verification.log");
    let out = fs::File::create(&log).map_err(VerifyError::file("writing", &log))?;
    let err = out.try_clone().map_err(VerifyError::file("writing", &log))?;
    let mut command = Command::new(trial.binaries.program("postgres"));
    command.arg("-D").arg(&trial.data).stdin(Stdio::null()).stdout(out).stderr(err);
    command.env("LC_ALL", "C").env_remove("PGDATA").kill_on_drop(true);
    let spawn = |source| ProgramError::Spawn { program: "postgres".to_owned(), source };
    let child = command.spawn().map_err(spawn)?;
    let mut server = ScratchServer { child, trial: trial.clone() };
    match server.await_consistency(&log).await {
        Err(error @ VerifyError::Refused(_)) => {
            server.stop().await;
            Err(error)
        }
        outcome => outcome.map(|()| server),
    }
}

/// A newer or older server would not start, and say so in other words.
pub(super) async fn validate_version(binaries: &Binaries, record: &BackupRecord) -> Result<(), VerifyError> {
    let printed = binaries.run("postgres", &[OsStr::new("--version")], &[]).await?;
    let found = printed.trim().rsplit(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let major = found.and_then(|word| word.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    let expected = record.server_version / 10_000;
    if major == Some(expected) {
        return Ok(());
    }
    Err(VerifyError::Version { expected, found: printed.trim().to_owned() })
}

fn render_settings(trial: &Trial, control: &str, segment_bytes: Option<u64>) -> String {
    let mut text = String::from(
        "listen_addresses = ''\nssl = off\narchive_mode = off\nhot_standby = off\nfsync = off\nautovacuum = off\n\
         logging_collector = off\nlog_destination = stderr\nlc_messages = 'C'\nhuge_pages = off\nshared_buffers = 64MB\n\
         allow_in_place_tablespaces = on\n\
         restore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n\
         recovery_target_timeline = 'current'\n",
    );
    text.push_str(&format!("{SUBSCRIPTION_WORKERS} = 0\n"));
    for (setting, value) in segment_bytes.into_iter().flat_map(fitting_sizes) {
        text.push_str(&format!("{setting} = {value}\n"));
    }
    let sockets = quote_conf_value(&trial.sockets.display().to_string());
    text.push_str(&format!("port = {PORT}\nunix_socket_directories = {sockets}\nunix_socket_permissions = 0700\n"));
    if let Some(libraries) = &trial.preload {
        text.push_str(&format!("shared_preload_libraries = {}\n", quote_conf_value(libraries)));
    }
    for (setting, value) in Floor::parse(control).iter() {
        text.push_str(&format!("{setting} = {value}\n"));
    }
    text
}

/// The configuration that came with the backup belongs to where it came from.
fn write_configuration(trial: &Trial, settings: &str) -> Result<(), VerifyError> {
    let write = |name: &str, text: &str| {
        let path = trial.data.join(name);
        fs::write(&path, text).map_err(VerifyError::file("writing", &path))
    };
    for name in ["standby.signal", "recovery.signal", "postmaster.pid", "postmaster.opts"] {
        let path = trial.data.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(VerifyError::file("removing", &path)(error));
            }
            _ => {}
        }
    }
    write("postgresql.conf", settings)?;
    write("postgresql.auto.conf", "")?;
    write("pg_hba.conf", "local all all trust\n")?;
    write("pg_ident.conf", "")?;
    write("recovery.signal", "")?;
    make_private(&trial.sockets)?;
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(&trial.data, mode).map_err(VerifyError::file("changing the mode of", &trial.data))
}

/// `trust` lets in whoever reaches the socket: nobody else may.
fn make_private(folder: &Path) -> Result<(), VerifyError> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // A volume of the pod's own, which has no other user.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(VerifyError::file("making", folder)),
    }
}

impl ScratchServer {
    /// Waits until the server lets somebody in, which it does once recovery has ended, or has ended itself.
    async fn await_consistency(&mut self, log: &Path) -> Result<(), VerifyError> {
        loop {
            match self.connect(ASK).await {
                Ok(session) => {
                    let rows = session.query("SELECT NOT pg_is_in_recovery()", &[]).await?;
                    if rows.first().and_then(|row| row.try_get::<_, bool>(0).ok()) == Some(true) {
                        return Ok(());
                    }
                }
                // It does not become another answer by waiting.
                Err(error) if error.refusal().is_some() => return Err(VerifyError::Refused(error)),
                Err(_) => {}
            }
            tokio::select! {
                ended = self.child.wait() => {
                    let status = ended.map(|status| status.to_string()).unwrap_or_default();
                    let printed = fs::read(log).unwrap_or_default();
                    return Err(VerifyError::Start(format!("{} ({status})", find_words(&String::from_utf8_lossy(&printed)))));
                }
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
    }

    /// A session of the superuser, with time for work, in whichever database lets it in.
    pub(super) async fn session(&self) -> Result<Session, SqlError> {
        self.connect(PATIENCE).await
    }

    async fn connect(&self, patience: Duration) -> Result<Session, SqlError> {
        let connect = |database| Session::connect(&self.trial.sockets, PORT, database, patience);
        let [first, second] = MAINTENANCE;
        match connect(first).await {
            Err(error) if error.refusal().is_some() => connect(second).await.map_err(|_| error),
            outcome => outcome,
        }
    }

    /// How libpq's programs and clients reach it.
    pub(super) fn endpoint(&self) -> (&Path, u16) {
        (&self.trial.sockets, PORT)
    }

    /// Up to where WAL was replayed.
    pub(super) async fn observe_replayed(&self) -> Result<Lsn, VerifyError> {
        let session = self.session().await?;
        let rows = session.query("SELECT pg_last_wal_replay_lsn()::text", &[]).await?;
        let text = rows.first().and_then(|row| row.try_get::<_, Option<String>>(0).ok().flatten());
        let lsn = text.as_deref().and_then(|text| text.parse().ok());
        lsn.ok_or_else(|| VerifyError::Start("it did not replay any WAL".to_owned()))
    }

    /// pg_amcheck over all databases, where the image has it.
    pub(super) async fn check_relations(&self) -> Result<Amcheck, VerifyError> {
        if !self.trial.binaries.program("pg_amcheck").is_file() {
            return Ok(Amcheck::NotRun("the image has no pg_amcheck".to_owned()));
        }
        let session = self.session().await?;
        let offered = session.query("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'", &[]).await?;
        if offered.is_empty() {
            return Ok(Amcheck::NotRun("the image has no extension amcheck".to_owned()));
        }
        let port = PORT.to_string();
        let mut args = ["--all", "--install-missing", "--no-password", "--jobs=2", "--username", SUPERUSER]
            .map(OsStr::new)
            .to_vec();
        args.extend(["--port", &port, "--host"].map(OsStr::new));
        args.push(self.trial.sockets.as_os_str());
        let output = self.trial.binaries.output("pg_amcheck", &args, &[]).await?;
        if output.status.success() { Ok(Amcheck::Passed) } else { Err(VerifyError::Amcheck(first_words(output))) }
    }

    /// Nothing of it is needed any more.
    pub(super) async fn stop(mut self) {
        let args = ["stop", "-w", "-t", STOP_SECONDS, "-m", "immediate", "-D"].map(OsStr::new);
        let args: Vec<&OsStr> = args.into_iter().chain([self.trial.data.as_os_str()]).collect();
        if let Err(error) = self.trial.binaries.run("pg_ctl", &args, &[]).await {
            tracing::warn!(error = %error, "the server did not stop by itself and is killed");
            let _ = self.child.start_kill();
        }
        let _ = self.child.wait().await;
    }
}

/// What a server said that ended: its errors if it named any, else its last lines.
fn find_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let severe: Vec<&str> =
        lines.iter().copied().filter(|line| line.contains("PANIC:") || line.contains("FATAL:")).collect();
    let refused = |line: &&str| !line.contains("the database system is");
    let severe: Vec<&str> = severe.into_iter().filter(refused).collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
    let told = if severe.is_empty() { last } else { severe.as_slice() };
    told.join("; ").chars().take(MAX_CHARS).collect()
}

/// The beginning of what a program printed that failed.
pub(super) fn first_words(output: Output) -> String {
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let lines = printed.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(LAST_LINES).collect::<Vec<_>>().join("; ").chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_told_and_not_the_clients_that_were_refused() {
        let log = "LOG:  starting\nFATAL:  the database system is starting up\nPANIC:  could not locate a valid checkpoint record\n\
                   LOG:  startup process (PID 5) was terminated by signal 6: Aborted\nLOG:  database system is shut down\n";
        assert_eq!(find_words(log), "PANIC:  could not locate a valid checkpoint record");
        assert_eq!(find_words("a\nb\n\n"), "a; b");
    }
}

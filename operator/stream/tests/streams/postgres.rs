//! A real PostgreSQL in a temporary directory, run by an unprivileged user.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use pgherd_stream::replication::ConnectOptions;
use tempfile::TempDir;

/// Folder of PostgreSQL's programs.
fn bin() -> PathBuf {
    if let Ok(path) = std::env::var("PGHERD_PG_BIN") {
        return path.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut bins: Vec<_> =
        versions.map(|entry| entry.path().join("bin")).filter(|b| b.join("initdb").exists()).collect();
    bins.sort();
    bins.pop()
        .expect("no PostgreSQL programs: set PGHERD_PG_BIN, or PGHERD_TEST_WITHOUT_POSTGRES=1 to leave these tests out")
}

/// User and group to run PostgreSQL as: oneself, or `postgres` (else `nobody`) for root.
fn unprivileged() -> Option<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let fields: Vec<_> = passwd.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').collect();
        Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("no unprivileged user"))
}

/// One of PostgreSQL's programs as the unprivileged user.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(bin().join(name));
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command.current_dir("/tmp").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// Of the programs.
pub(crate) fn major_version() -> u32 {
    let text = String::from_utf8(run(program("postgres").arg("--version")).stdout).unwrap();
    text.split([' ', '.']).find_map(|word| word.parse().ok()).unwrap()
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text} {}", String::from_utf8_lossy(&output.stdout));
    output
}

/// Hands a tree to the unprivileged user.
pub(crate) fn hand_over(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        run(Command::new("chown").arg("-R").arg(format!("{user}:{group}")).arg(path));
    }
}

/// A temporary directory that the unprivileged user can reach.
pub(crate) fn workspace() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pgherd-stream-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// A port that nobody listens on now, from below the range that the kernel gives to outgoing connections (32768 and up): from there
/// a connection of another test could take it before the server listens, or while it is restarted.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests that run in processes of their own begin far from each other.
    let first = std::process::id().wrapping_mul(97);
    loop {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 18_000 + u16::try_from(offset).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A server; stopped when dropped.
pub(crate) struct Postgres {
    pub(crate) data: PathBuf,
    pub(crate) sockets: PathBuf,
    pub(crate) port: u16,
    running: bool,
}

impl Postgres {
    /// A new cluster below `parent`, with page checksums and segments of `wal_segment_mb`, started.
    pub(crate) fn create(parent: &Path, name: &str, wal_segment_mb: u32) -> Self {
        let server = Self::at(parent, name);
        fs::create_dir_all(&server.data).unwrap();
        hand_over(&server.data);
        run(program("initdb")
            .args(["-k", "-N", "-A", "trust", "-U", "postgres", "--wal-segsize"])
            .arg(wal_segment_mb.to_string())
            .arg("-D")
            .arg(&server.data));
        let conf = server.data.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str("fsync = off\nmax_wal_size = 512MB\nhot_standby = on\nshared_buffers = 64MB\nautovacuum = off\n");
        fs::write(&conf, text).unwrap();
        server.started()
    }

    /// A server on a data directory that is there.
    pub(crate) fn on(parent: &Path, name: &str) -> Self {
        let server = Self::at(parent, name);
        hand_over(&server.data);
        server.started()
    }

    fn at(parent: &Path, name: &str) -> Self {
        let sockets = parent.join(format!("{name}.sockets"));
        fs::create_dir_all(&sockets).unwrap();
        hand_over(&sockets);
        Self { data: parent.join(name), sockets, port: free_port(), running: false }
    }

    fn started(mut self) -> Self {
        self.start("");
        self
    }

    /// Starts it with more options like `-c name=value`.
    pub(crate) fn start(&mut self, more: &str) {
        let options = format!("-p {} -k {} -c listen_addresses=127.0.0.1 {more}", self.port, self.sockets.display());
        let log = self.sockets.join("log");
        let status = program("pg_ctl")
            .args(["start", "-w", "-t", "60", "-o", &options, "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(&log)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
        self.running = true;
    }

    /// Stops it, like `fast` or `immediate`.
    pub(crate) fn stop(&mut self, mode: &str) {
        if std::mem::take(&mut self.running) {
            let _ = program("pg_ctl").args(["stop", "-w", "-m", mode, "-D"]).arg(&self.data).output();
        }
    }

    /// CPU seconds of the server and of all its processes that have ended.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.lines().next().unwrap())).unwrap();
        let fields: Vec<f64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
        fields[11..15].iter().sum::<f64>() / ticks as f64
    }

    /// Runs SQL and gives the answer as text.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let output = run(self.client("psql").args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A tablespace in a folder of its own below `dir`, with a table in it; returns the folder.
    pub(crate) fn make_tablespace(&self, dir: &Path) -> PathBuf {
        let place = dir.join("space");
        fs::create_dir(&place).unwrap();
        hand_over(&place);
        self.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
        self.sql("CREATE TABLE there TABLESPACE space AS SELECT generate_series(1, 50000) AS id");
        place
    }

    /// A client program for this server.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.env("PGHOST", &self.sockets).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// pgbench tables of about 16 MB per unit of `scale`.
    pub(crate) fn fill(&self, scale: u32) {
        run(self.client("pgbench").args(["-i", "-q", "-s", &scale.to_string()]));
        self.sql("CHECKPOINT");
    }

    /// A table of rows of 1920 bytes that do not compress.
    pub(crate) fn fill_with_noise(&self, rows: u32) {
        self.sql(&format!(
            "CREATE TABLE noise AS SELECT string_agg(sha256((n::text || m::text)::bytea), ''::bytea) AS b \
             FROM generate_series(1, {rows}) n, generate_series(1, 60) m GROUP BY n"
        ));
        self.sql("CHECKPOINT");
    }

    /// How to connect by the unix socket.
    pub(crate) fn connect(&self) -> ConnectOptions {
        ConnectOptions {
            host: self.sockets.to_str().unwrap().to_owned(),
            port: self.port,
            server_name: "localhost".to_owned(),
            user: "postgres".to_owned(),
            database: None,
            tls: None,
            password_file: None,
            application_name: "pgherd-test".to_owned(),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

/// Runs pg_verifybackup on a data directory that no server has touched yet.
pub(crate) fn verify(data: &Path) {
    hand_over(data);
    run(program("pg_verifybackup").arg(data));
}

//! The two servers: MinIO with TLS, and PostgreSQL on a unix socket.

use std::{fs, process::Stdio, time::Duration};

use pgherd_e2e::{
    Result,
    wait::{Look, until},
};
use tokio::process::Child;

use crate::{
    peers::mc,
    place::{Place, Side},
};

const START: Duration = Duration::from_secs(60);
/// All defaults but these: no network; page checksums, as pgherd has them; no autovacuum, so that the data stands still while it is
/// copied and compared.
const INITDB: [&str; 11] = [
    "initdb",
    "--pgdata=/work/data",
    "--username=postgres",
    "--auth=trust",
    "--data-checksums",
    "--set=listen_addresses=",
    "--set=unix_socket_directories=/work/run",
    "--set=autovacuum=off",
    "--set=shared_buffers=256MB",
    "--set=archive_mode=on",
    "--set=archive_command=/bin/true",
];

/// Starts MinIO with one empty bucket.
pub(crate) async fn start_store(place: &Place) -> Result<Child> {
    let log = fs::File::create(place.work("log/minio.log"))?;
    let address = ["--address", "127.0.0.1:9000", "--console-address", "127.0.0.1:9001"];
    let mut program = vec!["minio", "server", "--quiet", "--certs-dir", "/work/tls"];
    program.extend(address);
    program.push("/work/store");
    let mut command = place.command(Side::Store, &program);
    command.env("MINIO_ROOT_USER_FILE", "/work/keys/accessKeyId").env("MINIO_UPDATE", "off");
    command.env("MINIO_ROOT_PASSWORD_FILE", "/work/keys/secretAccessKey").env("MINIO_BROWSER", "off");
    let child = command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log)).spawn()?;
    until("MinIO", START, async || mc(place, &["mb", "--ignore-existing", "store/backups"]).await.map(Look::Done))
        .await?;
    Ok(child)
}

/// PostgreSQL on an empty data directory of its own, `/work/data`.
pub(crate) struct Server<'a> {
    place: &'a Place,
    child: Child,
}

impl<'a> Server<'a> {
    pub(crate) async fn create(place: &'a Place) -> Result<Self> {
        place.run(Side::Other, &INITDB).await?;
        let log = fs::File::create(place.work("log/postgres.log"))?;
        let mut command = place.command(Side::Postgres, &["postgres", "-D/work/data"]);
        let child = command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log)).spawn()?;
        let server = Self { place, child };
        until("PostgreSQL", START, async || server.sql("SELECT 1").await.map(Look::Done)).await?;
        Ok(server)
    }

    /// Runs a statement, and gives its result as text.
    pub(crate) async fn sql(&self, statement: &str) -> Result<String> {
        let program = ["psql", "-XqAt", "-h/work/run", "-Upostgres", "-vON_ERROR_STOP=1", "-c", statement, "postgres"];
        self.place.run(Side::Other, &program).await
    }

    /// What archives from now on; nothing does while it is empty.
    pub(crate) async fn set_archive_command(&self, command: &str) -> Result<()> {
        self.sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''"))).await?;
        self.sql("SELECT pg_reload_conf()").await.map(drop)
    }

    /// Stops it and removes its data.
    pub(crate) async fn remove(mut self) -> Result<()> {
        self.place.run(Side::Other, &["pg_ctl", "stop", "-D", "/work/data", "-m", "immediate", "-w"]).await?;
        self.child.wait().await?;
        fs::remove_dir_all(self.place.work("data"))?;
        Ok(())
    }
}

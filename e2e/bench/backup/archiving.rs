//! How fast WAL goes into the archive: the same segments wait for each tool, and PostgreSQL's own archiver calls its archive_command
//! for one after the other.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use pgherd_e2e::Result;
use serde::Serialize;
use tokio::process::Child;

use crate::{
    meter::{Cost, Meter},
    peers::{PEERS, PGHERD, Peer},
    place::{Place, Side},
    servers::Server,
    stand_in::ready_segments,
};

/// Who archives: its name in the table, the peer, and the function that gives its archive_command.
const ARCHIVERS: [(&str, &str, &str); 5] = [
    ("pgherd", PGHERD, "archive_command_agent"),
    ("pgbackrest", "pgbackrest", "archive_command"),
    ("pgbackrest, asynchronous", "pgbackrest", "archive_command_ahead"),
    ("barman", "barman", "archive_command"),
    ("wal-rus", "wal-rus", "archive_command"),
];
const LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(10);

/// How one of them fared.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rate {
    pub(crate) archiver: &'static str,
    pub(crate) segments: usize,
    pub(crate) segments_per_second: f64,
    pub(crate) cost: Cost,
}

/// Measures all that are here. What fails is said instead.
pub(crate) async fn measure_all(
    place: &Place,
    server: &Server<'_>,
    segments: u64,
    is_here: impl Fn(&Peer) -> bool,
) -> Result<Vec<std::result::Result<Rate, String>>> {
    let waiting = Waiting::make(place, server, segments).await?;
    let mut rates = Vec::new();
    for (name, peer, function) in ARCHIVERS {
        let Some(peer) = PEERS.iter().find(|candidate| candidate.name == peer && is_here(candidate)) else { continue };
        let rate =
            waiting.measure(place, server, name, peer, function).await.map_err(|error| format!("{name}: {error}"));
        server.set_archive_command("").await?;
        peer.forget(place).await?;
        println!(
            "archiving: {}",
            rate.as_ref().map_or_else(Clone::clone, |rate| format!("{name} {:.1}/s", rate.segments_per_second))
        );
        rates.push(rate);
    }
    Ok(rates)
}

/// Segments that PostgreSQL keeps and has marked as ready.
struct Waiting {
    pg_wal: PathBuf,
    names: Vec<String>,
}

impl Waiting {
    async fn make(place: &Place, server: &Server<'_>, segments: u64) -> Result<Self> {
        server.set_archive_command("").await?;
        // None is removed at a checkpoint, so that each tool finds them.
        server.sql("ALTER SYSTEM SET wal_keep_size = '1TB'").await?;
        server.sql("SELECT pg_reload_conf()").await?;
        server.sql("CREATE TABLE filler (n int, note text, value float8)").await?;
        let fill = format!(
            "DO $$ DECLARE start pg_lsn := pg_current_wal_insert_lsn(); BEGIN
             WHILE pg_current_wal_insert_lsn() - start < {segments} * 16777216::numeric LOOP
             INSERT INTO filler SELECT n, md5(n::text), random() FROM generate_series(1, 20000) n; COMMIT; END LOOP; END $$"
        );
        server.sql(&fill).await?;
        server.sql("DROP TABLE filler").await?;
        server.sql("SELECT pg_switch_wal()").await?;
        let pg_wal = place.work("data/pg_wal");
        let names = ready_segments(&pg_wal)?;
        if (names.len() as u64) < segments {
            return Err(format!("only {} segments of {segments} are ready", names.len()).into());
        }
        Ok(Self { pg_wal, names })
    }

    fn status(&self, name: &str, suffix: &str) -> PathBuf {
        self.pg_wal.join("archive_status").join(format!("{name}.{suffix}"))
    }

    fn is_done(&self) -> bool {
        // The last one is done last.
        self.names.iter().rev().all(|name| self.status(name, "done").exists())
    }

    async fn measure(
        &self,
        place: &Place,
        server: &Server<'_>,
        name: &'static str,
        peer: &Peer,
        function: &str,
    ) -> Result<Rate> {
        peer.call(place, "prepare").await?;
        let _stand_in = if peer.name == PGHERD { Some(start_stand_in(place, server).await?) } else { None };
        for name in self.names.iter().filter(|name| !self.status(name, "ready").exists()) {
            fs::rename(self.status(name, "done"), self.status(name, "ready"))?;
        }
        let command = peer.call(place, function).await?;
        let mut meter = Meter::start(place)?;
        server.set_archive_command(&command).await?;
        let begun = Instant::now();
        let mut looks = tokio::time::interval(POLL);
        while !self.is_done() {
            if begun.elapsed() > LIMIT {
                return Err(format!("not done after {} s", LIMIT.as_secs()).into());
            }
            looks.tick().await;
            meter.look()?;
        }
        let cost = meter.stop()?;
        let segments_per_second = self.names.len() as f64 / cost.seconds;
        Ok(Rate { archiver: name, segments: self.names.len(), segments_per_second, cost })
    }
}

/// The agent's stand-in, on the client's account; ends when dropped.
async fn start_stand_in(place: &Place, server: &Server<'_>) -> Result<Child> {
    let system_id = server.sql("SELECT system_identifier FROM pg_control_system()").await?;
    place.run(Side::Other, &["rm", "-f", "/run/pgherd/agent.sock"]).await?;
    let program = [
        "bench-backup",
        "stand-in",
        "--location=/work/keys/pgherd.json",
        "--data=/work/data",
        &format!("--system-id={system_id}"),
    ];
    let child = place.command(Side::Client, &program).spawn()?;
    let wait = "for i in $(seq 1000); do [ ! -S /run/pgherd/agent.sock ] || exit 0; sleep 0.01; done; exit 1";
    place.run(Side::Other, &["sh", "-c", wait]).await?;
    Ok(child)
}

//! What a backup does to others: transactions per second of a pgbench before a backup and while it runs.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pgherd_e2e::{
    Result,
    wait::{Look, until},
};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use crate::{
    meter::Cost,
    peers::Peer,
    place::{Place, Side},
};

/// Seconds that are measured before a backup, and left out before that while pgbench starts.
const BEFORE: usize = 8;
const WARM_UP: usize = 2;

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Disturbance {
    pub(crate) peer: &'static str,
    /// What held the backup back.
    pub(crate) limit: &'static str,
    pub(crate) tps_before: f64,
    pub(crate) tps_during: f64,
    pub(crate) backup: Cost,
}

/// Measures one tool's backup, held to `rate` kB/s where it can be.
pub(crate) async fn measure_disturbance(place: &Place, peer: &Peer, rate: u64) -> Result<Disturbance> {
    let clients = Clients::start(place)?;
    let needed = WARM_UP + BEFORE;
    until("pgbench's seconds", Duration::from_secs(60), async || {
        let count = clients.seconds().len();
        Ok(if count >= needed { Look::Done(()) } else { Look::NotYet(format!("{count} seconds")) })
    })
    .await?;
    let begun = Instant::now();
    let backup = peer.measure(place, "backup", &[format!("RATE={rate}")]).await?;
    let ended = Instant::now();
    let seconds = clients.seconds();
    // A line is about the second before it.
    let during =
        seconds.iter().filter(|(at, _)| *at > begun + Duration::from_secs(1) && *at <= ended).map(|(_, tps)| *tps);
    let before = seconds.iter().filter(|(at, _)| *at <= begun).map(|(_, tps)| *tps).skip(WARM_UP);
    Ok(Disturbance {
        peer: peer.name,
        limit: peer.limit,
        tps_before: mean(before).ok_or("pgbench said nothing before the backup")?,
        tps_during: mean(during).ok_or("the backup took less than two seconds: more data is needed")?,
        backup,
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A running pgbench; ends when dropped.
struct Clients {
    _child: Child,
    seconds: Arc<Mutex<Vec<(Instant, f64)>>>,
}

impl Clients {
    fn start(place: &Place) -> Result<Self> {
        let program =
            ["pgbench", "-n", "-c4", "-j1", "-T3600", "--progress=1", "-h/work/run", "-Upostgres", "postgres"];
        let mut command = place.command(Side::Other, &program);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("pgbench has no output")?).lines();
        let seconds = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seconds);
        drop(tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(tps) = parse_tps(&line) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), tps));
                }
            }
        }));
        Ok(Self { _child: child, seconds })
    }

    fn seconds(&self) -> Vec<(Instant, f64)> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `progress: 3.0 s, 812.5 tps, lat …`
fn parse_tps(line: &str) -> Option<f64> {
    line.strip_prefix("progress: ")?.split(", ").find_map(|part| part.strip_suffix(" tps"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        let line = "progress: 3.0 s, 812.5 tps, lat 4.915 ms stddev 2.155, 0 failed";
        assert_eq!(parse_tps(line), Some(812.5));
        assert_eq!(parse_tps("pgbench (17.5 (Debian 17.5-1))"), None);
        assert_eq!(mean([1.0, 2.0].into_iter()), Some(1.5));
        assert_eq!(mean(std::iter::empty()), None);
    }
}

//! Measures one run of a program: time, CPU time of each side, memory of the client's.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use pgherd_e2e::Result;
use serde::Serialize;

use crate::place::{Place, Side, last_lines};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) postgres_cpu_seconds: f64,
    pub(crate) store_cpu_seconds: f64,
    pub(crate) peak_resident_bytes: u64,
}

/// CPU seconds of each side.
struct Account {
    client: f64,
    postgres: f64,
    store: f64,
}

impl Account {
    fn read(place: &Place) -> Result<Self> {
        Ok(Self {
            client: place.cpu_seconds(Side::Client)?,
            postgres: place.cpu_seconds(Side::Postgres)?,
            store: place.cpu_seconds(Side::Store)?,
        })
    }
}

/// What is under way since this was made.
pub(crate) struct Meter<'a> {
    place: &'a Place,
    begun: Instant,
    before: Account,
    peak_resident_bytes: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(place: &'a Place) -> Result<Self> {
        Ok(Self { place, before: Account::read(place)?, peak_resident_bytes: 0, begun: Instant::now() })
    }

    /// Looks at the memory now.
    pub(crate) fn look(&mut self) -> Result<()> {
        self.peak_resident_bytes = self.peak_resident_bytes.max(self.place.resident_bytes(Side::Client)?);
        Ok(())
    }

    /// What it took up to now.
    pub(crate) fn stop(self) -> Result<Cost> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let after = Account::read(self.place)?;
        Ok(Cost {
            seconds,
            client_cpu_seconds: after.client - self.before.client,
            postgres_cpu_seconds: after.postgres - self.before.postgres,
            store_cpu_seconds: after.store - self.before.store,
            peak_resident_bytes: self.peak_resident_bytes,
        })
    }
}

/// Runs a program on the client's account and measures it. All it says goes to `/work/log/client.log`, whose end is in the error.
pub(crate) async fn measure(place: &Place, program: &[&str]) -> Result<Cost> {
    let log = place.work("log/client.log");
    let file = std::fs::File::create(&log)?;
    let mut command = place.command(Side::Client, program);
    command.stdout(Stdio::from(file.try_clone()?)).stderr(Stdio::from(file));
    let mut meter = Meter::start(place)?;
    let mut child = command.spawn()?;
    let mut looks = tokio::time::interval(LOOK);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = looks.tick() => meter.look()?,
        }
    };
    let cost = meter.stop()?;
    if status.success() {
        return Ok(cost);
    }
    Err(format!("{}: {status}: {}", program.join(" "), last_lines(&std::fs::read_to_string(&log)?)).into())
}

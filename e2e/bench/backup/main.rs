//! `make bench-backup`: how fast a backup and its restore are, and what they cost, beside what others use, on one machine and
//! without Kubernetes. It measures, and judges nothing but data that did not come back.
//!
//! `run.sh` starts it inside namespaces of its own, and cleans up.
#![forbid(unsafe_code)]

mod archiving;
mod compare;
mod figures;
mod load;
mod meter;
mod peers;
mod place;
mod servers;
mod sets;
mod stand_in;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use figures::{Figures, Machine, Run, SetFigures};
use peers::{NOT_MEASURED, PEERS, PGHERD, Peer};
use pgherd_e2e::Result;
use place::{Place, Side};
use servers::Server;
use sets::Set;
use stand_in::StandInArgs;

/// Segments of WAL that are archived for each GiB of the data, and at least.
const SEGMENTS: f64 = 16.0;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures; run.sh calls it.
    Run(RunArgs),
    /// Stands in for pgherd's agent.
    StandIn(StandInArgs),
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Backups and restores.
    Backup,
    /// WAL archiving, on the first set of data.
    Archiving,
    /// Backups beside a pgbench, on the first set of data.
    Load,
}

#[derive(Args)]
struct RunArgs {
    /// The root file system.
    #[arg(long)]
    root: PathBuf,
    /// The control group below which each side gets its own.
    #[arg(long)]
    groups: PathBuf,
    /// Where backup.json goes.
    #[arg(long)]
    out: PathBuf,
    /// The file that /work/bin/pgherd was made from, for the record.
    #[arg(long)]
    pgherd: String,
    /// Size of the first set of data.
    #[arg(long, default_value_t = 3.0)]
    gib: f64,
    /// How often each backup and restore is done.
    #[arg(long, default_value_t = 2)]
    runs: u32,
    /// Sets of data.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Set::Tables, Set::Random, Set::Small])]
    data: Vec<Set>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Backup, Part::Archiving, Part::Load])]
    parts: Vec<Part>,
    /// kB/s that a backup beside a load is held to.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Only peers whose names begin so.
    only: Vec<String>,
}

impl RunArgs {
    fn is_wanted(&self, peer: &Peer) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| peer.name.starts_with(name))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // The only TLS provider of the tree. It fails only if one is installed already, which is then the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::Run(args) => run(&args).await,
        Command::StandIn(args) => stand_in::serve(args).await,
    }
}

async fn run(args: &RunArgs) -> Result<()> {
    let place = Place::new(&args.root, &args.groups)?;
    let mut figures = Figures {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        machine: Machine::observe(&args.pgherd)?,
        gib: args.gib,
        rate_kilobytes_per_second: args.rate,
        absent: NOT_MEASURED.iter().map(|(name, why)| ((*name).to_owned(), (*why).to_owned())).collect(),
        ..Figures::default()
    };
    let mut here = Vec::new();
    for peer in PEERS.iter().filter(|peer| args.is_wanted(peer)) {
        match peer.observe(&place).await {
            Ok(version) => {
                println!("{}: {version}", peer.name);
                figures.versions.insert(peer.name, version);
                here.push(peer);
            }
            Err(why) => {
                println!("{}: not measured: {why}", peer.name);
                figures.absent.insert(peer.name.to_owned(), why);
            }
        }
    }
    figures.versions.insert("postgres", place.run(Side::Other, &["postgres", "--version"]).await?);
    figures.versions.insert("minio", place.run(Side::Other, &["minio", "--version"]).await?);
    let _store = servers::start_store(&place).await?;
    for set in &args.data {
        measure_set(&place, args, *set, &here, &mut figures).await?;
    }
    println!("{}", table::render(&figures));
    println!("\nthe same figures: target/bench/backup.json");
    if figures.failures.is_empty() { Ok(()) } else { Err(format!("{} failures", figures.failures.len()).into()) }
}

/// Fills a server, and has all peers take turns on it.
async fn measure_set(place: &Place, args: &RunArgs, set: Set, here: &[&Peer], figures: &mut Figures) -> Result<()> {
    println!("\n{}: filling", set.name());
    let server = Server::create(place).await?;
    set.fill(place, &server, args.gib).await?;
    let (bytes, files) = sets::size_of(&place.work("data"))?;
    println!("{}: {} MB in {files} files", set.name(), bytes / 1_000_000);
    let is_first = figures.sets.is_empty();
    figures.sets.push(SetFigures { set: set.name(), bytes, files, rows: Vec::new(), ratios: Vec::new() });
    let mut stored = bytes;
    for number in 1..=args.runs {
        for peer in here.iter().filter(|_| args.parts.contains(&Part::Backup)) {
            let mut run = Run::default();
            let result = measure_peer(place, &server, peer, stored, number == 1, &mut run).await;
            if peer.name == PGHERD && run.stored_bytes > 0 {
                stored = run.stored_bytes;
            }
            let what = format!("{} {} {number}/{}", set.name(), peer.name, args.runs);
            println!("{what}: {}", result.as_ref().map_or_else(ToString::to_string, |()| describe(&run)));
            if let Err(error) = result {
                figures.failures.push(format!("{what}: {error}"));
            }
            if let Some(figures) = figures.sets.last_mut() {
                figures.row(peer).runs.push(run);
            }
            figures.keep(&args.out)?;
        }
    }
    if is_first && args.parts.contains(&Part::Archiving) {
        let wanted = |peer: &Peer| here.iter().any(|here| here.name == peer.name);
        let segments = (SEGMENTS * args.gib).max(8.0) as u64;
        for rate in archiving::measure_all(place, &server, segments, wanted).await? {
            match rate {
                Ok(rate) => figures.archiving.push(rate),
                Err(failure) => figures.failures.push(failure),
            }
        }
        figures.keep(&args.out)?;
    }
    if is_first && args.parts.contains(&Part::Load) {
        for peer in here.iter().filter(|peer| peer.loaded) {
            measure_loaded(place, &server, peer, args.rate, figures).await?;
            figures.keep(&args.out)?;
        }
    }
    server.remove().await
}

/// One backup and one restore.
async fn measure_peer(
    place: &Place,
    server: &Server<'_>,
    peer: &Peer,
    stored: u64,
    first: bool,
    run: &mut Run,
) -> Result<()> {
    let measured = back_up_and_restore(place, server, peer, stored, first, run).await;
    // The next one finds nothing of it, whatever came of it.
    server.set_archive_command("/bin/true").await?;
    if peer.backs_up {
        peer.forget(place).await?;
    }
    place.run(Side::Other, &["rm", "-rf", "/work/restored"]).await?;
    measured
}

async fn back_up_and_restore(
    place: &Place,
    server: &Server<'_>,
    peer: &Peer,
    stored: u64,
    first: bool,
    run: &mut Run,
) -> Result<()> {
    peer.call(place, "prepare").await?;
    server.set_archive_command(&peer.call(place, "archive_command").await?).await?;
    let variables = [format!("STORED={stored}"), "RESTORED=/work/restored".to_owned()];
    sync(place, "/work").await?;
    if peer.backs_up {
        run.backup = Some(peer.measure(place, "backup", &variables).await?);
        run.stored_bytes = peer.stored_bytes(place).await?;
        sync(place, "/work").await?;
    }
    if peer.restores {
        run.restore = Some(peer.measure(place, "restore", &variables).await?);
        run.sync_seconds = Some(sync(place, "/work/restored").await?);
        if first {
            run.verified = Some(compare::compare(place).await?);
        }
    }
    Ok(())
}

/// Has the file system write all it holds back; how long that took, in seconds.
async fn sync(place: &Place, path: &str) -> Result<f64> {
    let begun = std::time::Instant::now();
    place.run(Side::Other, &["sync", "-f", path]).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn measure_loaded(
    place: &Place,
    server: &Server<'_>,
    peer: &Peer,
    rate: u64,
    figures: &mut Figures,
) -> Result<()> {
    peer.call(place, "prepare").await?;
    server.set_archive_command(&peer.call(place, "archive_command").await?).await?;
    match load::measure_disturbance(place, peer, rate).await {
        Ok(run) => {
            println!("beside pgbench, {}: {:.0} tps, then {:.0}", peer.name, run.tps_before, run.tps_during);
            figures.loaded.push(run);
        }
        Err(error) => figures.failures.push(format!("beside pgbench, {}: {error}", peer.name)),
    }
    server.set_archive_command("/bin/true").await?;
    peer.forget(place).await
}

fn describe(run: &Run) -> String {
    let seconds =
        |cost: &Option<meter::Cost>| cost.map_or_else(|| "-".to_owned(), |cost| format!("{:.1} s", cost.seconds));
    let verified = run.verified.as_ref().map(|what| format!(", {what}")).unwrap_or_default();
    format!("backup {}, restore {}{verified}", seconds(&run.backup), seconds(&run.restore))
}

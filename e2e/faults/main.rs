//! `make faults`: does to a cluster under load what happens to clusters, one fault at a time, and checks afterwards that
//! nothing that was promised is gone and that no two instances took writes at once.
//!
//! The list has the numbers 1 to 53 and 56. Each is here by name, and what can't be injected is listed with the reason, as is what
//! another test does. Results: `target/faults.json`. It needs the embedded Kubernetes, whose nodes
//! and containers are processes of this machine.
#![forbid(unsafe_code)]

mod archive;
mod backed;
mod backups;
mod clients;
mod control_plane;
mod membership;
mod network;
mod node_faults;
mod operator;
mod pods;
mod processes;
mod recoveries;
mod register;
mod registry;
mod report;
mod run;
mod scene;
mod succession;
mod volumes;

use clap::Parser;
use pgherd_e2e::Result;

#[derive(Parser)]
struct Cli {
    /// Only faults of these names or numbers; the end of a name may be left out.
    only: Vec<String>,
    /// Only the selection that continuous integration runs.
    #[arg(long)]
    short: bool,
    /// List all faults and end.
    #[arg(long)]
    list: bool,
    /// How often each fault is injected.
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let all = registry::all();
    if cli.list {
        print!("{}", report::render_list(&all));
        return Ok(());
    }
    let chosen: Vec<_> = all.iter().filter(|fault| fault.is_chosen(&cli.only, cli.short)).collect();
    if chosen.is_empty() {
        return Err(format!("there is no fault {:?}; --list names all", cli.only).into());
    }
    run::run_all(&chosen, cli.runs).await
}

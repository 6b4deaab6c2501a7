//! `make bench-failover`: how long nobody can write when the primary goes, under load, many times over, and where the time
//! went. Beside each figure stand the goal and what CloudNativePG took. It fails where a goal is missed, a run failed, or a row was lost: it
//! wants a machine with nothing else to do.
#![forbid(unsafe_code)]

mod figures;
mod ways;

use clap::Parser;
use figures::{Figures, Run};
use pgherd_e2e::{
    Result,
    cluster::{self, Cluster},
    control_plane,
    kubectl::{apply, kubectl},
    namespace, nodes, operators,
    postgres::psql,
    writer::{self, WriterPod},
};
use ways::Way;

const NAMESPACE: &str = "bench";
/// Besides the client that inserts a row each 10 ms: clients that rewrite rows, each some 50 times a second.
const LOAD: u32 = 4;
/// Three instances, a commit waits for one replica.
const CLUSTER: &str = "apiVersion: pgherd.dev/v1alpha1\nkind: PostgresCluster\nmetadata: {name: b}\nspec:\n  version: 17\n  \
                       instances: 3\n  storage: {size: 1Gi}\n  synchronous: {mode: Required, replicas: 1}\n";

#[derive(Parser)]
struct Cli {
    /// How often each is done.
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// Only ways of these names.
    only: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let client = cluster::connect().await?;
    nodes::heal_all().await;
    operators::heal().await;
    control_plane::wait_api().await?;
    cluster::install_operator().await?;
    namespace::recreate(NAMESPACE).await?;
    apply(NAMESPACE, CLUSTER).await?;
    let cluster = Cluster::new(&client, NAMESPACE, "b");
    let mut all = Vec::new();
    for way in
        Way::ALL.iter().filter(|way| cli.only.is_empty() || cli.only.iter().any(|name| way.name().starts_with(name)))
    {
        let mut figures = Figures::new(*way);
        for number in 1..=cli.runs {
            match run_once(&cluster, *way).await {
                Ok(run) => {
                    println!("{} {number}/{}: {run}", way.name(), cli.runs);
                    figures.runs.push(run);
                }
                Err(error) => {
                    println!("{} {number}/{}: {error}", way.name(), cli.runs);
                    figures.note(&error.to_string());
                    if error.to_string().starts_with("skipped") {
                        break;
                    }
                }
            }
            nodes::heal_all().await;
        }
        all.push(figures);
        figures::keep(&all)?;
    }
    println!("{}", figures::render(&all));
    println!("the same figures: target/bench/failover.json");
    let lost: u64 = all.iter().flat_map(|figures| &figures.runs).map(|run| run.lost).sum();
    namespace::remove(NAMESPACE).await?;
    let mut wrong = figures::missed(&all);
    if lost > 0 {
        wrong.push(format!("{lost} acknowledged rows are missing"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

async fn run_once(cluster: &Cluster, way: Way) -> Result<Run> {
    writer::remove(NAMESPACE).await?;
    operators::wait_available().await?;
    let before = cluster.wait_ready(3).await?;
    let primary = cluster.primary().await?;
    let node = cluster.node_of(&primary).await?;
    psql(NAMESPACE, &primary, "app", "DROP TABLE IF EXISTS ledger, lists").await?;
    way.prepare(&node).await?;
    let writer = WriterPod::start_with(&cluster.client, NAMESPACE, &cluster.name, &node, LOAD).await?;
    writer.wait_progress(200).await?;
    writer.reset_gap().await?;
    let failover = way.happen(cluster, &before, &primary, &node, &writer).await?;
    cluster.wait_ready(3).await?;
    let ledger = writer.wait_progress(100).await?;
    writer.set_paused(true).await?;
    // Longer than a commit may take: what is under way then has ended.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let verified = writer.verify().await?;
    kubectl(NAMESPACE, &["delete", "pod", "writer", "--force", "--grace-period=0"]).await?;
    let lost = verified.lost + verified.lists.lost;
    Ok(Run::new(ledger.longest_gap_ms, verified.acknowledged + verified.lists.acknowledged, lost, failover.as_ref()))
}

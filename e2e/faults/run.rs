//! The part that all faults have in common: a cluster under load, the fault, and then the invariants.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use pgherd_e2e::{
    Result,
    cluster::{self, Cluster, PATIENCE},
    containers, control_plane,
    kubectl::{apply, kubectl, root},
    ledger::Verification,
    namespace, nodes, operators, partition,
    postgres::psql,
    probes::{ProbeFiles, Probes},
    wait::{Look, until},
    writer::{self, WriterPod},
};

use crate::{
    backed,
    registry::{Fault, Inject, Mode, Plan},
    report::{self, FaultResult, Verdict},
    scene::{Scene, claim},
    volumes,
};

/// Where all faults happen.
pub(crate) const NAMESPACE: &str = "faults";
/// Clients that append to lists.
const APPENDERS: u32 = 3;
/// Rows that must be acknowledged before and after a fault.
const ROWS: u64 = 100;
/// After the writers stopped, nothing of theirs is under way any more.
const SETTLE: Duration = Duration::from_secs(4);

/// Runs the faults one after the other. A fault that fails does not keep the others from being tried.
pub(crate) async fn run_all(chosen: &[&Fault], runs: u32) -> Result<()> {
    let client = cluster::connect().await?;
    heal_everything().await;
    if chosen.iter().any(|fault| matches!(fault.plan, Plan::Inject { .. })) {
        control_plane::wait_api().await?;
        control_plane::api_server().map_err(|error| format!("faults need the embedded Kubernetes: {error}"))?;
        cluster::install_operator().await?;
        namespace::recreate(NAMESPACE).await?;
    }
    let mut results = Vec::new();
    for fault in chosen {
        let mut result = FaultResult::new(fault);
        if let Plan::Inject { mode, inject, .. } = &fault.plan {
            println!("\n== {} {}: {} (mode {mode:?})", fault.number, fault.name, fault.title);
            for _ in 0..runs {
                run_once(&client, fault, *mode, *inject, &mut result).await;
            }
            println!("   {:?}, {}", result.verdict, result.note);
        }
        results.push(result);
        report::keep(&results)?;
    }
    if chosen.iter().any(|fault| matches!(fault.plan, Plan::Inject { .. })) {
        namespace::remove(NAMESPACE).await?;
        volumes::forget().await;
    }
    println!("{}", report::render_table(&results));
    println!("results: target/faults.json");
    let failed: Vec<_> =
        results.iter().filter(|result| result.verdict == Verdict::Fail).map(|result| result.fault.clone()).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("these faults did not pass: {}", failed.join(", ")).into()) }
}

/// Puts right what a fault, or an interrupted run, may have left behind.
async fn heal_everything() {
    nodes::heal_all().await;
    control_plane::heal().await;
    for container in containers::observe(NAMESPACE).unwrap_or_default() {
        drop(container.set_frozen(false));
        drop(container.limit_cpu(None));
        let all: Vec<u32> = container.processes.iter().map(|process| process.pid).collect();
        drop(containers::send("CONT", &all).await);
        partition::heal(&container).await;
    }
    operators::heal().await;
    volumes::heal().await;
}

async fn run_once(client: &Client, fault: &Fault, mode: Mode, inject: Inject, result: &mut FaultResult) {
    result.runs += 1;
    let outcome = match begin(client, mode).await {
        Ok(scene) => {
            let injected = inject(&scene).await;
            heal_everything().await;
            if let Some(backed) = &scene.backed {
                drop(backed.proxy.heal().await);
            }
            if let Err(error) = &injected
                && let Some(reason) = error.to_string().strip_prefix("skipped: ")
            {
                result.verdict = Verdict::Skipped;
                result.add_note(reason);
                return;
            }
            let checked = check(&scene, mode, fault, result).await;
            for note in scene.notes() {
                result.add_note(&note);
            }
            injected.and(checked)
        }
        Err(error) => Err(format!("there was no cluster to begin with: {error}").into()),
    };
    if let Err(error) = outcome {
        result.verdict = Verdict::Fail;
        result.note = format!("{error}{}{}", if result.note.is_empty() { "" } else { "; " }, result.note);
        println!("   FAILED: {error}");
        let folder = namespace::keep_evidence(NAMESPACE).await;
        let kept = root().join("target/e2e-logs").join(format!("fault-{}", fault.name));
        drop(std::fs::remove_dir_all(&kept));
        drop(std::fs::rename(&folder, &kept));
        // The next fault must not suffer from this one.
        drop(remove_cluster(&Cluster::new(client, NAMESPACE, mode.cluster())).await);
    }
}

pub(crate) async fn remove_cluster(cluster: &Cluster) -> Result<()> {
    heal_everything().await;
    kubectl(NAMESPACE, &["delete", "postgrescluster", &cluster.name, "--ignore-not-found", "--timeout=120s"]).await?;
    let selector = format!("pgherd.dev/cluster={}", cluster.name);
    kubectl(NAMESPACE, &["delete", "pods", "-l", &selector, "--force", "--grace-period=0", "--ignore-not-found"])
        .await?;
    kubectl(NAMESPACE, &["delete", "pvc", "-l", &selector, "--ignore-not-found", "--timeout=60s"]).await?;
    Ok(())
}

/// A cluster of the mode that is Ready, with clients.
async fn begin(client: &Client, mode: Mode) -> Result<Scene> {
    let cluster = Cluster::new(client, NAMESPACE, mode.cluster());
    for other in Mode::ALL.iter().filter(|other| other.cluster() != mode.cluster()) {
        let other = Cluster::new(client, NAMESPACE, other.cluster());
        if other.status().await.is_ok() {
            remove_cluster(&other).await?;
        }
    }
    if mode == Mode::OwnDisk {
        volumes::provide().await?;
    }
    let proxy = if mode == Mode::Backed { Some(backed::provide(client).await?) } else { None };
    writer::remove(NAMESPACE).await?;
    apply(NAMESPACE, &mode.manifest()).await?;
    operators::wait_available().await?;
    let before = cluster.wait_ready(3).await?;
    let primary = cluster.primary().await?;
    let table = "DROP TABLE IF EXISTS ledger, lists, probe; \
                 CREATE TABLE probe (pod text, row bigint, at timestamptz DEFAULT clock_timestamp()); \
                 GRANT ALL ON probe TO PUBLIC";
    psql(NAMESPACE, &primary, "app", table).await?;
    let backed = match proxy {
        Some(proxy) => Some(backed::begin(&cluster, proxy).await?),
        None => None,
    };
    let files = ProbeFiles { program: program()?, secrets: provide_secrets(&cluster).await? };
    let probes = Probes::start(NAMESPACE, &cluster.name, &files);
    let away = cluster.node_of(&primary).await?;
    let writer = WriterPod::start_with(client, NAMESPACE, &cluster.name, &away, APPENDERS).await?;
    writer.wait_progress(ROWS).await?;
    until("the primary to be asked by a client in its network", PATIENCE, async || {
        let asked = probes.last_acknowledged(&primary, 0).is_some();
        Ok(if asked { Look::Done(()) } else { Look::NotYet("it acknowledged nothing".to_string()) })
    })
    .await?;
    writer.reset_gap().await?;
    Scene::new(cluster, writer, probes, files.program, before, backed).await
}

fn program() -> Result<String> {
    let own = std::env::current_exe()?;
    let program = own.parent().ok_or("this program is in no folder")?.join("pgherd-e2e");
    claim(program.exists(), || format!("{} is missing: make build", program.display()))?;
    Ok(program.to_string_lossy().into_owned())
}

/// The application's credentials and the CA as files that only this user can read.
async fn provide_secrets(cluster: &Cluster) -> Result<PathBuf> {
    let folder = root().join("target/faults-secrets");
    std::fs::create_dir_all(&folder)?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let wanted = [("app", &["username", "password", "dbname"][..]), ("tls", &["ca.crt"][..])];
    for (suffix, keys) in wanted {
        let secret = secrets.get(&format!("{}-{suffix}", cluster.name)).await?;
        for key in keys {
            let value = secret.data.as_ref().and_then(|data| data.get(*key)).ok_or("a Secret lacks a key")?;
            std::fs::write(folder.join(key), &value.0)?;
        }
    }
    Ok(folder)
}

/// The invariants, once the fault is over.
async fn check(scene: &Scene, mode: Mode, fault: &Fault, result: &mut FaultResult) -> Result<()> {
    if fault.leaves_nothing() {
        return Ok(());
    }
    let instances = *scene.instances.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let settled = settle(scene, instances).await;
    let ledger = scene.writer.ledger().await?;
    result.gap_ms.push(ledger.longest_gap_ms);
    if let Some(goal) = fault.goal_ms().filter(|goal| ledger.longest_gap_ms > *goal) {
        scene.note(format!("above the goal of {goal} ms"));
    }
    result.unknown += ledger.unknown;
    let overlap = scene.probes.overlap_ms();
    result.overlap_ms += overlap;
    let promised = scene.probes.promised();
    scene.writer.set_paused(true).await?;
    // A span in which what is under way ends, one way or the other.
    tokio::time::sleep(SETTLE).await;
    let verified = scene.writer.verify().await?;
    result.acked += verified.acknowledged + verified.lists.acknowledged;
    result.lost += verified.lost + verified.lists.lost;
    result.unknown += verified.lists.unknown;
    println!(
        "   gap {} ms, {} rows and {} appends acknowledged, {} lost, overlap {overlap} ms",
        ledger.longest_gap_ms,
        verified.acknowledged,
        verified.lists.acknowledged,
        verified.lost + verified.lists.lost
    );
    settled?;
    claim(overlap == 0 || fault.may_overlap(), || format!("two instances took writes at once for {overlap} ms"))?;
    check_promises(scene, mode, &verified, &promised).await
}

/// Writes go on, the cluster is Ready and every replica streams.
async fn settle(scene: &Scene, instances: u32) -> Result<()> {
    scene.writer.wait_progress(ROWS).await?;
    let status = scene.cluster.wait_ready(instances).await?;
    let primary = status.primary.ok_or("Ready without a primary")?;
    until("all replicas to stream", PATIENCE, async || {
        let count = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let streaming = psql(NAMESPACE, &primary, "postgres", count).await?;
        let all = streaming == (instances - 1).to_string();
        Ok(if all { Look::Done(()) } else { Look::NotYet(format!("{streaming} stream")) })
    })
    .await
}

async fn check_promises(
    scene: &Scene,
    mode: Mode,
    verified: &Verification,
    promised: &BTreeSet<(String, i64)>,
) -> Result<()> {
    let impossible = verified.lists.impossible() + verified.phantom + verified.failed_present;
    claim(impossible == 0, || format!("what can't be: {verified:?}"))?;
    let primary = scene.cluster.primary().await?;
    let rows = psql(NAMESPACE, &primary, "app", "SELECT pod || ' ' || row FROM probe").await?;
    let there: BTreeSet<&str> = rows.lines().collect();
    let missing = promised.iter().filter(|(pod, row)| !there.contains(format!("{pod} {row}").as_str())).count();
    let gone =
        verified.lost + verified.vanished + verified.lists.lost + verified.lists.vanished + verified.lists.forked;
    if mode == Mode::Off {
        let bytes = scene.cluster.status().await?.last_failover.map_or(0, |failover| failover.possible_loss_bytes);
        scene.note(format!("{gone} promises and {missing} probes gone, up to {bytes} bytes of WAL reported"));
        return claim(gone == 0 || bytes > 0, || format!("{gone} promises are gone, and no loss was reported"));
    }
    claim(gone == 0, || format!("lost although mode is Required: {verified:?}"))?;
    claim(missing == 0, || format!("{missing} rows that were acknowledged to clients of single pods are missing"))?;
    if scene.backed.is_some() { backed::check(scene).await } else { Ok(()) }
}

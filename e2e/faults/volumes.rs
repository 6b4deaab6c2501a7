//! Faults of disks: full, read-only, failing, slow, and dead while the network lives. Numbers 31 to 34.
//!
//! Each instance has a disk of its own for this: a small ext4 in a file, mounted where the node's volumes are, as a local
//! PersistentVolume. `fsfreeze` makes every write to it wait, as a dead disk does.

use std::{path::PathBuf, time::Duration};

use pgherd_crds::PostgresClusterStatus;
use pgherd_e2e::{Result, kubectl::run};

use crate::scene::{Scene, claim, unix_ms};

/// Size of each disk, in MiB.
const SIZE_MIB: u32 = 700;
/// The nodes.
const NODES: [&str; 3] = ["kn1", "kn2", "kn3"];

fn folder(node: &str) -> PathBuf {
    let state = std::env::var("PGHERD_CLUSTER_DIR").unwrap_or_else(|_| "/var/lib/pgherd-cluster".into());
    PathBuf::from(state).join(node).join("volumes/faults-disk")
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn is_mounted(node: &str) -> bool {
    run("mountpoint", &["-q", &text(&folder(node))], None).await.is_ok()
}

/// Makes the disks and the volumes, empty.
pub(crate) async fn provide() -> Result<()> {
    let mut manifest = String::from(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: faults-disk}\n\
         provisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\n",
    );
    let bound = run(
        "kubectl",
        &["get", "pv", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}"],
        None,
    )
    .await?;
    for node in NODES {
        if bound.lines().any(|line| line == format!("faults-{node} Bound")) {
            continue;
        }
        drop(run("kubectl", &["delete", "pv", &format!("faults-{node}"), "--ignore-not-found"], None).await);
        let (mounted, file) = (folder(node), folder(node).with_extension("ext4"));
        std::fs::create_dir_all(&mounted)?;
        if is_mounted(node).await {
            run("umount", &[&text(&mounted)], None).await?;
        }
        // An old instance may still end on the old one.
        drop(std::fs::remove_file(&file));
        run("truncate", &["-s", &format!("{SIZE_MIB}M"), &text(&file)], None).await?;
        run("mkfs.ext4", &["-q", "-F", &text(&file)], None).await?;
        mount(node).await?;
        run("chmod", &["777", &text(&mounted)], None).await?;
        manifest.push_str(&format!(
            "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: faults-{node}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
             accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  storageClassName: faults-disk\n  \
             local: {{path: {}}}\n  nodeAffinity:\n    required:\n      nodeSelectorTerms:\n        - matchExpressions:\n            \
             - {{key: kubernetes.io/hostname, operator: In, values: [{node}]}}\n",
            mounted.display()
        ));
    }
    pgherd_e2e::kubectl::apply("default", &manifest).await.map(drop)
}

/// With the option by which Debian mounts its file systems: an error makes it read-only. On a block device of its own: `mount -o loop`
/// takes the device that an old mount still has, and with it the file system that is broken.
async fn mount(node: &str) -> Result<()> {
    let (mounted, file) = (folder(node), folder(node).with_extension("ext4"));
    let device = run("losetup", &["--find", "--show", &text(&file)], None).await?;
    let outcome = run("mount", &["-o", "errors=remount-ro", device.trim(), &text(&mounted)], None).await;
    // It goes once nothing is mounted from it.
    run("losetup", &["--detach", device.trim()], None).await?;
    outcome.map(drop)
}

/// Makes every disk writable again.
pub(crate) async fn heal() {
    for node in NODES {
        if is_mounted(node).await {
            drop(run("fsfreeze", &["-u", &text(&folder(node))], None).await);
            if !takes_writes(node) {
                drop(mount_anew(node).await);
            }
            drop(std::fs::remove_file(folder(node).join("ballast")));
        }
    }
}

fn takes_writes(node: &str) -> bool {
    let probe = folder(node).join("probe-of-the-faults");
    std::fs::write(&probe, "x").and_then(|()| std::fs::remove_file(&probe)).is_ok()
}

/// As after a repair: what still runs on the old mount keeps it until it ends.
async fn mount_anew(node: &str) -> Result<()> {
    run("umount", &["--lazy", &text(&folder(node))], None).await?;
    mount(node).await
}

/// Fills the disk of a node to the last block.
async fn fill(node: &str) -> Result<()> {
    let file = text(&folder(node).join("ballast"));
    // It ends by "no space left on device", which is what is wanted.
    drop(run("dd", &["if=/dev/zero", &format!("of={file}"), "bs=1M", "conv=fsync"], None).await);
    let (have, _) = df(node).await?;
    claim(have < 1_024, || format!("{have} KiB are left on the disk of {node}"))
}

async fn df(node: &str) -> Result<(u64, u64)> {
    let out = run("df", &["--output=avail,size", "-k", &text(&folder(node))], None).await?;
    let mut numbers = out.lines().last().unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok());
    Ok((numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()))
}

/// What the condition `Ready` says.
fn readiness(status: &PostgresClusterStatus) -> String {
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    ready.map_or_else(String::new, |ready| format!("{}: {}", ready.reason, ready.message))
}

/// The primary's disk is full: writes stop or move, the status says why, and it heals once there is room.
pub(crate) async fn full(scene: &Scene) -> Result<()> {
    let node = scene.cluster.node_of(&scene.primary()?).await?;
    fill(&node).await?;
    // The time that the fault is defined by.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let status = scene.cluster.status().await?;
    let said = readiness(&status);
    let failover = status.last_failover.as_ref().filter(|failover| Some(failover.term) > scene.before.term);
    if let Some(failover) = failover {
        scene.note(format!("{} -> {} because {} at {}", failover.from, failover.to, failover.reason, failover.at));
    }
    let terms = status.term.unwrap_or_default().saturating_sub(scene.before.term.unwrap_or_default());
    scene.note(format!("{terms} failovers; status: {said}"));
    std::fs::remove_file(folder(&node).join("ballast"))?;
    claim(terms <= 1, || format!("{terms} failovers: it flaps"))?;
    scene.writer.wait_progress(50).await.map(drop)
}

/// A replica's disk is full.
pub(crate) async fn full_on_replica(scene: &Scene) -> Result<()> {
    let replica = scene.replicas().into_iter().next().ok_or("there is no replica")?;
    let node = scene.cluster.node_of(&replica).await?;
    fill(&node).await?;
    scene.watch_no_failover(Duration::from_secs(40)).await?;
    scene.note(format!("status: {}", readiness(&scene.cluster.status().await?)));
    std::fs::remove_file(folder(&node).join("ballast"))?;
    Ok(())
}

/// The primary's file system breaks. Later it is repaired, and the pod made anew on it.
async fn broken(scene: &Scene, how: impl AsyncFnOnce(&str) -> Result<()>) -> Result<()> {
    let (pod, container) = (scene.primary()?, scene.primary_container()?);
    let node = scene.cluster.node_of(&pod).await?;
    let since = unix_ms();
    how(&node).await?;
    claim(!takes_writes(&node), || format!("the disk of {node} still takes writes"))?;
    scene.wait_failover().await?;
    scene.writer.wait_progress(50).await?;
    scene.note_last_ack_of(&container, since);
    mount_anew(&node).await?;
    claim(takes_writes(&node), || format!("the disk of {node} takes no writes although it was mounted anew"))?;
    run("kubectl", &["-n", scene.namespace(), "delete", "pod", &pod, "--wait=false"], None).await.map(drop)
}

/// An error makes it read-only.
pub(crate) async fn read_only(scene: &Scene) -> Result<()> {
    broken(scene, async |node| {
        let device = run("findmnt", &["-n", "-o", "SOURCE", &text(&folder(node))], None).await?;
        let name = device.trim().rsplit('/').next().unwrap_or_default().to_owned();
        // The kernel's own switch for this. The write itself fails: by then the file system is read-only.
        drop(std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "pgherd"));
        Ok(())
    })
    .await
}

/// `EXT4_IOC_SHUTDOWN` without a flush of the journal: from then on every read, write and fsync fails with EIO.
pub(crate) async fn errors(scene: &Scene) -> Result<()> {
    let shut_down =
        "open(my $f, '<', $ARGV[0]) or die $!; my $flags = pack('L', 2); ioctl($f, 0x8004587d, $flags) or die $!";
    broken(scene, async |node| run("perl", &["-e", shut_down, &text(&folder(node))], None).await.map(drop)).await
}

/// Every write to the primary's disk waits for ever, while its network lives.
pub(crate) async fn dead(scene: &Scene) -> Result<()> {
    let (container, node) = (scene.primary_container()?, scene.cluster.node_of(&scene.primary()?).await?);
    let since = unix_ms();
    run("fsfreeze", &["-f", &text(&folder(&node))], None).await?;
    let outcome = scene.wait_failover().await;
    let written = scene.writer.wait_progress(50).await;
    run("fsfreeze", &["-u", &text(&folder(&node))], None).await?;
    scene.note_last_ack_of(&container, since);
    outcome?;
    written.map(drop)
}

/// Every few seconds all writes wait for a while: a slow disk is no dead one.
async fn slow(scene: &Scene, stall: Duration) -> Result<()> {
    let node = scene.cluster.node_of(&scene.primary()?).await?;
    let end = tokio::time::Instant::now() + Duration::from_secs(45);
    while tokio::time::Instant::now() < end {
        run("fsfreeze", &["-f", &text(&folder(&node))], None).await?;
        tokio::time::sleep(stall).await;
        run("fsfreeze", &["-u", &text(&folder(&node))], None).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    scene.writer.wait_progress(50).await?;
    let status = scene.cluster.status().await?;
    let terms = status.term.unwrap_or_default().saturating_sub(scene.before.term.unwrap_or_default());
    scene.note(format!("{terms} failovers"));
    claim(terms <= 1, || format!("{terms} failovers: it flaps"))
}

pub(crate) async fn slow_500ms(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_millis(500)).await
}

pub(crate) async fn slow_5s(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_secs(5)).await
}

pub(crate) async fn slow_30s(scene: &Scene) -> Result<()> {
    slow(scene, Duration::from_secs(30)).await
}

/// Takes the disks and volumes away; nothing uses them any more.
pub(crate) async fn forget() {
    for node in NODES {
        let volume = format!("faults-{node}");
        drop(run("kubectl", &["delete", "pv", &volume, "--ignore-not-found", "--wait=false"], None).await);
        if is_mounted(node).await {
            drop(run("umount", &[&text(&folder(node))], None).await);
        }
        drop(std::fs::remove_file(folder(node).with_extension("ext4")));
        drop(std::fs::remove_dir(folder(node)));
    }
}

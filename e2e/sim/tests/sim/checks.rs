//! What must hold once everything is healed: I1, I3, I4, I6, I9, I10, and that all copies are the same.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{data::DataDir, scope::elapsed, trace::note, world::World};

/// From the last healing until the cluster is Ready, writable and all replicas stream.
const HEALS_WITHIN: Duration = Duration::from_secs(240);

fn condition<'a>(cluster: &'a Value, kind: &str) -> Option<&'a Value> {
    cluster["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn is_ready(world: &World) -> bool {
    let Some(cluster) = world.cluster() else { return false };
    let current = cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"];
    current && condition(&cluster, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// What the status says.
pub(crate) fn why_not_ready(world: &World) -> String {
    let cluster = world.cluster().unwrap_or_default();
    let ready = condition(&cluster, "Ready").cloned().unwrap_or_default();
    format!("{} {} (register {:?})", ready["reason"], ready["message"], world.register())
}

/// Waits until the status has said Ready for a while.
pub(crate) async fn await_ready(world: &World, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    let mut since = None;
    while Instant::now() < end {
        sleep(Duration::from_millis(250)).await;
        if !is_ready(world) {
            since = None;
            continue;
        }
        if since.get_or_insert_with(Instant::now).elapsed() >= Duration::from_secs(3) {
            return true;
        }
    }
    false
}

/// Everything.
pub(crate) async fn after_healing(world: &Arc<World>) {
    let healed_at = elapsed();
    let end = healed_at + HEALS_WITHIN;
    loop {
        if !await_ready(world, end.saturating_sub(elapsed())).await {
            world.violate(format!("I3: not Ready {HEALS_WITHIN:?} after healing: {}", why_not_ready(world)));
            return;
        }
        // What hangs is noticed after seconds: until then the status says Ready.
        let last = world.ledger.lock().unwrap().last_acknowledged_at;
        if last > healed_at && elapsed().saturating_sub(last) < Duration::from_secs(2) {
            break;
        }
        if elapsed() > end {
            world.violate(format!("I3: Ready, but nothing is acknowledged since {last:?} (healed at {healed_at:?})"));
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
    check_settled(world).await;
    world.quiet.store(true, std::sync::atomic::Ordering::SeqCst);
    // What is on its way arrives.
    sleep(Duration::from_secs(8)).await;
    check_data(world);
    check_routes(world);
}

/// I9: a settled cluster causes no writes but renewals. A write to a disk that hung when its fault ended may come half a
/// minute later, and be told of: a cluster that is not settled by then never is.
async fn check_settled(world: &World) {
    sleep(Duration::from_secs(10)).await;
    let mut writes = BTreeSet::new();
    for _ in 0..4 {
        writes = observe_writes(world).await;
        if writes.is_empty() {
            return;
        }
    }
    let writes: Vec<String> = writes.into_iter().collect();
    world.violate(format!("I9: a settled cluster causes writes: {}", writes.join(", ")));
}

/// What is written within 20 s.
async fn observe_writes(world: &World) -> BTreeSet<String> {
    let from = elapsed();
    sleep(Duration::from_secs(20)).await;
    world
        .api
        .writes
        .lock()
        .unwrap()
        .iter()
        .filter(|write| write.at >= from && write.plural != "leases")
        .map(|write| format!("{} {}", write.by, write.what))
        .collect()
}

fn data_of(world: &World, ordinal: u32) -> Option<DataDir> {
    world.volume(ordinal).with(|content| content.data().cloned())
}

/// I1, I4, I6 on what the primary holds; every replica holds the same.
fn check_data(world: &World) {
    let Some(register) = world.register() else {
        world.violate("I1: there is no register");
        return;
    };
    let holder = register.holder.map(|holder| holder.pod).unwrap_or_default();
    let ordinal_of = |pod: &str| pod.trim_start_matches("shop-").parse::<u32>().unwrap_or(0);
    let Some(primary) = data_of(world, ordinal_of(&holder)) else {
        world.violate(format!("I1: {holder} holds the role, but no data"));
        return;
    };
    let kept = primary.ids();
    let ledger = world.ledger.lock().unwrap();
    let lost: Vec<u64> = ledger.acknowledged.keys().filter(|id| !kept.contains(id)).copied().collect();
    let risen: Vec<u64> = ledger.failed.iter().filter(|id| kept.contains(id)).copied().collect();
    let vanished: Vec<u64> = ledger.seen.iter().filter(|id| !kept.contains(id)).copied().collect();
    note(format!("{} kept, {} lost, {} seen and gone", kept.len(), lost.len(), vanished.len()));
    drop(ledger);
    if world.required && !lost.is_empty() {
        world.violate(format!(
            "I1: {} acknowledged transactions are lost: {:?}",
            lost.len(),
            &lost[..lost.len().min(9)]
        ));
    }
    if !world.required && !lost.is_empty() {
        check_told(world, &lost);
    }
    if !risen.is_empty() {
        world.violate(format!("I4: transactions that were refused are there: {risen:?}"));
    }
    if world.required && !vanished.is_empty() {
        world.violate(format!("I4: transactions that were seen are gone: {vanished:?}"));
    }
    for instance in world.running().iter().filter(|instance| instance.pod != holder) {
        let Some(replica) = data_of(world, ordinal_of(&instance.pod)) else { continue };
        let same = replica.wal.iter().zip(&primary.wal).all(|(a, b)| a == b);
        if !same || replica.wal.len() > primary.wal.len() {
            world.violate(format!("{} holds something else than the primary", instance.pod));
        }
    }
}

/// I6: without a quorum a loss is told.
fn check_told(world: &World, lost: &[u64]) {
    let cluster = world.cluster().unwrap_or_default();
    let told = &cluster["status"]["lastFailover"];
    let sizes = world.sizes.lock().unwrap();
    let bytes: u64 = lost.iter().filter_map(|id| sizes.get(id)).sum();
    let possible = told["possibleLossBytes"].as_u64().unwrap_or(0);
    // Not a violation yet: the bound knows nothing of what was written after the last renewal.
    world.remark(format!("I6: {} transactions of {bytes} bytes are lost, the status tells of {possible}", lost.len()));
    if told.is_null() {
        world.violate(format!("I6: {} transactions are lost and status.lastFailover is empty", lost.len()));
    }
}

/// I10: `shop-rw` leads to the holder.
fn check_routes(world: &World) {
    let routed = world.routed();
    let holder = world.register().and_then(|register| register.holder).map(|holder| holder.pod);
    if routed.len() != 1 || routed.first() != holder.as_ref() {
        world.violate(format!("I10: shop-rw leads to {routed:?}, the holder is {holder:?}"));
    }
}

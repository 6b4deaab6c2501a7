//! What all parts of a run share, and the checks that hold at every moment: acknowledgements by term (I2) and the role
//! labels (I10). Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pgherd_core::register::{MemberId, REGISTER_ANNOTATION, Register, Term};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    api::Api,
    data::Volume,
    instance::Instance,
    net::Net,
    postgres::Postgres,
    random::Random,
    scope::{Node, elapsed},
    trace::note,
};

/// The database system of the simulated cluster.
pub(crate) const SYSTEM_ID: &str = "7300000000000000001";
/// An old primary without a quorum is stopped this soon after its node was thawed.
const AFTER_THAW: Duration = Duration::from_millis(1_200);

/// A rule that is switched off, to show that its absence is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// All rules hold.
    #[default]
    None,
    /// The fencer lets its deadline pass.
    NoFence,
    /// That, and members answer a seal without cutting the replication, stopping or promising.
    NoFenceNoSeal,
    /// Members seal while they vouch for the primary, and the operator is not told that they do.
    NoPromise,
    /// That, and the fencer lets its deadline pass.
    NoFenceNoPromise,
    /// A primary that has started lets clients in at once.
    NoGate,
}

impl Mutant {
    pub(crate) fn seals(self) -> bool {
        self != Self::NoFenceNoSeal
    }

    pub(crate) fn fences(self) -> bool {
        !matches!(self, Self::NoFence | Self::NoFenceNoSeal | Self::NoFenceNoPromise)
    }

    pub(crate) fn keeps_promises(self) -> bool {
        !matches!(self, Self::NoPromise | Self::NoFenceNoPromise | Self::NoFenceNoSeal)
    }

    pub(crate) fn gates(self) -> bool {
        self != Self::NoGate
    }
}

/// In memory where that is possible: nothing here has to survive, and the agent syncs what it writes.
fn make_folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { builder.prefix("sim").tempdir_in(memory) } else { builder.prefix("sim").tempdir() };
    made.unwrap()
}

/// What clients know.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) acknowledged: BTreeMap<u64, Duration>,
    pub(crate) failed: BTreeSet<u64>,
    pub(crate) unknown: BTreeSet<u64>,
    /// What readers saw.
    pub(crate) seen: BTreeSet<u64>,
    pub(crate) last_acknowledged_at: Duration,
    pub(crate) longest_gap: Duration,
}

/// What servers acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    by_term: BTreeMap<Term, MemberId>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) net: Net,
    pub(crate) api: Api,
    pub(crate) folder: TempDir,
    pub(crate) mutant: Mutant,
    /// What was acknowledged must not be lost.
    pub(crate) required: bool,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) violations: Mutex<Vec<String>>,
    pub(crate) remarks: Mutex<Vec<String>>,
    pub(crate) stopping: AtomicBool,
    /// Clients have ended.
    pub(crate) quiet: AtomicBool,
    pub(crate) instances: Mutex<Vec<Arc<Instance>>>,
    /// Two operators may lead at once: label checks are those of the end.
    pub(crate) two_leaders: AtomicBool,
    volumes: Mutex<BTreeMap<u32, Arc<Volume>>>,
    frozen: Mutex<BTreeSet<Node>>,
    thawed_at: Mutex<BTreeMap<Node, Duration>>,
    acknowledged: Mutex<Acknowledged>,
    /// Bytes of WAL of each transaction.
    pub(crate) sizes: Mutex<BTreeMap<u64, u64>>,
    numbers: AtomicU64,
    clients: AtomicU64,
}

impl World {
    pub(crate) fn new(seed: u64, mutant: Mutant, required: bool) -> Arc<Self> {
        Arc::new(Self {
            random: Random::new(seed),
            net: Net::new(),
            api: Api::new(),
            folder: make_folder(),
            mutant,
            required,
            ledger: Mutex::default(),
            violations: Mutex::default(),
            remarks: Mutex::default(),
            stopping: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            instances: Mutex::default(),
            two_leaders: AtomicBool::new(false),
            volumes: Mutex::default(),
            frozen: Mutex::default(),
            thawed_at: Mutex::default(),
            acknowledged: Mutex::default(),
            sizes: Mutex::default(),
            numbers: AtomicU64::new(0),
            clients: AtomicU64::new(0),
        })
    }

    pub(crate) fn next_client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Where an instance's agent keeps the files of its own, which outlive pods.
    pub(crate) fn volume_folder(&self, ordinal: u32) -> PathBuf {
        self.folder.path().join(format!("volume-{ordinal}"))
    }

    pub(crate) fn volume(&self, ordinal: u32) -> Arc<Volume> {
        Arc::clone(self.volumes.lock().unwrap().entry(ordinal).or_default())
    }

    pub(crate) fn violate(&self, what: impl Into<String>) {
        let what = what.into();
        note(format!("VIOLATION {what}"));
        self.violations.lock().unwrap().push(what);
    }

    /// Something for the report that is no violation.
    pub(crate) fn remark(&self, what: impl Into<String>) {
        let what = what.into();
        note(format!("REMARK {what}"));
        self.remarks.lock().unwrap().push(what);
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The containers that exist.
    pub(crate) fn running(&self) -> Vec<Arc<Instance>> {
        let mut instances = self.instances.lock().unwrap();
        instances.retain(|instance| !instance.is_over());
        instances.clone()
    }

    /// The container of a pod as its DNS name tells: the one of the Pod object that exists.
    pub(crate) fn instance_of(&self, pod: &str) -> Option<Arc<Instance>> {
        let object = self.api.get("pods", "web", pod)?;
        let uid = object["metadata"]["uid"].as_str()?.to_owned();
        self.running().into_iter().find(|instance| instance.pod == pod && instance.uid == uid)
    }

    pub(crate) fn server_of(&self, pod: &str) -> Option<Arc<Postgres>> {
        self.instance_of(pod)?.server().filter(|server| !server.is_stopped())
    }

    /// The register as it is in the API server.
    pub(crate) fn register(&self) -> Option<Register> {
        let lease = self.api.get("leases", "web", "shop")?;
        serde_json::from_str(lease["metadata"]["annotations"][REGISTER_ANNOTATION].as_str()?).ok()
    }

    pub(crate) fn cluster(&self) -> Option<Value> {
        self.api.get("postgresclusters", "web", "shop")
    }

    /// Pods that `shop-rw` leads to.
    pub(crate) fn routed(&self) -> Vec<String> {
        let pods = self.api.list("pods");
        let routed = pods.iter().filter(|pod| pod["metadata"]["labels"]["pgherd.dev/role"] == "primary");
        // A Service leads to a pod that ends only while no other is ready.
        let routed = routed.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        routed.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn is_frozen(&self, node: Node) -> bool {
        self.frozen.lock().unwrap().contains(&node)
    }

    /// Returns once the node runs: for what is not polled in a scope of its own.
    pub(crate) async fn while_frozen(&self, node: Node) {
        while self.is_frozen(node) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn freeze(&self, node: Node) {
        self.frozen.lock().unwrap().insert(node);
        self.running().iter().filter(|i| i.scope.node == node).for_each(|i| i.scope.freeze());
    }

    pub(crate) fn thaw(&self, node: Node) {
        self.frozen.lock().unwrap().remove(&node);
        self.thawed_at.lock().unwrap().insert(node, elapsed());
        self.running().iter().filter(|i| i.scope.node == node).for_each(|i| i.scope.thaw());
    }

    /// A server acknowledged a commit (I2).
    pub(crate) fn check_acknowledged(&self, id: u64, term: Term, member: &MemberId, pod: &str) {
        let mut log = self.acknowledged.lock().unwrap();
        let known = log.by_term.entry(term).or_insert_with(|| member.clone()).clone();
        let newest = log.by_term.last_key_value().map(|(term, member)| (*term, member.clone()));
        drop(log);
        if known != *member {
            self.violate(format!("I2: {known} and {member} ({pod}) both acknowledge in term {term}"));
        }
        let Some((newest_term, newest_member)) = newest.filter(|(newest, _)| *newest > term) else { return };
        // What was flushed before the seal is in the new history: telling late of it is no harm.
        let kept = self.volumes.lock().unwrap().values().any(|volume| {
            volume.with(|content| {
                content.data().is_some_and(|data| data.local.member == newest_member && data.ids().contains(&id))
            })
        });
        let node = self.running().iter().find(|i| i.pod == pod).map(|i| i.scope.node);
        let thawed = node.and_then(|node| self.thawed_at.lock().unwrap().get(&node).copied());
        let just_thawed = thawed.is_some_and(|at| elapsed().saturating_sub(at) < AFTER_THAW);
        if !kept && (self.required || !just_thawed) {
            self.violate(format!("I2: {pod} acknowledges {id} in term {term} after term {newest_term} has begun to"));
        }
    }

    /// Somebody wrote to the API server (I10).
    pub(crate) fn check_api(&self, by: &str) {
        let routed = self.routed();
        if routed.len() > 1 && !self.two_leaders.load(Ordering::SeqCst) {
            self.violate(format!("I10: after a write of {by}, {} are all primary", routed.join(" and ")));
        }
    }
}

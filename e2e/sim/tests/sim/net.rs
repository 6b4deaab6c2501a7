//! The network between nodes: every message takes a while, and over a cut link it waits, as TCP sends it again, until the
//! link is mended or its sender gives up. One-way cuts are cuts of one direction.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use tokio::time::sleep;

use crate::{random::Random, scope::Node, signal::Signal};

pub(crate) struct Net {
    cut: Mutex<BTreeSet<(Node, Node)>>,
    slow_ms: Mutex<BTreeMap<(Node, Node), u64>>,
    changed: Signal,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self { cut: Mutex::default(), slow_ms: Mutex::default(), changed: Signal::default() }
    }

    pub(crate) fn is_cut(&self, from: Node, to: Node) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }

    pub(crate) fn cut(&self, from: Node, to: Node) {
        self.cut.lock().unwrap().insert((from, to));
        self.changed.raise();
    }

    /// Adds up to so many milliseconds to each message between two nodes.
    pub(crate) fn slow_down(&self, from: Node, to: Node, up_to_ms: u64) {
        self.slow_ms.lock().unwrap().insert((from, to), up_to_ms);
    }

    pub(crate) fn mend(&self) {
        self.cut.lock().unwrap().clear();
        self.slow_ms.lock().unwrap().clear();
        self.changed.raise();
    }

    /// Returns when a message that is sent now has arrived.
    pub(crate) async fn travel(&self, random: &Random, from: Node, to: Node) {
        if from == to {
            return;
        }
        let mut changes = self.changed.subscribe();
        let mut waited = false;
        while self.is_cut(from, to) {
            waited = true;
            changes.changed().await;
        }
        let slow = self.slow_ms.lock().unwrap().get(&(from, to)).copied().unwrap_or(0);
        let again = if waited { random.between(20, 1_500) } else { 0 };
        let micros = random.between(200, 2_500) + 1_000 * (again + if slow > 0 { random.between(0, slow) } else { 0 });
        sleep(Duration::from_micros(micros)).await;
    }
}

//! The only source of chance. What is drawn follows from the seed, the simulated time, and the place or the thing that
//! it is drawn for; not from the order in which tasks that are ready at the same moment are polled.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Mutex,
    time::Duration,
};

use crate::scope::{Node, elapsed, here};

/// The draws of this moment, by place.
type Moment = (Duration, BTreeMap<Option<Node>, u64>);

#[derive(Debug)]
pub(crate) struct Random {
    seed: u64,
    drawn: Mutex<Moment>,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: Mutex::default() }
    }

    /// A source for one thing that begins now.
    pub(crate) fn fork(&self, what: &str) -> Self {
        Self::new(mix(&(self.seed, what, elapsed())))
    }

    pub(crate) fn next(&self) -> u64 {
        let (now, place) = (elapsed(), here());
        let mut drawn = self.drawn.lock().unwrap();
        if drawn.0 != now {
            *drawn = (now, BTreeMap::new());
        }
        let count = drawn.1.entry(place).or_default();
        *count += 1;
        mix(&(self.seed, now, place, *count))
    }

    /// At least `from`, below `to`.
    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        from + self.next() % (to.saturating_sub(from)).max(1)
    }

    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.between(0, 100) < chance
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        let index = usize::try_from(self.between(0, from.len() as u64)).unwrap();
        &from[index]
    }
}

fn mix(of: &impl Hash) -> u64 {
    // Its keys are fixed: the same in every process.
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

//! A data directory: WAL as a list of records on timelines, how much of it is on disk, and what the agent keeps beside it.
//! A volume holds one and outlives its pods. Pure data; time and processes are in [`crate::postgres`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use pgherd_agent::local_state::LocalState;
use pgherd_core::{
    lsn::Lsn,
    timeline::{HistoryEntry, TimelineHistory, TimelineId},
};

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A transaction of the workload.
    Insert(u64),
    /// A checkpoint, the end of a recovery and the like, with the number of the occasion: no two are the same bytes.
    Other(u64),
}

/// A record of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) timeline: u32,
    pub(crate) end: Lsn,
    pub(crate) what: What,
}

/// Bytes of a page of WAL.
const PAGE: u64 = 8_192;
/// Where the WAL of a new cluster begins.
const FIRST: Lsn = Lsn(0x100_0000);

/// What initdb, a copy or a restore makes.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    pub(crate) local: LocalState,
    pub(crate) system_id: String,
    pub(crate) wal: Vec<Record>,
    /// Records that are on disk.
    pub(crate) flushed: usize,
    /// Records that are replayed (standby).
    pub(crate) replayed: usize,
    pub(crate) history: TimelineHistory,
    /// Physical slots, with whether they are in use.
    pub(crate) slots: BTreeMap<String, bool>,
    /// Where the shutdown checkpoint begins, when the last server on it was a primary that stopped cleanly.
    pub(crate) shut_down_at: Option<Lsn>,
}

impl DataDir {
    pub(crate) fn initdb(local: LocalState, system_id: &str) -> Self {
        Self {
            local,
            system_id: system_id.to_owned(),
            wal: Vec::new(),
            flushed: 0,
            replayed: 0,
            history: TimelineHistory::root(TimelineId(1)),
            slots: BTreeMap::new(),
            shut_down_at: None,
        }
    }

    /// A copy as another member: it has what is on the source's disk.
    pub(crate) fn copied(source: &Self, local: LocalState) -> Self {
        let wal = source.wal[..source.flushed].to_vec();
        let (flushed, replayed) = (wal.len(), wal.len());
        Self {
            local,
            system_id: source.system_id.clone(),
            wal,
            flushed,
            replayed,
            history: source.history.clone(),
            slots: BTreeMap::new(),
            shut_down_at: None,
        }
    }

    /// The end of the first `count` records.
    pub(crate) fn lsn_at(&self, count: usize) -> Lsn {
        count.checked_sub(1).and_then(|last| self.wal.get(last)).map_or(FIRST, |record| record.end)
    }

    pub(crate) fn flushed_lsn(&self) -> Lsn {
        self.lsn_at(self.flushed)
    }

    pub(crate) fn append(&mut self, what: What, bytes: u64) -> Lsn {
        let end = Lsn(self.lsn_at(self.wal.len()).0 + bytes);
        self.wal.push(Record { timeline: self.history.timeline.0, end, what });
        end
    }

    /// The machine or the server died: what was not flushed is gone. Afterwards everything there is gets replayed.
    pub(crate) fn crash(&mut self) {
        self.wal.truncate(self.flushed);
        self.replayed = self.replayed.min(self.flushed);
        self.slots.values_mut().for_each(|active| *active = false);
    }

    /// A promotion: a timeline of its own from here on, begun by an end-of-recovery record.
    pub(crate) fn switch_timeline(&mut self, occasion: u64) {
        let switch_lsn = self.lsn_at(self.wal.len());
        self.history.ancestors.push(HistoryEntry { timeline: self.history.timeline, switch_lsn });
        self.history.timeline = TimelineId(self.history.timeline.0 + 1);
        self.append(What::Other(occasion), 56);
        self.flushed = self.wal.len();
        self.replayed = self.wal.len();
    }

    /// The records that hold the bytes of the page before `upto`.
    pub(crate) fn page_before(&self, upto: Lsn) -> Vec<Record> {
        let from = Lsn(upto.0.saturating_sub(1) / PAGE * PAGE);
        let begins = |index: usize| self.lsn_at(index);
        let here = |index: &usize| self.wal[*index].end > from && begins(*index) < upto;
        (0..self.flushed).filter(here).map(|index| self.wal[index]).collect()
    }

    pub(crate) fn ids(&self) -> BTreeSet<u64> {
        self.wal
            .iter()
            .filter_map(|record| match record.what {
                What::Insert(id) => Some(id),
                What::Other(_) => None,
            })
            .collect()
    }
}

/// What is on a volume.
#[derive(Clone, Debug, Default)]
pub(crate) enum Content {
    #[default]
    Empty,
    /// Being made: must not be started.
    Partial,
    Complete(DataDir),
}

impl Content {
    pub(crate) fn data(&self) -> Option<&DataDir> {
        match self {
            Self::Complete(data) => Some(data),
            _ => None,
        }
    }

    pub(crate) fn data_mut(&mut self) -> Option<&mut DataDir> {
        match self {
            Self::Complete(data) => Some(data),
            _ => None,
        }
    }
}

/// An instance's volume.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    pub(crate) content: Mutex<Content>,
    /// The container that uses it (its number), 0 for none.
    pub(crate) user: AtomicU64,
    /// A write takes up to so many milliseconds more.
    pub(crate) slow_ms: AtomicU64,
}

impl Volume {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Content) -> T) -> T {
        look(&mut self.content.lock().unwrap())
    }

    pub(crate) fn local(&self) -> Option<LocalState> {
        self.with(|content| content.data().map(|data| data.local.clone()))
    }

    /// The durable write of `pgherd.json`.
    pub(crate) fn put_local(&self, local: &LocalState) {
        self.with(|content| {
            if let Some(data) = content.data_mut() {
                data.local = local.clone();
            }
        });
    }

    pub(crate) fn lock(&self, container: u64) -> bool {
        self.user.compare_exchange(0, container, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub(crate) fn unlock(&self, container: u64) {
        let _ = self.user.compare_exchange(container, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

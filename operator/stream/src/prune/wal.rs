//! The WAL of an archive that no kept backup needs. It is listed page by page, and no more than a page of its names is in memory.

use std::collections::{BTreeMap, BTreeSet};

use pgherd_core::{
    backup::{AGE_SUFFIX, BackupRecord, ClusterLocation},
    lsn::Lsn,
    retention::wal_is_needed,
    timeline::TimelineId,
};

use super::{PruneError, PrunePlan, observe_unfinished};
use crate::{
    store::{ObjectStore, StoreError},
    wal::WalName,
};

/// WAL objects, of whatever kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalTally {
    /// How many.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl WalTally {
    fn add(&mut self, objects: &[(String, u64)]) {
        self.files += objects.len();
        self.bytes = objects.iter().fold(self.bytes, |bytes, (_, size)| bytes.saturating_add(*size));
    }
}

/// Tells WAL objects that end at or before what the kept backups need. Histories stay: they are small, and each may be asked for.
struct Sieve {
    root: String,
    segment_bytes: u64,
    floor: BTreeMap<TimelineId, Lsn>,
}

impl Sieve {
    /// None where nothing may go.
    fn of(plan: &PrunePlan, location: &ClusterLocation) -> Option<Self> {
        let segment_bytes = find_segment_bytes(plan.records.values())?;
        let root = location.root();
        (!plan.backups.keep.is_empty()).then(|| Self { root, segment_bytes, floor: plan.floor.clone() })
    }

    fn goes(&self, key: &str) -> bool {
        let end = parse_segment_end(&self.root, key, self.segment_bytes);
        end.is_some_and(|(timeline, end)| !wal_is_needed(&self.floor, timeline, end))
    }
}

/// The size of WAL segments, where all backups agree.
fn find_segment_bytes<'a>(records: impl Iterator<Item = &'a BackupRecord>) -> Option<u64> {
    let sizes: BTreeSet<u64> = records.map(|record| record.wal_segment_bytes).collect();
    sizes.first().copied().filter(|_| sizes.len() == 1)
}

/// Lowers the floor to these starts.
pub(super) fn lower_floor(floor: &mut BTreeMap<TimelineId, Lsn>, starts: Vec<(TimelineId, Lsn)>) {
    for (timeline, lsn) in starts {
        let lowest = floor.entry(timeline).or_insert(lsn);
        *lowest = lsn.min(*lowest);
    }
}

/// The archive's listing, of each page what goes.
struct WalPages<'a> {
    store: &'a ObjectStore,
    sieve: Sieve,
    /// Leads to the next page.
    token: Option<String>,
    ended: bool,
}

impl<'a> WalPages<'a> {
    /// None where nothing may go.
    fn begin(store: &'a ObjectStore, location: &ClusterLocation, plan: &PrunePlan) -> Option<Self> {
        Some(Self { store, sieve: Sieve::of(plan, location)?, token: None, ended: false })
    }

    async fn next(&mut self) -> Result<Option<Vec<(String, u64)>>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        let prefix = format!("{}/wal/", self.sieve.root);
        let (mut page, next) = self.store.list_page(&prefix, self.token.take()).await?;
        (self.ended, self.token) = (next.is_none(), next);
        page.retain(|(key, _)| self.sieve.goes(key));
        Ok(Some(page))
    }
}

/// How much WAL would go by a plan. Writes nothing.
///
/// # Errors
/// [`PruneError`].
pub async fn measure_wal(
    store: &ObjectStore,
    location: &ClusterLocation,
    plan: &PrunePlan,
) -> Result<WalTally, PruneError> {
    let mut tally = WalTally::default();
    let Some(mut pages) = WalPages::begin(store, location, plan) else { return Ok(tally) };
    while let Some(page) = pages.next().await? {
        tally.add(&page);
    }
    Ok(tally)
}

/// Deletes it.
pub(super) async fn prune_wal(
    store: &ObjectStore,
    location: &ClusterLocation,
    plan: &PrunePlan,
) -> Result<WalTally, PruneError> {
    let mut tally = WalTally::default();
    let Some(mut pages) = WalPages::begin(store, location, plan) else { return Ok(tally) };
    while let Some(mut page) = pages.next().await? {
        if page.is_empty() {
            continue;
        }
        // After the listing: what a backup needs that begins later still is not in it.
        lower_floor(&mut pages.sieve.floor, observe_unfinished(store, location, &plan.records).await?);
        page.retain(|(key, _)| pages.sieve.goes(key));
        let keys: Vec<String> = page.iter().map(|(key, _)| key.clone()).collect();
        store.delete_all(&keys).await?;
        tally.add(&page);
    }
    Ok(tally)
}

/// The timeline and end of the segment that an object holds, or belongs to; `None` for anything else.
fn parse_segment_end(root: &str, key: &str, segment_bytes: u64) -> Option<(TimelineId, Lsn)> {
    let path = key.strip_prefix(root)?.strip_prefix("/wal/")?;
    let name = path.rsplit('/').next()?;
    let name = name.strip_suffix(AGE_SUFFIX).unwrap_or(name).strip_suffix(".zst")?;
    let segment = match WalName::parse(name).ok()? {
        WalName::BackupLabel => WalName::parse(name.get(..24)?).ok()?,
        segment => segment,
    };
    let WalName::Segment { timeline, log, segment, .. } = segment else { return None };
    let start = (u64::from(log) << 32).checked_add(u64::from(segment).checked_mul(segment_bytes)?)?;
    Some((timeline, Lsn(start.checked_add(segment_bytes)?)))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use pgherd_core::retention::RetentionPolicy;

    use super::*;
    use crate::{
        catalogue::RECORD_NAME,
        prune::{PruneOptions, apply_prune, plan_prune},
        store::fake::FakeStore,
        wal::segment_name,
    };

    #[test]
    fn only_segments_and_what_belongs_to_them_have_an_end() {
        let end = |key: &str| parse_segment_end("p/c/1", key, 16 << 20);
        let expected = Some((TimelineId(1), Lsn(4 << 24)));
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.partial.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.00000028.backup.zst"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.zst.age"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.00000028.backup.zst.age"), expected);
        assert_eq!(end("p/c/1/wal/00000001/00000000/000000010000000000000003.age"), None);
        for other in ["p/c/1/wal/00000002.history", "p/c/2/wal/x.zst", "p/c/1/wal/00000001/00000000/notes.txt"] {
            assert_eq!(end(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_long_archive_goes_page_by_page_up_to_what_a_backup_needs() {
        const SEGMENT: u64 = 16 << 20;
        let (fake, start) = (FakeStore::start(), Lsn(3_000 * SEGMENT + 40));
        let (store, location) = (fake.connect().await, fake.location());
        let key = |number| location.wal_key(&segment_name(TimelineId(1), Lsn(number * SEGMENT), SEGMENT));
        fake.hold((0..3_500).map(key));
        fake.hold([location.wal_key("00000002.history")]);
        let id = "20261122T020304Z-00000001-0-2000028";
        let record = format!(
            r#"{{"format":1,"id":"{id}","cluster":"c","systemId":"7","serverVersion":170000,"timeline":1,"startLsn":"{start}",
            "stopLsn":"{start}","startedAt":"2026-11-22T02:03:04Z","stoppedAt":"2026-11-22T02:03:05Z","archives":[],
            "manifestSha256":"","tarBytes":0,"storedBytes":0,"walSegmentBytes":{SEGMENT}}}"#
        );
        store.put(&format!("{}{RECORD_NAME}", location.backup_prefix(id)), record.into()).await.unwrap();
        // One that runs, and began before: what it needs stays.
        let running = format!("20261122T020405Z-00000001-{}", Lsn(2_990 * SEGMENT).to_string().replace('/', "-"));
        fake.hold([format!("{}inprogress.json", location.backup_prefix(&running))]);
        let options = PruneOptions {
            policy: RetentionPolicy { keep_last: Some(1), keep_for: None },
            pinned: BTreeSet::new(),
            doomed: BTreeSet::new(),
            damaged: BTreeSet::new(),
            now: Timestamp::now(),
        };
        let plan = plan_prune(&store, &location, &options).await.unwrap();
        let expected = WalTally { files: 2_990, bytes: 2_990 };
        assert_eq!(measure_wal(&store, &location, &plan).await.unwrap(), expected);
        let done = apply_prune(&store, &location, &options, &plan).await.unwrap();
        assert_eq!((done.wal, done.bytes), (2_990, 2_990));
        let left = store.list(&format!("{}/wal/", location.root())).await.unwrap();
        assert_eq!((left.len(), left[0].0.as_str()), (511, key(2_990).as_str()));
        let (page, next) = store.list_page("", None).await.unwrap();
        assert!(page.len() == 513 && next.is_none());
    }
}

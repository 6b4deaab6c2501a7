//! What a real backup left in the store, with values changed and checksums made right again: an attacker who can write to the
//! store can do that. No panic, no memory without bound, no path out of the data directory.

use std::{fs, path::Path};

use pgherd_core::{
    backup::{BackupRecord, ClusterLocation, StoreConfig, is_backup_id},
    timeline::{TimelineHistory, TimelineId},
};
use pgherd_stream::{
    catalogue::{parse_record, render_checksum},
    restore::list_files,
    tar::validate_path,
    wal::decide_needed,
};
use proptest::{
    prelude::*,
    sample::Index,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    backups::back_up,
    postgres::{Postgres, workspace},
    process::{Errand, Process},
    server::Server,
};

/// A backup's Job has this much beside it; nothing that is refused may take more.
const LIMIT: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_backup_with_changed_values_is_read_or_refused_in_bounded_memory() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let (server, minio) = (Postgres::create(dir.path(), "primary", 1), Server::start_plain(dir.path()).await);
    let (outcome, _) = back_up(&server, minio.location()).await;
    let (store, prefix) = (minio.store().await, outcome.location.backup_prefix(&outcome.record.id));
    for name in ["backup.json", "backup_manifest", "index.json.zst"] {
        fs::write(dir.path().join(name), store.get(&format!("{prefix}{name}")).await.unwrap().unwrap()).unwrap();
    }
    let errand = Errand::Mutate { captures: dir.path().to_owned(), cases: Config::default().cases };
    let found = Process::start(&errand).finish().await;
    println!("peak memory: {} MiB", found.peak_rss_bytes >> 20);
    assert!(found.peak_rss_bytes < LIMIT, "{} bytes", found.peak_rss_bytes);
}

/// A change of one value, by the number of the value and of what takes its place.
type Change = (Index, Index);

/// What is put in the place of values.
fn hostile() -> Vec<Value> {
    let numbers = [
        json!(0),
        json!(1),
        json!(-1),
        json!(1.5),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1u64 << 63),
    ];
    let texts = [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a\u{0}b",
        "base/1/1259",
        "pg_wal/x",
        "0/0",
        "FFFFFFFF/FFFFFFFF",
    ];
    let long = ["x".repeat(100_000), "../".repeat(1000), "9".repeat(400)];
    let others = [json!(null), json!(true), json!([]), json!({}), json!([[[[]]]]), json!([[u32::MAX, u32::MAX]])];
    let texts = texts.into_iter().map(Value::from).chain(long.into_iter().map(Value::from));
    numbers.into_iter().chain(texts).chain(others).collect()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The value of this number, the root being 0.
fn find<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => return None,
    };
    for child in children {
        let size = count(child);
        if *number < size {
            return find(child, number);
        }
        *number -= size;
    }
    None
}

/// Half of the changes fall among the first values, where the structure is.
fn change(good: &Value, changes: &[Change], early: bool) -> Value {
    let (mut value, hostile) = (good.clone(), hostile());
    for (at, with) in changes {
        let size = count(&value);
        let mut number = at.index(if early { size.min(40) } else { size });
        if let Some(place) = find(&mut value, &mut number) {
            *place = hostile[with.index(hostile.len())].clone();
        }
    }
    value
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// With a checksum line of its own, as PostgreSQL puts it.
fn render_manifest(mut manifest: Value) -> Vec<u8> {
    if let Some(fields) = manifest.as_object_mut() {
        fields.remove("Manifest-Checksum");
    }
    let mut text = manifest.to_string();
    text.pop();
    text.push_str(",\n");
    let sum = sha256(text.as_bytes());
    format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
}

/// A record for these companions, as far as its values allow, with its checksum.
fn render_record(mut record: Value, index: &[u8], manifest: &[u8]) -> Vec<u8> {
    if let Some(fields) = record.as_object_mut() {
        fields.insert("indexSha256".to_owned(), sha256(index).into());
        fields.insert("manifestSha256".to_owned(), sha256(manifest).into());
    }
    let typed: Result<BackupRecord, _> = serde_json::from_value(record.clone());
    if let (Some(fields), Ok(sum)) = (record.as_object_mut(), typed.as_ref().map(render_checksum)) {
        fields.insert("checksum".to_owned(), sum.unwrap().into());
    }
    record.to_string().into_bytes()
}

/// In a process of its own: whatever becomes of it is seen from outside.
pub(crate) fn mutate_all(captures: &Path, cases: u32) {
    let read = |name: &str| fs::read(captures.join(name)).unwrap();
    let record: Value = serde_json::from_slice(&read("backup.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&read("backup_manifest")).unwrap();
    let index: Value = serde_json::from_slice(&zstd::decode_all(&read("index.json.zst")[..]).unwrap()).unwrap();
    let good = read_all(&record, &manifest, &index).expect("the changes alone are what is refused");
    let mut runner = TestRunner::new(Config::default());
    let changes = prop::collection::vec((any::<Index>(), any::<Index>()), 1..4);
    let strategy = (0usize..3, changes, any::<bool>());
    let mut accepted = 0;
    for _ in 0..cases {
        let (which, changes, early) = strategy.new_tree(&mut runner).unwrap().current();
        let mut parts = [record.clone(), manifest.clone(), index.clone()];
        parts[which] = change(&parts[which], &changes, early);
        let [record, manifest, index] = parts;
        if let Ok(files) = read_all(&record, &manifest, &index) {
            assert!(files <= good, "{which} {changes:?} {early}");
            accepted += 1;
        }
    }
    println!("{accepted} of {cases} were accepted");
}

/// How many files a restore would write.
fn read_all(record: &Value, manifest: &Value, index: &Value) -> Result<usize, String> {
    let manifest = render_manifest(manifest.clone());
    let index = zstd::bulk::compress(index.to_string().as_bytes(), 1).unwrap();
    let record = render_record(record.clone(), &index, &manifest);
    let text = |name: &str| {
        let value: Value = serde_json::from_slice(&record).unwrap();
        value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let record = parse_record(&record, &location(text("systemId")), &text("id"))?;
    assert!(is_backup_id(&record.id));
    let history = TimelineHistory::root(TimelineId(record.timeline.0));
    let _ = decide_needed(&history, record.start_lsn, record.stop_lsn, record.wal_segment_bytes);
    let files = list_files(&record, &index, &manifest).map_err(|error| error.to_string())?;
    files.iter().for_each(|path| validate_path(path).unwrap());
    Ok(files.len())
}

fn location(system_id: String) -> ClusterLocation {
    let store = StoreConfig {
        endpoint: String::new(),
        bucket: String::new(),
        prefix: String::new(),
        region: None,
        path_style: true,
        credentials_dir: String::new(),
        ca_file: None,
        encryption: None,
    };
    ClusterLocation { store, cluster: "c".to_owned(), system_id }
}

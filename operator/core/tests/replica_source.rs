//! Which copy a new replica is built from, by example, and what the reasons say.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

use pgherd_core::{
    backup::BackupRecord,
    instance::ReplicaSourcePolicy,
    lsn::Lsn,
    replica_source::{CostLimits, Source, SourceQuestion, choose_backup, confirm_archive, needed_wal, wal_file_name},
    timeline::{HistoryEntry, TimelineHistory, TimelineId},
};

const MIB: u64 = 1 << 20;

fn backup(id: &str, timeline: u32, start: u64, stop: u64) -> BackupRecord {
    BackupRecord {
        format: 1,
        id: id.to_owned(),
        cluster: "shop".to_owned(),
        system_id: "7".to_owned(),
        server_version: 170_002,
        timeline: TimelineId(timeline),
        start_lsn: Lsn(start),
        stop_lsn: Lsn(stop),
        started_at: String::new(),
        stopped_at: String::new(),
        archives: Vec::new(),
        manifest_sha256: String::new(),
        tar_bytes: 2048 * MIB,
        stored_bytes: 512 * MIB,
        wal_segment_bytes: 16 * MIB,
        index_sha256: None,
        encryption: None,
        parent: None,
        method: None,
        checksum: None,
    }
}

fn history() -> TimelineHistory {
    let entry = HistoryEntry { timeline: TimelineId(1), switch_lsn: Lsn(100 * MIB) };
    TimelineHistory { timeline: TimelineId(2), ancestors: vec![entry] }
}

fn choose(backups: &[BackupRecord], primary_lsn: u64, policy: ReplicaSourcePolicy) -> Source {
    choose_backup(&SourceQuestion {
        backups,
        system_id: "7",
        server_version: 170_011,
        history: &history(),
        primary_lsn: Lsn(primary_lsn),
        policy,
        limits: CostLimits::default(),
    })
}

#[track_caller]
fn refused(source: Source) -> String {
    match source {
        Source::Instance { reason } => reason,
        Source::Backup { id, .. } => panic!("chose {id}"),
    }
}

#[test]
fn the_usable_backup_with_the_least_wal_is_chosen_with_its_numbers() {
    let backups =
        [backup("a", 1, 10 * MIB, 11 * MIB), backup("b", 2, 110 * MIB, 111 * MIB), backup("c", 1, 40 * MIB, 41 * MIB)];
    match choose(&backups, 150 * MIB, ReplicaSourcePolicy::Auto) {
        Source::Backup { id, reason, wal_bytes, copy_bytes } => {
            assert_eq!((id.as_str(), wal_bytes, copy_bytes), ("b", 40 * MIB, 2048 * MIB));
            assert!(reason.contains("2 GiB") && reason.contains("40 MiB"), "{reason}");
        }
        Source::Instance { reason } => panic!("{reason}"),
    }
}

#[test]
fn a_backup_off_the_primarys_history_is_refused_with_the_switch_point() {
    let reason = refused(choose(&[backup("a", 1, 99 * MIB, 101 * MIB)], 150 * MIB, ReplicaSourcePolicy::Backup));
    assert!(reason.contains("left at 0/6400000") && reason.contains("timeline 1"), "{reason}");
    let reason = refused(choose(&[backup("a", 3, 120 * MIB, 121 * MIB)], 150 * MIB, ReplicaSourcePolicy::Auto));
    assert!(reason.contains("none of the primary's history"), "{reason}");
}

#[test]
fn other_systems_versions_formats_and_backups_from_ahead_are_refused() {
    let good = backup("a", 2, 110 * MIB, 111 * MIB);
    for (bad, words) in [
        (BackupRecord { system_id: "8".into(), ..good.clone() }, "another database system"),
        (BackupRecord { server_version: 160_004, ..good.clone() }, "PostgreSQL 16"),
        (BackupRecord { format: 9, ..good.clone() }, "format 9"),
        (BackupRecord { stop_lsn: Lsn(200 * MIB), ..good }, "ahead of the primary"),
    ] {
        let reason = refused(choose(&[bad], 150 * MIB, ReplicaSourcePolicy::Auto));
        assert!(reason.contains(words), "{reason}");
    }
    assert!(refused(choose(&[], 150 * MIB, ReplicaSourcePolicy::Auto)).contains("no backup"));
}

#[test]
fn too_much_wal_makes_an_instance_the_better_source_unless_the_user_insists() {
    let backups = [backup("a", 2, 110 * MIB, 111 * MIB)];
    let far = 110 * MIB + 1100 * MIB;
    let reason = refused(choose(&backups, far, ReplicaSourcePolicy::Auto));
    assert!(reason.contains("1.1 GiB") && reason.contains("more than 1 GiB"), "{reason}");
    assert!(matches!(choose(&backups, far, ReplicaSourcePolicy::Backup), Source::Backup { .. }));
    assert!(matches!(choose(&backups, far, ReplicaSourcePolicy::Instance), Source::Instance { .. }));
}

#[test]
fn on_a_small_database_some_wal_is_always_worth_it() {
    let small = BackupRecord { tar_bytes: 20 * MIB, ..backup("a", 2, 110 * MIB, 111 * MIB) };
    assert!(matches!(choose(&[small], 310 * MIB, ReplicaSourcePolicy::Auto), Source::Backup { .. }));
}

#[test]
fn the_wal_up_to_the_slots_segment_is_needed_with_the_history_and_the_newer_timeline_at_the_switch() {
    let names = needed_wal(&backup("a", 1, 80 * MIB, 81 * MIB), &history(), Lsn(130 * MIB));
    let expected =
        ["00000002.history", "000000010000000000000005", "000000020000000000000006", "000000020000000000000007"];
    assert_eq!(names, expected);
    assert!(needed_wal(&backup("b", 2, 129 * MIB, 131 * MIB), &history(), Lsn(130 * MIB)).is_empty());
    assert_eq!(wal_file_name(TimelineId(1), 0x1FF, 16 * MIB), "0000000100000001000000FF");
}

#[test]
fn a_hole_in_the_archive_falls_back_to_an_instance_and_names_it() {
    let chosen = choose(&[backup("a", 2, 110 * MIB, 111 * MIB)], 150 * MIB, ReplicaSourcePolicy::Backup);
    assert_eq!(confirm_archive(chosen.clone(), &[]), chosen);
    let missing = ["000000020000000000000007".to_owned(), "000000020000000000000008".to_owned()];
    let reason = refused(confirm_archive(chosen, &missing));
    assert!(reason.contains("lacks 2 WAL") && reason.contains("000000020000000000000007"), "{reason}");
}

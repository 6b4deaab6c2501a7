//! Chains: what a restore needs is named in order or the missing one is, and when in doubt the next backup is a full one.

use pgherd_core::{
    backup::{ArchiveRecord, BackupRecord, EncryptionRecord, FULL_FORMAT, INCREMENTAL_FORMAT, ParentRecord},
    chain::{ChainError, KindDecision, KindQuestion, ParentChoice, decide_backup_kind, resolve_chain},
    lsn::Lsn,
    timeline::TimelineId,
};
use proptest::prelude::*;

fn backup(number: u64, parent: Option<&BackupRecord>) -> BackupRecord {
    BackupRecord {
        format: if parent.is_some() { INCREMENTAL_FORMAT } else { FULL_FORMAT },
        id: format!("b{number:02}"),
        cluster: "shop".into(),
        system_id: "7".into(),
        server_version: 170_006,
        timeline: TimelineId(1),
        start_lsn: Lsn(number * 100),
        stop_lsn: Lsn(number * 100 + 10),
        started_at: "2026-11-22T02:00:00Z".into(),
        stopped_at: "2026-11-22T02:01:00Z".into(),
        archives: vec![ArchiveRecord {
            name: "base".into(),
            tablespace_path: String::new(),
            segments: vec![1],
            tar_bytes: 1,
        }],
        manifest_sha256: format!("sha{number}"),
        tar_bytes: 1,
        stored_bytes: 1,
        wal_segment_bytes: 16 << 20,
        index_sha256: None,
        encryption: None,
        parent: parent
            .map(|parent| ParentRecord { id: parent.id.clone(), manifest_sha256: parent.manifest_sha256.clone() }),
        method: None,
        checksum: None,
    }
}

/// A full backup and incremental ones, each on the one before.
fn chain(length: u64) -> Vec<BackupRecord> {
    let mut all = vec![backup(1, None)];
    for number in 2..=length {
        all.push(backup(number, all.last()));
    }
    all
}

fn question<'a>(backups: &'a [BackupRecord], parent: &'a ParentChoice) -> KindQuestion<'a> {
    KindQuestion {
        backups,
        parent,
        damaged: &[],
        system_id: "7",
        server_version: 170_009,
        timeline: TimelineId(1),
        max_chain: 4,
        has_identity: false,
    }
}

#[test]
fn the_newest_backup_is_the_parent_until_the_chain_is_full() {
    let newest = ParentChoice::Newest;
    for length in 1..=3 {
        let all = chain(length);
        let decision = decide_backup_kind(&question(&all, &newest));
        let expected = KindDecision::Incremental { parent: &all[all.len() - 1], length: length as u32 + 1 };
        assert_eq!(decision, expected);
    }
    let all = chain(4);
    let KindDecision::Full(reason) = decide_backup_kind(&question(&all, &newest)) else { panic!("a fifth member") };
    assert!(reason.contains("4 backups"), "{reason}");
    let named = ParentChoice::Id("b02".into());
    let decision = decide_backup_kind(&question(&all, &named));
    assert_eq!(decision, KindDecision::Incremental { parent: &all[1], length: 3 });
}

#[test]
fn the_newest_is_told_by_its_position_and_not_by_the_clock_in_its_id() {
    let newest = ParentChoice::Newest;
    let mut all = vec![backup(1, None), backup(2, None)];
    all[0].id = "b99".to_owned();
    let decision = decide_backup_kind(&question(&all, &newest));
    assert_eq!(decision, KindDecision::Incremental { parent: &all[1], length: 2 });
}

#[test]
fn what_cannot_be_a_parent_makes_a_full_backup_that_says_why() {
    let (all, newest) = (chain(2), ParentChoice::Newest);
    let ask = |change: &dyn Fn(&mut KindQuestion<'_>)| {
        let mut asked = question(&all, &newest);
        change(&mut asked);
        match decide_backup_kind(&asked) {
            KindDecision::Full(reason) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(ask(&|q| q.backups = &[]).contains("no earlier backup"));
    assert!(ask(&|q| q.timeline = TimelineId(2)).contains("timeline 1, the source of 2"));
    assert!(ask(&|q| q.server_version = 180_000).contains("PostgreSQL 17, the source of 18"));
    assert!(ask(&|q| q.server_version = 160_004).contains("16 has no incremental"));
    assert!(ask(&|q| q.system_id = "8").contains("another database system"));
    assert!(ask(&|q| q.max_chain = 1).contains("limit"));
    let damaged = ["b01".to_owned()];
    let reason = {
        let asked = KindQuestion { damaged: &damaged, ..question(&all, &newest) };
        decide_backup_kind(&asked)
    };
    assert!(matches!(reason, KindDecision::Full(why) if why.contains("b01 was found unusable")));
    let orphan = [all[1].clone()];
    let reason = decide_backup_kind(&question(&orphan, &newest));
    assert!(matches!(reason, KindDecision::Full(why) if why.contains("needs the backup b01")));
}

#[test]
fn an_encrypted_parent_needs_an_identity_and_tablespaces_a_full_backup() {
    let newest = ParentChoice::Newest;
    let mut all = chain(1);
    all[0].encryption = Some(EncryptionRecord { method: "age".into(), recipients: vec![] });
    let asked = question(&all, &newest);
    assert!(matches!(decide_backup_kind(&asked), KindDecision::Full(why) if why.contains("identity")));
    let asked = KindQuestion { has_identity: true, ..asked };
    assert!(matches!(decide_backup_kind(&asked), KindDecision::Incremental { .. }));
    let space = ArchiveRecord { name: "16384".into(), ..all[0].archives[0].clone() };
    all[0].archives.insert(0, space);
    let asked = KindQuestion { has_identity: true, ..question(&all, &newest) };
    assert!(matches!(decide_backup_kind(&asked), KindDecision::Full(why) if why.contains("tablespaces")));
}

#[test]
fn a_parent_that_is_another_backup_is_told() {
    for change in [
        (|parent: &mut BackupRecord| parent.manifest_sha256 = "other".into()) as fn(&mut BackupRecord),
        |parent| parent.system_id = "8".into(),
        |parent| parent.timeline = TimelineId(2),
        |parent| parent.server_version = 180_000,
        |parent| parent.start_lsn = Lsn(900),
    ] {
        let mut all = chain(3);
        change(&mut all[1]);
        assert!(matches!(resolve_chain(&all, "b03"), Err(ChainError::Differs { parent, .. }) if parent == "b02"));
    }
    assert_eq!(resolve_chain(&[], "b03"), Err(ChainError::Unknown("b03".into())));
}

#[test]
fn a_record_without_a_parent_is_written_as_ever() {
    let text = serde_json::to_string(&backup(1, None)).expect("JSON");
    assert!(!text.contains("parent"), "{text}");
    let all = chain(2);
    let text = serde_json::to_string(&all[1]).expect("JSON");
    assert!(text.contains(r#""parent":{"id":"b01","manifestSha256":"sha1"}"#), "{text}");
}

proptest! {
    /// Any tree of backups with any of them gone.
    #[test]
    fn a_chain_is_whole_or_its_first_missing_member_is_named(
        parents in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 1..12),
        gone in prop::collection::btree_set(0usize..12, 0..4),
    ) {
        let mut all: Vec<BackupRecord> = Vec::new();
        for (number, parent) in parents.iter().enumerate() {
            let parent = parent.filter(|_| number > 0).map(|index| all[index.index(number)].clone());
            all.push(backup(number as u64 + 1, parent.as_ref()));
        }
        let left: Vec<BackupRecord> =
            all.iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, backup)| backup.clone()).collect();
        for backup in &left {
            match resolve_chain(&left, &backup.id) {
                Ok(members) => {
                    prop_assert!(members[0].parent.is_none() && members.last() == Some(&backup));
                    for pair in members.windows(2) {
                        prop_assert_eq!(pair[1].parent.as_ref().map(|parent| &parent.id), Some(&pair[0].id));
                    }
                }
                Err(ChainError::Missing { parent, .. }) => {
                    prop_assert!(left.iter().all(|other| other.id != parent));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}

//! How much WAL an instance keeps: a primary for a replica that is away, and for a backup or a new replica that is copied from it, a
//! part of the volume; and any instance for those that may follow it once it is promoted, which have no slots there yet, a smaller
//! part. A volume that fills up ends the primary, and with a replica missing perhaps all writes; a replica that comes back too
//! late is built anew. A copy that takes too long fails after its last byte, so a large volume keeps more than a small one.

use std::{collections::BTreeMap, path::Path};

use nix::sys::statvfs::statvfs;

const PARAMETER: &str = "max_slot_wal_keep_size";
const FOR_ALL: &str = "wal_keep_size";
/// The part of the volume.
const PART: u64 = 4;
/// A few segments at least (MiB).
const LEAST: u64 = 128;
/// The part for those without a slot, and its bounds (MiB). A standby's restart points remove what it needs no more itself; a sibling
/// that was a moment behind could then not follow it, and without an archive would be copied anew while commits wait for it.
const PART_FOR_ALL: u64 = 16;
const LEAST_FOR_ALL: u64 = 64;
const MOST_FOR_ALL: u64 = 512;
/// Where the size of the volume is not known (MiB).
const UNKNOWN: u64 = 8 << 10;
/// PostgreSQL takes no more (MiB). Some network file systems say that they have more than four times that.
const MOST: u64 = i32::MAX as u64;

/// The size in bytes of the file system at `path`; None when it does not say.
pub(super) fn observe_size(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size()))
}

/// Adds both, unless the user has set them.
pub(super) fn with_wal_limits(
    mut parameters: BTreeMap<String, String>,
    volume_bytes: Option<u64>,
) -> BTreeMap<String, String> {
    let part = |of: u64| volume_bytes.map(|bytes| (bytes / of) >> 20);
    let for_slots = part(PART).unwrap_or(UNKNOWN).clamp(LEAST, MOST);
    let for_all = part(PART_FOR_ALL).unwrap_or(MOST_FOR_ALL).clamp(LEAST_FOR_ALL, MOST_FOR_ALL);
    for (parameter, megabytes) in [(PARAMETER, for_slots), (FOR_ALL, for_all)] {
        if !parameters.keys().any(|name| name.eq_ignore_ascii_case(parameter)) {
            parameters.insert(parameter.to_owned(), format!("{megabytes}MB"));
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(given: &[(&str, &str)], volume_bytes: Option<u64>) -> Vec<(String, String)> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        with_wal_limits(given, volume_bytes).into_iter().collect()
    }

    #[test]
    fn slots_have_a_quarter_of_the_volume_however_large_it_is_and_others_a_sixteenth_within_bounds() {
        for (volume, slots, all) in [
            (Some(10 << 30), "2560MB", "512MB"),
            (Some(2 << 30), "512MB", "128MB"),
            (Some(100 << 20), "128MB", "64MB"),
            (Some(1 << 40), "262144MB", "512MB"),
            (Some(u64::MAX), "2147483647MB", "512MB"),
            (None, "8192MB", "512MB"),
        ] {
            let expected = [(PARAMETER.to_owned(), slots.to_owned()), (FOR_ALL.to_owned(), all.to_owned())];
            assert_eq!(limits(&[], volume), expected);
        }
    }

    #[test]
    fn what_the_user_says_holds() {
        let given = [("Max_Slot_WAL_Keep_Size", "-1"), ("wal_keep_size", "0")];
        let expected = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(limits(&given, Some(10 << 30)), expected);
    }

    #[test]
    fn a_real_file_system_has_a_size() {
        assert!(observe_size(tempfile::tempdir().unwrap().path()).is_some_and(|bytes| bytes > 0));
    }
}

//! How much WAL a primary keeps for a replica that is away, and for a backup or a new replica that is copied from it: a part of the
//! volume. A volume that fills up ends the primary, and with a replica missing perhaps all writes; a replica that comes back too
//! late is built anew. A copy that takes too long fails after its last byte, so a large volume keeps more than a small one.

use std::{collections::BTreeMap, path::Path};

use nix::sys::statvfs::statvfs;

const PARAMETER: &str = "max_slot_wal_keep_size";
/// The part of the volume.
const PART: u64 = 4;
/// A few segments at least (MiB).
const LEAST: u64 = 128;
/// Where the size of the volume is not known (MiB).
const UNKNOWN: u64 = 8 << 10;
/// PostgreSQL takes no more (MiB). Some network file systems say that they have more than four times that.
const MOST: u64 = i32::MAX as u64;

/// The size in bytes of the file system at `path`; None when it does not say.
pub(super) fn observe_size(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size()))
}

/// Adds the limit, unless the user has set one.
pub(super) fn with_slot_limit(
    mut parameters: BTreeMap<String, String>,
    volume_bytes: Option<u64>,
) -> BTreeMap<String, String> {
    if !parameters.keys().any(|name| name.eq_ignore_ascii_case(PARAMETER)) {
        let megabytes = volume_bytes.map_or(UNKNOWN, |bytes| (bytes / PART) >> 20);
        parameters.insert(PARAMETER.to_owned(), format!("{}MB", megabytes.clamp(LEAST, MOST)));
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(given: &[(&str, &str)], volume_bytes: Option<u64>) -> Vec<(String, String)> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        with_slot_limit(given, volume_bytes).into_iter().collect()
    }

    #[test]
    fn it_is_a_quarter_of_the_volume_however_large_it_is() {
        for (volume, expected) in [
            (Some(10 << 30), "2560MB"),
            (Some(100 << 20), "128MB"),
            (Some(1 << 40), "262144MB"),
            (Some(u64::MAX), "2147483647MB"),
            (None, "8192MB"),
        ] {
            assert_eq!(limit(&[], volume), [(PARAMETER.to_owned(), expected.to_owned())]);
        }
    }

    #[test]
    fn what_the_user_says_holds() {
        let given = ("Max_Slot_WAL_Keep_Size", "-1");
        assert_eq!(limit(&[given], Some(10 << 30)), [(given.0.to_owned(), given.1.to_owned())]);
    }

    #[test]
    fn a_real_file_system_has_a_size() {
        assert!(observe_size(tempfile::tempdir().unwrap().path()).is_some_and(|bytes| bytes > 0));
    }
}

//! Room on the volume: a server that finds no space for WAL dies at once, again and again. It is not started before there
//! is some, and goes on by itself when the volume was grown. Deletes nothing.

use nix::sys::statvfs::{Statvfs, statvfs};

use super::ActionError;
use crate::layout::Layout;

/// Two WAL segments of the default size: one to finish recovery in, one to go on.
const NEEDED_BYTES: u64 = 2 * (16 << 20);

/// What an unprivileged process may still write, in bytes; None when the file system does not say.
#[must_use]
pub fn observe_free(layout: &Layout) -> Option<u64> {
    let found = statvfs(&layout.volume).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Whether another data directory of this size fits beside it; also where the file system does not say.
#[must_use]
pub fn has_room_for_another(layout: &Layout) -> bool {
    let used = |found: &Statvfs| found.blocks().saturating_sub(found.blocks_free());
    statvfs(&layout.volume).map_or(true, |found| found.blocks_available() >= used(&found))
}

/// For people.
#[must_use]
pub fn describe_full(layout: &Layout) -> String {
    format!("the volume is full: {} bytes free", observe_free(layout).unwrap_or_default())
}

/// Refuses while there is no room for a start.
///
/// # Errors
/// [`ActionError::VolumeFull`].
pub fn validate_room(layout: &Layout) -> Result<(), ActionError> {
    decide_room(observe_free(layout))
}

fn decide_room(free: Option<u64>) -> Result<(), ActionError> {
    match free {
        Some(free) if free < NEEDED_BYTES => Err(ActionError::VolumeFull { free, needed: NEEDED_BYTES }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_needs_two_segments_and_the_refusal_says_what_is_free() {
        assert!(decide_room(Some(NEEDED_BYTES)).is_ok() && decide_room(None).is_ok());
        let refused = decide_room(Some(4_096)).unwrap_err().to_string();
        assert!(refused.starts_with("the volume is full: 4096 bytes free"), "{refused}");
    }

    #[test]
    fn the_free_space_of_a_real_file_system_is_found() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { volume: root.path().to_owned(), ..Layout::pod() };
        assert!(observe_free(&layout).is_some());
    }
}

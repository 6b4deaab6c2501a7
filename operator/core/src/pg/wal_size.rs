//! How large WAL segments are, by a control file, and what PostgreSQL must be told where they are larger than usual. Reads no file.

/// `FLOATFORMAT_VALUE` in `pg_control.h`. The four sizes that follow it tell where it is, whatever the version's layout before it.
const FLOAT_FORMAT: [u8; 8] = 1_234_567.0_f64.to_le_bytes();
/// `blcksz`, `relseg_size` and `xlog_blcksz` are between it and `xlog_seg_size`.
const BETWEEN: usize = 12;
/// The sizes that PostgreSQL knows, in bytes.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// So many segments are what initdb sets `min_wal_size` to; PostgreSQL starts with no less than two.
const SEGMENTS: u64 = 5;
/// PostgreSQL's own defaults (MiB), whatever the size of a segment. initdb writes fitting ones into a postgresql.conf that pgherd replaces.
const DEFAULTS: [(&str, u64); 2] = [("min_wal_size", 80), ("max_wal_size", 1024)];

/// Bytes per WAL segment from the content of `global/pg_control`; None where it is no such file.
#[must_use]
pub fn parse_segment_bytes(control: &[u8]) -> Option<u64> {
    let begins = (0..control.len()).step_by(FLOAT_FORMAT.len());
    let marker = begins.map(|at| control.get(at..).unwrap_or_default()).find(|rest| rest.starts_with(&FLOAT_FORMAT))?;
    let from = FLOAT_FORMAT.len() + BETWEEN;
    let bytes = u64::from(u32::from_le_bytes(marker.get(from..from + 4)?.try_into().ok()?));
    (bytes.is_power_of_two() && SEGMENT_BYTES.contains(&bytes)).then_some(bytes)
}

/// The settings without which PostgreSQL would not start ("min_wal_size must be at least twice wal_segment_size"), or would have a
/// checkpoint with each segment. None of them where its own defaults do.
pub fn fitting_sizes(segment_bytes: u64) -> impl Iterator<Item = (&'static str, String)> {
    let least = segment_bytes.saturating_mul(SEGMENTS) >> 20;
    DEFAULTS.into_iter().filter(move |(_, usual)| least > *usual).map(move |(name, _)| (name, format!("{least}MB")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A control file with so much before the marker.
    fn control(before: usize, segment_bytes: u32) -> Vec<u8> {
        let mut bytes = vec![7; before];
        bytes.extend(FLOAT_FORMAT);
        for field in [8192, 131_072, 8192, segment_bytes, 64, 32] {
            bytes.extend(u32::to_le_bytes(field));
        }
        bytes.resize(8192, 0);
        bytes
    }

    #[test]
    fn the_size_is_found_in_any_versions_layout() {
        for before in [200, 208, 232] {
            assert_eq!(parse_segment_bytes(&control(before, 64 << 20)), Some(64 << 20));
        }
        assert_eq!(parse_segment_bytes(&control(208, 5 << 20)), None);
        assert_eq!(parse_segment_bytes(&vec![0; 8192]), None);
    }

    #[test]
    fn only_large_segments_need_settings() {
        let of = |megabytes: u64| fitting_sizes(megabytes << 20).collect::<Vec<_>>();
        assert_eq!((of(1), of(16)), (vec![], vec![]));
        assert_eq!(of(64), [("min_wal_size", "320MB".to_owned())]);
        assert_eq!(of(1024), [("min_wal_size", "5120MB".to_owned()), ("max_wal_size", "5120MB".to_owned())]);
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..400) {
            let _ = parse_segment_bytes(&bytes);
            let _ = parse_segment_bytes(&control(208, 1 << 24)[..cut]);
        }
    }
}

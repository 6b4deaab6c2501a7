//! The header of a WAL segment's first page: which database system, timeline and position it belongs to.

use pgherd_core::lsn::Lsn;

use super::{WalError, name::WalName};

/// Set in the first page of a segment: the long header follows.
const LONG_HEADER: u16 = 0x0002;
const LONG_HEADER_BYTES: usize = 40;

/// Checks that a segment's bytes are what its name says, and of this database system.
///
/// # Errors
/// [`WalError::Foreign`].
pub(super) fn validate_segment(bytes: &[u8], name: &str, parsed: WalName, system_id: &str) -> Result<(), WalError> {
    let WalName::Segment { timeline, log, segment, partial } = parsed else { return Ok(()) };
    let foreign = |problem: String| WalError::Foreign { name: name.to_owned(), problem };
    let header = parse_header(bytes).ok_or_else(|| foreign("it has no WAL page header".to_owned()))?;
    if header.system_id.to_string() != system_id {
        return Err(foreign(format!("it was written by the database system {}", header.system_id)));
    }
    let size = u64::from(header.segment_bytes);
    if !size.is_power_of_two() || (!partial && bytes.len() as u64 != size) || bytes.len() as u64 > size {
        return Err(foreign(format!("it has {} bytes, its header says {size}", bytes.len())));
    }
    // With segments of this size a name has no number beyond 4 GiB.
    let within = u64::from(segment).checked_mul(size).filter(|within| *within < 1 << 32);
    if within.map(|within| (u64::from(log) << 32) + within) != Some(header.page_address) {
        return Err(foreign(format!("its header says position {}", Lsn(header.page_address))));
    }
    // The first segment of a new timeline begins as a copy of its parent's: an older timeline is right there.
    if header.timeline > timeline.0 {
        return Err(foreign(format!("its header says timeline {}", header.timeline)));
    }
    Ok(())
}

struct Header {
    timeline: u32,
    page_address: u64,
    system_id: u64,
    segment_bytes: u32,
}

/// `XLogLongPageHeaderData`, little-endian.
fn parse_header(bytes: &[u8]) -> Option<Header> {
    let head = bytes.get(..LONG_HEADER_BYTES)?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let info = u16::from_le_bytes(head.get(2..4)?.try_into().ok()?);
    if info & LONG_HEADER == 0 {
        return None;
    }
    Some(Header { timeline: u32_at(4)?, page_address: u64_at(8)?, system_id: u64_at(24)?, segment_bytes: u32_at(32)? })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A segment of 1 MiB with a header as PostgreSQL writes it.
    pub(crate) fn segment(timeline: u32, position: u64, system_id: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&LONG_HEADER.to_le_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&position.to_le_bytes());
        bytes[24..32].copy_from_slice(&system_id.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        bytes
    }

    #[test]
    fn a_name_beyond_what_its_segments_can_have_is_refused() {
        let mut bytes = segment(1, u64::MAX, 77);
        bytes[32..36].copy_from_slice(&(1u32 << 31).to_le_bytes());
        let name = "00000001FFFFFFFFFFFFFFFF.partial";
        let result = validate_segment(&bytes, name, WalName::parse(name).unwrap(), "77");
        assert!(matches!(result, Err(WalError::Foreign { .. })), "{result:?}");
    }

    #[test]
    fn a_segment_must_be_what_its_name_says() {
        let check = |name: &str, bytes: &[u8]| validate_segment(bytes, name, WalName::parse(name).unwrap(), "77");
        let good = segment(1, 0x30_0000, 77);
        check("000000010000000000000003", &good).unwrap();
        check("000000020000000000000003", &good).unwrap();
        for (what, name, bytes) in [
            ("another system", "000000010000000000000003", segment(1, 0x30_0000, 78)),
            ("another position", "000000010000000000000004", good.clone()),
            ("a later timeline", "000000010000000000000003", segment(2, 0x30_0000, 77)),
            ("a short file", "000000010000000000000003", good[..9000].to_vec()),
            ("no header", "000000010000000000000003", vec![0; 1 << 20]),
            ("an empty file", "000000010000000000000003", vec![]),
        ] {
            assert!(matches!(check(name, &bytes), Err(WalError::Foreign { .. })), "{what}");
        }
        check("000000010000000000000003.partial", &good[..9000]).unwrap();
    }
}

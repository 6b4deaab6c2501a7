//! Where the records of a WAL segment begin, as far as whoever recovers to a position must know it. Checks no record's checksum: replay does.

use pgherd_core::lsn::Lsn;

/// `xlp_info`: the page begins with the rest of a record from the page before.
const CONTINUES: u16 = 0x0001;
/// `xlp_info`: the longer header of a segment's first page.
const LONG: u16 = 0x0002;
const SHORT_HEADER_BYTES: usize = 24;
const LONG_HEADER_BYTES: usize = 40;
/// `SizeOfXLogRecord`: no record is shorter.
const RECORD_BYTES: usize = 24;
/// `XLOG_BLCKSZ` is one of these.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 1 << 10..=64 << 10;
/// Records begin at multiples of it (`MAXALIGN`).
const ALIGNMENT: usize = 8;

/// Where the last record begins that the segment, which begins at `begin`, holds to its end. Behind a switch of segments there are zeros, and
/// a record that goes on in the next segment is not whole. None where no whole record begins in it.
#[must_use]
pub fn last_record(segment: &[u8], begin: Lsn) -> Option<Lsn> {
    let page_bytes = usize::try_from(u32_at(segment, 36)?).ok()?;
    if !page_bytes.is_power_of_two() || !PAGE_BYTES.contains(&page_bytes) {
        return None;
    }
    let pages = segment.len() / page_bytes;
    let mut last = None;
    for (number, page) in segment.chunks_exact(page_bytes).enumerate() {
        let offset = number * page_bytes;
        let Some(mut at) = first_record(page, begin.0.saturating_add(offset as u64)) else { break };
        while let Some(length) = record_length(page, at) {
            let behind = (pages - number - 1) * (page_bytes - SHORT_HEADER_BYTES);
            if length <= page_bytes - at + behind {
                last = begin.0.checked_add((offset + at) as u64).map(Lsn);
            }
            at = (at + length).next_multiple_of(ALIGNMENT);
        }
    }
    last
}

/// Where on the page a record begins, at the earliest; None for a page that is not of this position, such as one that was never written.
fn first_record(page: &[u8], address: u64) -> Option<usize> {
    if u64::from_le_bytes(page.get(8..16)?.try_into().ok()?) != address {
        return None;
    }
    let info = u16::from_le_bytes(page.get(2..4)?.try_into().ok()?);
    let header = if info & LONG == 0 { SHORT_HEADER_BYTES } else { LONG_HEADER_BYTES };
    let rest = if info & CONTINUES == 0 { 0 } else { usize::try_from(u32_at(page, 16)?).ok()? };
    Some((header + rest).next_multiple_of(ALIGNMENT))
}

/// `xl_tot_len` of the record that begins there; None where none does.
fn record_length(page: &[u8], at: usize) -> Option<usize> {
    let length = usize::try_from(u32_at(page, at)?).ok()?;
    (length >= RECORD_BYTES).then_some(length)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{super::segment::tests::segment, *};

    const PAGE: usize = 8192;
    const BEGIN: u64 = 0x30_0000;

    /// A segment of 1 MiB with records of these lengths from `first` on, and zeros behind them.
    pub(crate) fn segment_with(begin: u64, continues: usize, lengths: &[usize]) -> Vec<u8> {
        let mut bytes = segment(1, begin, 77);
        bytes[36..40].copy_from_slice(&u32::try_from(PAGE).unwrap().to_le_bytes());
        let (mut at, mut rest) = (0, continues);
        let mut open_page = |at: &mut usize, rest: usize| {
            if *at > 0 {
                bytes[*at + 8..*at + 16].copy_from_slice(&(begin + *at as u64).to_le_bytes());
            }
            let info = u16::from(rest > 0) | if *at == 0 { LONG } else { 0 };
            bytes[*at + 2..*at + 4].copy_from_slice(&info.to_le_bytes());
            bytes[*at + 16..*at + 20].copy_from_slice(&u32::try_from(rest).unwrap().to_le_bytes());
            *at += if *at == 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
        };
        let mut starts = Vec::new();
        open_page(&mut at, rest);
        for length in std::iter::once(None).chain(lengths.iter().copied().map(Some)) {
            if let Some(length) = length {
                if at % PAGE == 0 && at < 1 << 20 {
                    open_page(&mut at, 0);
                }
                if at >= 1 << 20 {
                    break;
                }
                starts.push((at, length));
                rest = length;
            }
            while at < 1 << 20 && rest > PAGE - at % PAGE {
                rest -= PAGE - at % PAGE;
                at = (at / PAGE + 1) * PAGE;
                if at < 1 << 20 {
                    open_page(&mut at, rest);
                }
            }
            at = (at + rest).next_multiple_of(ALIGNMENT);
        }
        for (start, length) in starts {
            bytes[start..start + 4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        }
        bytes
    }

    fn last(continues: usize, lengths: &[usize]) -> Option<u64> {
        last_record(&segment_with(BEGIN, continues, lengths), Lsn(BEGIN)).map(|lsn| lsn.0 - BEGIN)
    }

    #[test]
    fn the_last_whole_record_is_found() {
        assert_eq!(last(0, &[]), None);
        assert_eq!(last(0, &[24]), Some(40));
        assert_eq!(last(0, &[30, 24]), Some(72));
        assert_eq!(last(100, &[24]), Some(144), "behind what continues");
        assert_eq!(last(0, &[9000, 24]), Some(8192 + 24 + 848), "over a page's end");
        assert_eq!(last(0, &[8192 - 40, 24]), Some(8192 + 24), "to a page's end");
        assert_eq!(last(0, &[24, 2 << 20]), Some(40), "one that goes on in the next segment");
        assert_eq!(last(2 << 20, &[]), None, "one that goes through");
        assert_eq!(last_record(&[0; 1 << 20], Lsn(BEGIN)), None);
    }

    proptest! {
        #[test]
        fn whatever_a_segment_holds_never_panics(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            lengths in prop::collection::vec(24usize..30_000, 0..40), begin in any::<u64>(), cut in 0usize..1 << 20,
        ) {
            let mut bytes = segment_with(BEGIN, 0, &lengths);
            bytes.truncate(cut);
            for (at, byte) in changes.into_iter().filter(|_| cut > 0) {
                let at = at.index(cut.min(40));
                bytes[at] = byte;
            }
            let _ = last_record(&bytes, Lsn(begin));
            if let Some(found) = last_record(&bytes, Lsn(BEGIN)) {
                prop_assert!(found.0 < BEGIN + cut as u64);
            }
        }
    }
}

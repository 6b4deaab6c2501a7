//! Names of the files that PostgreSQL archives, read strictly: a name becomes part of an object's key.

use pgherd_core::{lsn::Lsn, timeline::TimelineId};

use super::WalError;

/// A parsed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalName {
    /// A segment, or what was written of one when its timeline was left (`.partial`).
    Segment {
        /// Its timeline.
        timeline: TimelineId,
        /// The second field of the name: position / 4 GiB.
        log: u32,
        /// The third field: number of the segment within those 4 GiB.
        segment: u32,
        /// Ends in `.partial`.
        partial: bool,
    },
    /// A `.backup` label of a segment.
    BackupLabel,
    /// A timeline's `.history`.
    History(TimelineId),
}

impl WalName {
    /// Reads a name as PostgreSQL writes it: upper-case hexadecimal fields of eight digits.
    ///
    /// # Errors
    /// [`WalError::Name`].
    pub fn parse(name: &str) -> Result<Self, WalError> {
        Self::parse_fields(name).ok_or_else(|| WalError::Name(name.chars().take(80).collect()))
    }

    fn parse_fields(name: &str) -> Option<Self> {
        let (stem, suffix) = name.split_once('.').map_or((name, None), |(stem, suffix)| (stem, Some(suffix)));
        let field = |index: usize| parse_field(stem.get(index * 8..index * 8 + 8)?);
        match (stem.len(), suffix) {
            // Timeline 1 never has one, but a recovery asks for it: the answer is that it is absent, not that it is no name.
            (8, Some("history")) => field(0).filter(|tli| *tli > 0).map(|tli| Self::History(TimelineId(tli))),
            (24, suffix) => {
                let timeline = TimelineId(field(0).filter(|tli| *tli > 0)?);
                let (log, segment) = (field(1)?, field(2)?);
                match suffix {
                    None => Some(Self::Segment { timeline, log, segment, partial: false }),
                    Some("partial") => Some(Self::Segment { timeline, log, segment, partial: true }),
                    Some(label) => {
                        parse_field(label.strip_suffix(".backup")?)?;
                        Some(Self::BackupLabel)
                    }
                }
            }
            _ => None,
        }
    }
}

fn parse_field(text: &str) -> Option<u32> {
    let digits = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if digits { u32::from_str_radix(text, 16).ok() } else { None }
}

/// The name of the segment of `timeline` that holds `lsn`; `segment_bytes` is a power of two from 1 MiB to 1 GiB.
#[must_use]
pub fn segment_name(timeline: TimelineId, lsn: Lsn, segment_bytes: u64) -> String {
    let segment_bytes = segment_bytes.max(1);
    let number = lsn.0 / segment_bytes;
    let per_log = (0x1_0000_0000 / segment_bytes).max(1);
    format!("{timeline}{:08X}{:08X}", number / per_log, number % per_log)
}

/// The names of the segments that hold `[from, to)` on one timeline.
pub fn segment_names(timeline: TimelineId, from: Lsn, to: Lsn, segment_bytes: u64) -> impl Iterator<Item = String> {
    let segment_bytes = segment_bytes.max(1);
    let first = from.0 / segment_bytes;
    let end = to.0.div_ceil(segment_bytes);
    (first..end).map(move |number| segment_name(timeline, Lsn(number * segment_bytes), segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_read_as_postgresql_writes_them() {
        let segment = WalName::Segment { timeline: TimelineId(1), log: 2, segment: 0xAB, partial: false };
        assert_eq!(WalName::parse("0000000100000002000000AB").unwrap(), segment);
        assert!(matches!(
            WalName::parse("0000000100000002000000AB.partial").unwrap(),
            WalName::Segment { partial: true, .. }
        ));
        assert_eq!(WalName::parse("0000000100000002000000AB.00000028.backup").unwrap(), WalName::BackupLabel);
        assert_eq!(WalName::parse("00000001.history").unwrap(), WalName::History(TimelineId(1)));
        assert_eq!(WalName::parse("00000002.history").unwrap(), WalName::History(TimelineId(2)));
        for wrong in [
            "",
            "0000000100000002000000ab",
            "0000000100000002000000A",
            "0000000000000002000000AB",
            "0000000100000002000000AB.zst",
            "0000000100000002000000AB.partial.partial",
            "00000000.history",
            "../../../../etc/passwd.",
            "0000000100000002000000AB/..",
            "0000000100000002000000AB.000028.backup",
            "00000001000000020000\u{e4}\u{e4}AB",
        ] {
            assert!(WalName::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_of_positions_is_a_row_of_segments() {
        let names: Vec<_> = segment_names(TimelineId(1), Lsn(0xFE00_0028), Lsn(0x1_0000_0001), 16 << 20).collect();
        assert_eq!(names, ["0000000100000000000000FE", "0000000100000000000000FF", "000000010000000100000000"]);
        assert_eq!(segment_names(TimelineId(1), Lsn(5), Lsn(5), 16 << 20).count(), 1);
        assert_eq!(segment_names(TimelineId(1), Lsn(16 << 20), Lsn(16 << 20), 16 << 20).count(), 0);
    }

    proptest! {
        #[test]
        fn every_rendered_name_is_read_back(tli in 1u32.., lsn: u64, power in 20u32..=30) {
            let name = segment_name(TimelineId(tli), Lsn(lsn), 1 << power);
            let WalName::Segment { timeline, log, segment, partial } = WalName::parse(&name).unwrap() else {
                panic!("{name}")
            };
            prop_assert_eq!((timeline, partial), (TimelineId(tli), false));
            let position = (u64::from(log) << 32) | (u64::from(segment) << power);
            prop_assert_eq!(position, lsn >> power << power);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,40}") {
            let _ = WalName::parse(&text);
        }
    }
}

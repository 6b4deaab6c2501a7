//! Page checksums, as PostgreSQL computes them (`src/include/storage/checksum_impl.h`). Here and not where files are read, because this
//! crate is compiled with all optimisations: it is the larger part of what reading a file costs.
//!
//! A page whose LSN is at or behind the start of the backup is not judged, as in `BASE_BACKUP`: WAL replay writes it anew.

use crate::lsn::Lsn;

const LANES: usize = 32;
const LANES_BYTES: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
/// Where the checksum lies in a page's header.
const CHECKSUM_AT: std::ops::Range<usize> = 8..10;
/// `pd_upper`, which is zero only in a page that was never used.
const UPPER_AT: std::ops::Range<usize> = 14..16;

const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C, //
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB, //
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4, //
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Whether a page is as it was written: never used, changed since `start`, or with the checksum that belongs to it as block `block` of
/// its relation.
#[must_use]
pub fn is_sound(page: &[u8], block: u32, start: Lsn) -> bool {
    let Some(stated) = read_u16(page, CHECKSUM_AT) else { return false };
    read_u16(page, UPPER_AT) == Some(0)
        || read_lsn(page).is_none_or(|lsn| lsn >= start)
        || stated == checksum(page, block)
}

/// The checksum of a page that is block `block` of its relation. The page's length is a multiple of 128.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let (head, rest) = page.split_at(LANES_BYTES.min(page.len()));
    // The checksum itself counts as zero.
    let mut first = [0; LANES_BYTES];
    first.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
    first[CHECKSUM_AT].fill(0);
    mix(&mut sums, &first);
    let (rows, _) = rest.as_chunks::<LANES_BYTES>();
    for row in rows {
        mix(&mut sums, row);
    }
    for _ in 0..2 {
        mix(&mut sums, &[0; LANES_BYTES]);
    }
    let folded = sums.iter().fold(0, |sum, lane| sum ^ lane) ^ block;
    // Never zero, which means that there is none.
    u16::try_from(folded % 65_535).map_or(u16::MAX, |sum| sum + 1)
}

/// One word into each lane. Written so that the compiler makes vectors of it.
#[inline]
fn mix(sums: &mut [u32; LANES], row: &[u8; LANES_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_ne_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

fn read_u16(page: &[u8], at: std::ops::Range<usize>) -> Option<u16> {
    page.get(at)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Two words, the higher first.
fn read_lsn(page: &[u8]) -> Option<Lsn> {
    let word = |at: usize| page.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    Some(Lsn(u64::from(word(0)?) << 32 | u64::from(word(4)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..8192u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_ne_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_ne_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    #[test]
    fn any_changed_bit_and_another_place_are_noticed() {
        let good = page(100, 7);
        assert!(is_sound(&good, 7, Lsn(200)));
        assert!(!is_sound(&good, 8, Lsn(200)), "a page of another block");
        for at in (0..8192).step_by(61) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            // A changed LSN may say that the page is not to be judged.
            assert!(!is_sound(&bad, 7, Lsn(u64::MAX)), "byte {at}");
        }
    }

    #[test]
    fn pages_that_are_new_or_changed_since_the_start_are_not_judged() {
        assert!(is_sound(&[0; 8192], 3, Lsn(200)));
        let mut torn = page(200, 1);
        torn[5000] ^= 1;
        assert!(is_sound(&torn, 1, Lsn(200)) && !is_sound(&torn, 1, Lsn(201)));
        assert!(!is_sound(&[1, 2, 3], 0, Lsn(1)), "no page at all");
    }
}

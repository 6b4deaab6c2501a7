//! How much memory zstd takes to compress one frame, by level. Figures of zstd 1.5 for inputs of `FRAME_BYTES`; a test compares
//! them with what it really takes.

/// Blocks, literals and sequences, at any level.
const BASE_BYTES: usize = 1 << 20;

/// Upper bound in bytes of a context at this level and below it.
pub(super) fn context_bytes(level: i32) -> usize {
    // Of the match finder: what is hashed, and for some levels the chains or the tags beside it.
    let tables = match level {
        ..=1 => 64 << 10,
        2 => 256 << 10,
        3 => 768 << 10,
        4 => 2 << 20,
        5..=6 => (5 << 20) / 2,
        7..=8 => 5 << 20,
        9 => 10 << 20,
        10..=12 => 20 << 20,
        _ => 33 << 20,
    };
    BASE_BYTES + tables
}

#[cfg(test)]
mod tests {
    use pgherd_core::compression::{HIGHEST_LEVEL, LOWEST_LEVEL};
    use zstd::bulk::Compressor;

    use super::*;
    use crate::frames::FRAME_BYTES;

    #[test]
    fn zstd_takes_no_more_than_is_counted_for_its_level() {
        let rows: Vec<u8> = (0..FRAME_BYTES / 8).flat_map(|n| (n as u64 * n as u64 / 7).to_be_bytes()).collect();
        let mut output = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_BYTES));
        let mut compressor = Compressor::new(1).unwrap();
        // Up and down again: a context that was large once may stay so.
        for level in (LOWEST_LEVEL..=HIGHEST_LEVEL).filter(|level| *level != 0) {
            compressor.set_compression_level(level).unwrap();
            output.clear();
            compressor.compress_to_buffer(&rows, &mut output).unwrap();
            let taken = compressor.context_mut().sizeof();
            assert!(taken <= context_bytes(level), "level {level}: {taken} bytes");
            assert!(taken * 4 > context_bytes(level), "level {level}: only {taken} bytes");
        }
    }
}

//! The CRC32C of a file from those of its parts, which were read at the same time. Pure.

/// Follows the parts of one file after the other.
#[derive(Debug)]
pub(super) struct FileSum {
    current: Option<u32>,
    /// What each bit of a sum becomes when a whole chunk follows. A row per bit: made once, since each takes 0.1 ms.
    rows: Box<[u32; 32]>,
    whole: usize,
}

impl FileSum {
    /// `whole` is the length in bytes that most parts have.
    pub(super) fn new(whole: usize) -> Self {
        let rows = std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, whole));
        Self { current: None, rows: Box::new(rows), whole }
    }

    /// The next part of the file.
    pub(super) fn add(&mut self, crc32c: u32, length: usize) {
        self.current = Some(match self.current {
            None => crc32c,
            Some(before) if length == self.whole => self.shift(before) ^ crc32c,
            Some(before) => crc32c::crc32c_combine(before, crc32c, length),
        });
    }

    /// The sum of the file; the next part is another file's.
    pub(super) fn finish(&mut self) -> u32 {
        self.current.take().unwrap_or_default()
    }

    fn shift(&self, sum: u32) -> u32 {
        let set = self.rows.iter().enumerate().filter(|(bit, _)| sum >> bit & 1 == 1);
        set.fold(0, |shifted, (_, row)| shifted ^ row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_parts_of_a_file_have_its_sum(
            content in prop::collection::vec(any::<u8>(), 0..5000), cuts in prop::collection::vec(1usize..900, 1..20), whole in 1usize..900,
        ) {
            let mut sum = FileSum::new(whole);
            // Twice: nothing of a file is left for the next one.
            for _ in 0..2 {
                let (mut rest, mut cut) = (&content[..], cuts.iter().flat_map(|cut| [*cut, whole]).cycle());
                while !rest.is_empty() {
                    let (part, behind) = rest.split_at(cut.next().unwrap().min(rest.len()));
                    sum.add(crc32c::crc32c(part), part.len());
                    rest = behind;
                }
                prop_assert_eq!(sum.finish(), crc32c::crc32c(&content));
            }
        }
    }
}

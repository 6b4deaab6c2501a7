//! Headers of the tar archives, in the form that PostgreSQL writes (`src/port/tar.c`). Pure.

use crate::tar::TAR_BLOCK;

/// Longest name that PostgreSQL puts into an archive, in bytes.
const MAX_NAME: usize = 99;

/// What the entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderKind {
    File,
    Directory,
}

/// What a header says besides the name.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderFields {
    pub(super) kind: HeaderKind,
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
}

/// Renders a header; `None` for a name that PostgreSQL would refuse as too long.
pub(super) fn render_header(path: &str, fields: &HeaderFields) -> Option<[u8; TAR_BLOCK]> {
    let directory = fields.kind == HeaderKind::Directory;
    let name = if directory { format!("{path}/") } else { path.to_owned() };
    if name.len() > MAX_NAME {
        return None;
    }
    let mut block = [0u8; TAR_BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    put(0, name.as_bytes());
    put(100, &render_number::<8>(u64::from(fields.mode & 0o7777)));
    put(108, &render_number::<8>(u64::from(fields.user)));
    put(116, &render_number::<8>(u64::from(fields.group)));
    put(124, &render_number::<12>(if directory { 0 } else { fields.size }));
    put(136, &render_number::<12>(u64::try_from(fields.modified).unwrap_or(0)));
    put(148, b"        ");
    put(156, if directory { b"5" } else { b"0" });
    put(257, b"ustar\x0000");
    put(265, b"postgres");
    put(297, b"postgres");
    put(329, &render_number::<8>(0));
    put(337, &render_number::<8>(0));
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block.iter_mut().skip(148).zip(render_number::<8>(sum)).for_each(|(to, from)| *to = from);
    Some(block)
}

/// Octal digits and a blank; base 256 for what has more digits than there is room for.
fn render_number<const N: usize>(value: u64) -> [u8; N] {
    let mut field = [0u8; N];
    let digits = N - 1;
    if value >> (3 * digits).min(63) == 0 {
        let text = format!("{value:0digits$o} ");
        field.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    } else {
        field.iter_mut().rev().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        field.first_mut().into_iter().for_each(|first| *first |= 0x80);
    }
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar::padding;
    use crate::tar::{TarKind, TarPiece, TarScanner};

    proptest! {
        #[test]
        fn the_scanner_reads_what_was_rendered(
            path in "[a-z0-9_]{1,30}(/[a-z0-9_.]{1,30}){0,2}", mode in 0u32..0o10000, size in any::<u64>(),
            modified in any::<i64>(), user in any::<u32>(), directory in any::<bool>(),
        ) {
            let size = size >> 1;
            prop_assume!(!path.split('/').any(|part| part == "." || part == ".."));
            let kind = if directory { HeaderKind::Directory } else { HeaderKind::File };
            let block = render_header(&path, &HeaderFields { kind, mode, user, group: user, size, modified }).unwrap();
            let piece = TarScanner::new().next(&mut &block[..]).unwrap();
            let Some(TarPiece::Entry(entry)) = piece else { panic!("{piece:?}") };
            prop_assert_eq!(&entry.path, &path);
            prop_assert_eq!(entry.mode, mode);
            prop_assert_eq!(entry.kind == TarKind::Directory, directory);
            prop_assert_eq!(entry.size, if directory { 0 } else { size });
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_and_content_is_padded_to_blocks() {
        let fields = HeaderFields { kind: HeaderKind::File, mode: 0o600, user: 0, group: 0, size: 0, modified: 0 };
        assert!(render_header(&"x".repeat(99), &fields).is_some());
        assert!(render_header(&"x".repeat(100), &fields).is_none());
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}

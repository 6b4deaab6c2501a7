//! The WAL that makes a backup consistent, read from `pg_wal` after its end as `BASE_BACKUP` with `WAL` does it: the segments from start
//! to stop, of whatever timeline, all history files, and for each a mark that says that it needs no archiving.

use std::{os::unix::fs::MetadataExt, path::Path};

use pgherd_core::{lsn::Lsn, timeline::TimelineId};

use super::{
    LocalError,
    archives::{Sources, header},
    chunk::{ChunkWriter, Content, SourceFile, open},
    tar_header::HeaderKind,
    walk::read_names,
};
use crate::{
    tar::TAR_BLOCK,
    wal::{WalName, segment_names},
};

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalSpan {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
    pub(super) segment_bytes: u64,
}

/// Sends the WAL and ends the archive.
pub(super) fn send_wal(sources: &Sources, span: WalSpan, writer: &mut ChunkWriter) -> Result<(), LocalError> {
    let names = read_names(&sources.data.join("pg_wal"))?;
    let (segments, histories) = select_wal(&names, span)?;
    for name in &segments {
        send_file(sources, writer, name, Some(span.segment_bytes))?;
        sources.send_known(writer, &format!("pg_wal/archive_status/{name}.done"), Vec::new())?;
    }
    for name in &histories {
        send_file(sources, writer, name, None)?;
        sources.send_known(writer, &format!("pg_wal/archive_status/{name}.done"), Vec::new())?;
    }
    writer.push_bytes(&[0; 2 * TAR_BLOCK])?;
    writer.flush()
}

/// Segments in the order of their positions, then history files.
fn select_wal(names: &[String], span: WalSpan) -> Result<(Vec<String>, Vec<String>), LocalError> {
    let needed: Vec<String> = segment_names(span.timeline, span.start, span.stop, span.segment_bytes).collect();
    if let Some(missing) = needed.iter().find(|name| !names.contains(name)) {
        return Err(LocalError::MissingWal((*missing).clone()));
    }
    let position = |name: &str| name.get(8..).map(str::to_owned);
    let (first, last) = (needed.first().and_then(|name| position(name)), needed.last().and_then(|name| position(name)));
    let parse = |name: &str| WalName::parse(name).ok();
    let is_segment = |name: &str| matches!(parse(name), Some(WalName::Segment { partial: false, .. }));
    let in_span = |name: &str| is_segment(name) && position(name) >= first && position(name) <= last;
    let mut segments: Vec<String> = names.iter().filter(|name| in_span(name)).cloned().collect();
    segments.sort_by_key(|name| position(name));
    let is_history = |name: &str| matches!(parse(name), Some(WalName::History(_)));
    Ok((segments, names.iter().filter(|name| is_history(name)).cloned().collect()))
}

/// A file of `pg_wal`; a segment has to be there, and whole.
fn send_file(sources: &Sources, writer: &mut ChunkWriter, name: &str, whole: Option<u64>) -> Result<(), LocalError> {
    let path = format!("pg_wal/{name}");
    let place = sources.data.join(&path);
    let file = open(Path::new(&place))?.ok_or_else(|| LocalError::MissingWal(name.to_owned()))?;
    let metadata = file.metadata().map_err(LocalError::reading(&place))?;
    if whole.is_some_and(|bytes| bytes != metadata.len()) {
        return Err(LocalError::WalChanged(path));
    }
    writer.push_bytes(&header(&path, HeaderKind::File, metadata.mode(), metadata.len(), &metadata)?)?;
    writer.push_file(SourceFile {
        path,
        size: metadata.len(),
        modified: metadata.mtime(),
        place,
        content: Content::Opened(file),
        first_page: None,
        is_segment: whole.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segments_from_start_to_stop_go_along_and_none_may_be_missing() {
        let span =
            |stop| WalSpan { timeline: TimelineId(2), start: Lsn(0x200_0028), stop: Lsn(stop), segment_bytes: 1 << 24 };
        let names: Vec<String> = [
            "000000010000000000000002",
            "000000020000000000000001",
            "000000020000000000000002",
            "000000020000000000000003",
            "000000020000000000000004",
            "00000002.history",
            "000000020000000000000002.00000028.backup",
            "archive_status",
        ]
        .map(str::to_owned)
        .into();
        let (segments, histories) = select_wal(&names, span(0x300_0100)).unwrap();
        assert_eq!(segments, ["000000010000000000000002", "000000020000000000000002", "000000020000000000000003"]);
        assert_eq!(histories, ["00000002.history"]);
        assert_eq!(select_wal(&names, span(0x300_0000)).unwrap().0.len(), 2, "the end is not in the next segment");
        let missing = select_wal(&names, span(0x500_0100));
        assert!(matches!(missing, Err(LocalError::MissingWal(name)) if name == "000000020000000000000005"));
    }
}

//! `BASE_BACKUP` on the wire (PostgreSQL 15 and later): typed events up to ReadyForQuery. The end of the connection is
//! never the end of a backup.

use std::time::Duration;

use bytes::Bytes;
use pgherd_core::{lsn::Lsn, timeline::TimelineId};
use postgres_protocol::message::{backend::Message, frontend};

use crate::replication::{
    ReplicationClient, ReplicationError, Row, ServerError, parse_column, render_literal,
    wire::{parse_row, parse_server_error},
};

/// What to ask the server for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// The label in `backup_label`.
    pub label: String,
    /// An immediate checkpoint instead of a spread one.
    pub fast_checkpoint: bool,
    /// Kilobytes per second (32 to 1048576); `None` for no limit.
    pub max_rate: Option<u32>,
    /// Ask for a manifest with CRC32C.
    pub manifest: bool,
    /// Ask only for what changed since the backup whose manifest was uploaded on this connection before.
    pub incremental: bool,
}

/// A tablespace, or the data directory itself when `oid` is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// The tablespace's OID; `None` for the data directory.
    pub oid: Option<u32>,
    /// Its location; empty for the data directory.
    pub location: String,
    /// The estimated size in bytes.
    pub size: Option<u64>,
}

/// What passes during a base backup, in the order of the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseBackupEvent {
    /// The checkpoint is done, data follows.
    Start {
        /// WAL is needed from here.
        lsn: Lsn,
        /// On this timeline.
        timeline: TimelineId,
        /// What will be sent.
        tablespaces: Vec<Tablespace>,
    },
    /// A tar archive begins.
    Archive {
        /// `base.tar` or `<oid>.tar`.
        name: String,
        /// The tablespace's path; empty for the data directory.
        path: String,
    },
    /// Bytes of the archive.
    Data(Bytes),
    /// Bytes of the manifest; the last archive is complete.
    Manifest(Bytes),
    /// Bytes done so far by the server's count.
    Progress(u64),
    /// The server is content with everything and ready for the next command.
    End {
        /// Consistent from here on.
        stop_lsn: Lsn,
        /// The timeline at the end.
        timeline: TimelineId,
    },
}

/// Why a base backup failed on the wire.
#[derive(Debug, thiserror::Error)]
pub enum BaseBackupError {
    /// The source has corrupt pages: the server said so after it had sent everything.
    #[error("the source has corrupt pages")]
    CorruptSource(#[source] Box<ServerError>),
    /// The connection or the server failed.
    #[error("base backup")]
    Replication(#[from] ReplicationError),
    /// Asked for events after the end.
    #[error("the base backup is over already")]
    Finished,
}

/// A running base backup. Dropping it closes the connection, which ends the backup on the server.
#[derive(Debug)]
pub struct BaseBackup {
    client: ReplicationClient,
    decoder: Decoder,
}

impl BaseBackup {
    /// Sends the command. The first event comes when the checkpoint is done.
    ///
    /// # Errors
    /// [`BaseBackupError::Replication`].
    pub async fn start(mut client: ReplicationClient, options: &BaseBackupOptions) -> Result<Self, BaseBackupError> {
        let command = render_command(options);
        client.wire().send(|buffer| frontend::query(&command, buffer)).await?;
        Ok(Self { client, decoder: Decoder::default() })
    }

    /// The next event. Safe to cancel.
    ///
    /// # Errors
    /// [`BaseBackupError`]; also for a connection that ends before [`BaseBackupEvent::End`].
    pub async fn next(&mut self) -> Result<BaseBackupEvent, BaseBackupError> {
        loop {
            let timeout = match self.decoder.state {
                State::Done => return Err(BaseBackupError::Finished),
                State::Head(_) => CHECKPOINT_TIMEOUT,
                _ => SILENCE_TIMEOUT,
            };
            let message = tokio::time::timeout(timeout, self.client.wire().read("a base backup"))
                .await
                .map_err(|_| ReplicationError::Timeout { what: "data of the base backup", after: timeout })??;
            if let Some(event) = self.decoder.decode(message)? {
                return Ok(event);
            }
        }
    }
}

/// `BASE_BACKUP` as PostgreSQL 15 and later want it. WAL is included, so that a backup restores alone; the server does
/// not wait for its archiver.
fn render_command(options: &BaseBackupOptions) -> String {
    let mut parts = vec![
        format!("LABEL {}", render_literal(&options.label)),
        "PROGRESS true".to_owned(),
        format!("CHECKPOINT '{}'", if options.fast_checkpoint { "fast" } else { "spread" }),
        "WAL true".to_owned(),
        "WAIT false".to_owned(),
        "TABLESPACE_MAP true".to_owned(),
        "VERIFY_CHECKSUMS true".to_owned(),
    ];
    if options.manifest {
        parts.extend(["MANIFEST 'yes'".to_owned(), "MANIFEST_CHECKSUMS 'CRC32C'".to_owned()]);
    }
    if options.incremental {
        parts.push("INCREMENTAL true".to_owned());
    }
    parts.extend(options.max_rate.map(|rate| format!("MAX_RATE {}", rate.clamp(32, 1 << 20))));
    format!("BASE_BACKUP ({})", parts.join(", "))
}

/// A spread checkpoint, or the restart point of a standby, takes as long as `checkpoint_timeout` says.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// The server sends without pause once it has begun, down to 32 kB/s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// What a server lists before its data is kept in memory; the data directory counts as one.
const MAX_TABLESPACES: usize = 10_000;
const DATA_CORRUPTED: &str = "XX001";

/// Bytes of all tablespaces by the server's count; `None` where it does not say.
pub(crate) fn estimate_bytes(tablespaces: &[Tablespace]) -> Option<u64> {
    tablespaces.iter().try_fold(0u64, |sum, tablespace| Some(sum.saturating_add(tablespace.size?)))
}

/// Where in the conversation we are.
#[derive(Debug)]
enum State {
    /// Result sets before the data: the start position, then the tablespaces.
    Head(Head),
    /// Inside COPY.
    Copy { manifest: bool, archive: bool },
    /// The result set after the data.
    Tail(Option<(Lsn, TimelineId)>),
    /// ReadyForQuery was seen.
    Done,
}

#[derive(Debug, Default)]
struct Head {
    result_sets: u8,
    start: Option<(Lsn, TimelineId)>,
    tablespaces: Vec<Tablespace>,
}

/// Turns messages into events; knows what may follow what.
#[derive(Debug)]
struct Decoder {
    state: State,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Head(Head::default()) }
    }
}

impl Decoder {
    fn decode(&mut self, message: Message) -> Result<Option<BaseBackupEvent>, BaseBackupError> {
        match message {
            Message::NoticeResponse(body) => {
                let notice = parse_server_error(body.fields())?;
                tracing::warn!(code = notice.code, message = notice.message, "notice during the base backup");
                return Ok(None);
            }
            Message::ParameterStatus(_) | Message::CommandComplete(_) => return Ok(None),
            Message::ErrorResponse(body) => {
                let error = parse_server_error(body.fields())?;
                return Err(match error.code.as_str() {
                    DATA_CORRUPTED => BaseBackupError::CorruptSource(Box::new(error)),
                    _ => ReplicationError::from(error).into(),
                });
            }
            _ => {}
        }
        match (&mut self.state, message) {
            (State::Head(head), Message::RowDescription(_)) => {
                head.result_sets = head.result_sets.saturating_add(1);
                Ok(None)
            }
            (State::Head(head), Message::DataRow(body)) => head.take_row(&parse_row(&body)?).map(|()| None),
            (State::Head(head), Message::CopyOutResponse(_)) => {
                let (lsn, timeline) = head.start.ok_or_else(|| violation("data before the start position"))?;
                let tablespaces = std::mem::take(&mut head.tablespaces);
                self.state = State::Copy { manifest: false, archive: false };
                Ok(Some(BaseBackupEvent::Start { lsn, timeline, tablespaces }))
            }
            (State::Copy { manifest, archive }, Message::CopyData(body)) => {
                decode_copy(body.into_bytes(), manifest, archive).map(Some)
            }
            (State::Copy { .. }, Message::CopyDone) => {
                self.state = State::Tail(None);
                Ok(None)
            }
            (State::Tail(_), Message::RowDescription(_)) => Ok(None),
            (State::Tail(stop), Message::DataRow(body)) => {
                *stop = Some(parse_position(&parse_row(&body)?)?);
                Ok(None)
            }
            (State::Tail(stop), Message::ReadyForQuery(_)) => {
                let (stop_lsn, timeline) = stop.ok_or_else(|| violation("the end without a stop position"))?;
                self.state = State::Done;
                Ok(Some(BaseBackupEvent::End { stop_lsn, timeline }))
            }
            _ => Err(violation("a message out of place")),
        }
    }
}

impl Head {
    fn take_row(&mut self, row: &Row) -> Result<(), BaseBackupError> {
        if self.result_sets <= 1 {
            self.start = Some(parse_position(row)?);
            return Ok(());
        }
        if self.tablespaces.len() >= MAX_TABLESPACES {
            return Err(violation("more tablespaces than any server has"));
        }
        let optional = |index: usize| row.get(index).and_then(Option::as_deref);
        let oid = optional(0).map(|_| parse_column(row, 0)).transpose()?;
        let size = optional(2).map(|_| parse_column::<u64>(row, 2)).transpose()?;
        let location = optional(1).unwrap_or_default().to_owned();
        // The server gives kilobytes.
        self.tablespaces.push(Tablespace { oid, location, size: size.map(|kilobytes| kilobytes.saturating_mul(1024)) });
        Ok(())
    }
}

fn parse_position(row: &Row) -> Result<(Lsn, TimelineId), ReplicationError> {
    Ok((parse_column(row, 0)?, TimelineId(parse_column(row, 1)?)))
}

fn violation(what: &str) -> BaseBackupError {
    ReplicationError::Protocol(format!("in a base backup: {what}")).into()
}

/// One piece of the COPY stream: a tag, then what it says.
fn decode_copy(mut body: Bytes, manifest: &mut bool, archive: &mut bool) -> Result<BaseBackupEvent, BaseBackupError> {
    if body.is_empty() {
        return Err(violation("an empty piece without a tag"));
    }
    match body.split_to(1).first() {
        Some(b'n') if !*manifest => {
            *archive = true;
            let mut fields = body.split(|byte| *byte == 0);
            let mut text = || {
                let field = fields.next().ok_or_else(|| violation("an archive without a name"))?;
                String::from_utf8(field.to_vec()).map_err(|_| violation("an archive's name is not UTF-8"))
            };
            Ok(BaseBackupEvent::Archive { name: text()?, path: text()? })
        }
        Some(b'd') if *manifest => Ok(BaseBackupEvent::Manifest(body)),
        Some(b'd') if *archive => Ok(BaseBackupEvent::Data(body)),
        Some(b'm') if !*manifest => {
            *manifest = true;
            Ok(BaseBackupEvent::Manifest(body))
        }
        Some(b'p') => {
            let bytes: [u8; 8] = body.as_ref().try_into().map_err(|_| violation("a progress report of odd size"))?;
            Ok(BaseBackupEvent::Progress(u64::from_be_bytes(bytes)))
        }
        _ => Err(violation("a piece of unknown kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_command_quotes_its_label_and_asks_for_what_a_restore_needs() {
        let options = BaseBackupOptions {
            label: "it's".into(),
            fast_checkpoint: true,
            max_rate: Some(1),
            manifest: true,
            incremental: false,
        };
        let command = render_command(&options);
        assert!(!command.contains("INCREMENTAL"), "PostgreSQL 16 does not know the word: {command}");
        let incremental = render_command(&BaseBackupOptions { incremental: true, ..options });
        assert!(incremental.contains(", INCREMENTAL true"), "{incremental}");
        assert!(command.starts_with("BASE_BACKUP (LABEL 'it''s', "), "{command}");
        for part in ["WAL true", "WAIT false", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'", "MAX_RATE 32"] {
            assert!(command.contains(part), "{part} in {command}");
        }
    }

    #[test]
    fn pieces_follow_the_tags_of_the_copy_stream() {
        let (mut manifest, mut archive) = (false, false);
        let mut decode = |text: &'static [u8]| decode_copy(Bytes::from_static(text), &mut manifest, &mut archive);
        assert!(decode(b"dtoo early").is_err());
        assert_eq!(
            decode(b"nbase.tar\0\0").unwrap(),
            BaseBackupEvent::Archive { name: "base.tar".into(), path: String::new() }
        );
        assert_eq!(decode(b"dabc").unwrap(), BaseBackupEvent::Data(Bytes::from_static(b"abc")));
        assert_eq!(decode(b"d").unwrap(), BaseBackupEvent::Data(Bytes::new()), "an empty piece ends nothing");
        assert_eq!(decode(b"p\0\0\0\0\0\0\0\x07").unwrap(), BaseBackupEvent::Progress(7));
        assert_eq!(decode(b"m").unwrap(), BaseBackupEvent::Manifest(Bytes::new()));
        assert_eq!(decode(b"d{}").unwrap(), BaseBackupEvent::Manifest(Bytes::from_static(b"{}")));
        assert!(decode(b"n16384.tar\0/x\0").is_err(), "no archive after the manifest");
        assert!(decode(b"").is_err());
        assert!(decode(b"p\0").is_err());
    }
    fn read_message(tag: u8, body: &[u8]) -> Message {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        let mut bytes = bytes::BytesMut::from(&[&[tag], &length[..], body].concat()[..]);
        Message::parse(&mut bytes).unwrap().unwrap()
    }

    fn data_row(columns: &[&str]) -> Message {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            body.extend_from_slice(&u32::try_from(column.len()).unwrap().to_be_bytes());
            body.extend_from_slice(column.as_bytes());
        }
        read_message(b'D', &body)
    }

    #[test]
    fn a_server_that_lists_without_end_is_left() {
        let mut decoder = Decoder::default();
        for _ in 0..2 {
            decoder.decode(read_message(b'T', &[0, 0])).unwrap();
        }
        let row = || data_row(&["1663", "/space", "18446744073709551615"]);
        for _ in 0..MAX_TABLESPACES {
            decoder.decode(row()).unwrap();
        }
        assert!(decoder.decode(row()).is_err());
        let State::Head(head) = &decoder.state else { panic!("{decoder:?}") };
        assert_eq!(estimate_bytes(&head.tablespaces), Some(u64::MAX), "an estimate too large is no reason to panic");
    }

    proptest! {
        #[test]
        fn messages_in_any_order_never_panic_and_there_is_no_end_without_a_stop_position(
            picks in prop::collection::vec((0usize..11, any::<u64>(), prop::collection::vec(any::<u8>(), 0..20)), 0..600),
        ) {
            let (mut decoder, mut rows_in_tail) = (Decoder::default(), 0);
            for (pick, number, bytes) in picks {
                let (lsn, number) = (format!("0/{:X}", number as u32), number.to_string());
                let message = match pick {
                    1 => data_row(&[&lsn, "1"]),
                    2 => data_row(&["1663", "/space", &number]),
                    3 => data_row(&[&String::from_utf8_lossy(&bytes)]),
                    4 => read_message(b'H', &[0, 0, 0]),
                    5 => read_message(b'd', &bytes),
                    6 => read_message(b'd', b"nbase.tar\0\0"),
                    7 => read_message(b'c', b""),
                    8 => read_message(b'Z', b"I"),
                    9 => read_message(b'C', b"SELECT\0"),
                    _ => read_message(b'T', &[0, 0]),
                };
                rows_in_tail += usize::from(matches!((&decoder.state, pick), (State::Tail(_), 1)));
                if let Ok(Some(BaseBackupEvent::End { .. })) = decoder.decode(message) {
                    prop_assert!(rows_in_tail > 0);
                }
            }
        }
    }
}

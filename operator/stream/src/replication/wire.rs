//! Messages of the PostgreSQL protocol over any byte stream: framing, a length limit, the server's errors.
//!
//! It holds at most one message and one read-ahead buffer, whatever the peer sends.

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{self as tags, DataRowBody, ErrorField, ErrorFields, Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{ReplicationError, ServerError};

/// Longest message that is accepted, in bytes. The server sends backups in pieces of 32 KiB; a timeline history is a row.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 128 << 10;

/// A byte stream to a server.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A framed connection. Reading is safe to cancel: bytes that arrived stay in the buffer.
pub struct Wire<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S> std::fmt::Debug for Wire<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Frames a stream.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends what `build` writes.
    ///
    /// # Errors
    /// [`ReplicationError::Io`].
    pub async fn send(&mut self, build: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), ReplicationError> {
        let mut message = BytesMut::new();
        build(&mut message)?;
        self.stream.write_all(&message).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Closes the sending side, as far as the transport can.
    pub async fn shutdown(&mut self) {
        // The peer may be gone already: nothing is lost then.
        let _ = self.stream.shutdown().await;
    }

    /// The next message. `what` names the conversation in the error for an early end.
    ///
    /// # Errors
    /// [`ReplicationError`] for a broken connection, its end, and messages that are malformed or too long.
    pub async fn read(&mut self, what: &'static str) -> Result<Message, ReplicationError> {
        loop {
            if let Some(message) = self.parse_buffered()? {
                return Ok(message);
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReplicationError::UnexpectedEnd(what));
            }
        }
    }

    fn parse_buffered(&mut self) -> Result<Option<Message>, ReplicationError> {
        let Some(header) = Header::parse(&self.buffer).map_err(malformed)? else {
            return Ok(None);
        };
        validate_tag(header.tag())?;
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_BYTES {
            return Err(ReplicationError::MessageTooLong { length, limit: MAX_MESSAGE_BYTES });
        }
        if self.buffer.len() < length + 1 {
            return Ok(None);
        }
        Message::parse(&mut self.buffer).map_err(malformed)
    }
}

/// Refuses a message type that has no place in a replication connection before its body is read into memory.
fn validate_tag(tag: u8) -> Result<(), ReplicationError> {
    let known = matches!(
        tag,
        tags::COMMAND_COMPLETE_TAG
            | tags::COPY_DATA_TAG
            | tags::COPY_DONE_TAG
            | tags::COPY_IN_RESPONSE_TAG
            | tags::COPY_OUT_RESPONSE_TAG
            | tags::DATA_ROW_TAG
            | tags::ERROR_RESPONSE_TAG
            | tags::NOTICE_RESPONSE_TAG
            | tags::BACKEND_KEY_DATA_TAG
            | tags::AUTHENTICATION_TAG
            | tags::PARAMETER_STATUS_TAG
            | tags::ROW_DESCRIPTION_TAG
            | tags::READY_FOR_QUERY_TAG
    );
    if known { Ok(()) } else { Err(ReplicationError::Protocol(format!("unexpected message type {tag:#04x}"))) }
}

/// Collects the fields of an error or a notice.
///
/// # Errors
/// [`ReplicationError::Protocol`] when it is malformed.
pub fn parse_server_error(mut fields: ErrorFields<'_>) -> Result<ServerError, ReplicationError> {
    let mut error =
        ServerError { severity: String::new(), code: String::new(), message: String::new(), detail: None, hint: None };
    let text = |field: &ErrorField<'_>| String::from_utf8_lossy(field.value_bytes()).into_owned();
    while let Some(field) = fields.next().map_err(malformed)? {
        match field.type_() {
            b'V' => error.severity = text(&field),
            b'S' if error.severity.is_empty() => error.severity = text(&field),
            b'C' => error.code = text(&field),
            b'M' => error.message = text(&field),
            b'D' => error.detail = Some(text(&field)),
            b'H' => error.hint = Some(text(&field)),
            _ => {}
        }
    }
    Ok(error)
}

fn malformed(error: io::Error) -> ReplicationError {
    ReplicationError::Protocol(error.to_string())
}

/// The columns of a row as text; `None` is SQL NULL.
///
/// # Errors
/// [`ReplicationError::Protocol`] when the row is malformed or not UTF-8.
pub fn parse_row(body: &DataRowBody) -> Result<Vec<Option<String>>, ReplicationError> {
    let mut ranges = body.ranges();
    let mut columns = Vec::new();
    while let Some(range) = ranges.next().map_err(malformed)? {
        let Some(range) = range else {
            columns.push(None);
            continue;
        };
        let bytes =
            body.buffer().get(range).ok_or_else(|| ReplicationError::Protocol("a column beyond its row".into()))?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| ReplicationError::Protocol("a column is not UTF-8".into()))?;
        columns.push(Some(text.to_owned()));
    }
    Ok(columns)
}

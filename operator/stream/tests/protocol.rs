//! The protocol reader under arbitrary bytes and arbitrary splits: no panic, no memory beyond its limit, and the same
//! messages however they arrive.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use pgherd_stream::replication::{
    ReplicationError,
    wire::{MAX_MESSAGE_BYTES, Wire, parse_row, parse_server_error},
};
use postgres_protocol::message::backend::Message;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that sends its bytes in pieces of the given sizes and then closes.
struct Peer {
    bytes: Vec<u8>,
    at: usize,
    cuts: Vec<usize>,
    turn: usize,
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let cut = self.cuts[self.turn % self.cuts.len()];
        let end = (self.at + cut.min(buffer.remaining())).min(self.bytes.len());
        buffer.put_slice(&self.bytes[self.at..end]);
        self.turn += 1;
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// Reads everything as text, up to the error that ends it.
fn read_all(bytes: Vec<u8>, cuts: Vec<usize>) -> (Vec<String>, ReplicationError) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut wire = Wire::new(Peer { bytes, at: 0, cuts, turn: 0 });
        let mut seen = Vec::new();
        loop {
            let text = match wire.read("a test").await {
                Err(error) => return (seen, error),
                Ok(Message::DataRow(body)) => format!("{:?}", parse_row(&body).map_err(|e| e.to_string())),
                Ok(Message::ErrorResponse(body)) => {
                    format!("{:?}", parse_server_error(body.fields()).map_err(|e| e.to_string()))
                }
                Ok(Message::CopyData(body)) => format!("{:?}", body.into_bytes()),
                Ok(_) => "other".to_owned(),
            };
            seen.push(text);
        }
    })
}

fn known_message() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..200);
    (prop::sample::select(b"CdcHDENKRSTZ".to_vec()), body).prop_map(|(tag, body)| message(tag, &body))
}

proptest! {
    #[test]
    fn arbitrary_bytes_end_in_an_error_and_never_in_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        cuts in prop::collection::vec(1usize..300, 1..20),
    ) {
        read_all(bytes, cuts);
    }

    #[test]
    fn messages_with_arbitrary_bodies_are_the_same_in_any_pieces(
        messages in prop::collection::vec(known_message(), 0..20),
        cuts in prop::collection::vec(1usize..300, 1..20),
    ) {
        let bytes = messages.concat();
        let (whole, end) = read_all(bytes.clone(), vec![usize::MAX]);
        let (pieces, other) = read_all(bytes, cuts);
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!(end.to_string(), other.to_string());
    }

    #[test]
    fn copy_data_comes_through_unchanged(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100_000), 0..6), cut in 1usize..70_000) {
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| message(b'd', body)).collect();
        let (seen, end) = read_all(bytes, vec![cut]);
        let expected: Vec<_> = bodies.iter().map(|body| format!("{:?}", bytes::Bytes::copy_from_slice(body))).collect();
        prop_assert_eq!(seen, expected);
        prop_assert!(matches!(end, ReplicationError::UnexpectedEnd(_)));
    }
}

#[test]
fn a_message_that_announces_too_much_is_refused_before_it_is_read() {
    for announced in [u32::try_from(MAX_MESSAGE_BYTES).unwrap() + 1, i32::MAX as u32] {
        let bytes = [b"d".as_slice(), &announced.to_be_bytes()].concat();
        let (_, end) = read_all(bytes, vec![1]);
        assert!(matches!(end, ReplicationError::MessageTooLong { .. }), "{end:?}");
    }
    for bad in [0u32, 3, u32::MAX] {
        let bytes = [b"d".as_slice(), &bad.to_be_bytes()].concat();
        assert!(matches!(read_all(bytes, vec![5]).1, ReplicationError::Protocol(_)));
    }
}

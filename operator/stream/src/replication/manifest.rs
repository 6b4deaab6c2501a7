//! `UPLOAD_MANIFEST` (PostgreSQL 17 and later): tells the server what the parent of an incremental backup holds.

use std::time::Duration;

use postgres_protocol::message::{backend::Message, frontend};

use super::{ReplicationClient, ReplicationError, wire::parse_server_error};

/// As pg_basebackup sends it.
const PIECE: usize = 64 << 10;
/// The server only parses and keeps it.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(10 * 60);
const WHAT: &str = "the upload of a manifest";

impl ReplicationClient {
    /// Uploads the manifest of the parent; `BASE_BACKUP` with `INCREMENTAL` on this connection refers to it.
    ///
    /// # Errors
    /// [`ReplicationError`]; [`ReplicationError::Server`] where the server does not take it. The connection is of no more use
    /// then.
    pub async fn upload_manifest(&mut self, manifest: &[u8]) -> Result<(), ReplicationError> {
        tokio::time::timeout(UPLOAD_TIMEOUT, self.send_manifest(manifest))
            .await
            .map_err(|_| ReplicationError::Timeout { what: "end of the upload of a manifest", after: UPLOAD_TIMEOUT })?
    }

    async fn send_manifest(&mut self, manifest: &[u8]) -> Result<(), ReplicationError> {
        self.wire.send(|buffer| frontend::query("UPLOAD_MANIFEST", buffer)).await?;
        self.await_answer(|message| matches!(message, Message::CopyInResponse(_))).await?;
        for piece in manifest.chunks(PIECE) {
            self.wire.send(|buffer| frontend::CopyData::new(piece).map(|data| data.write(buffer))).await?;
        }
        self.wire
            .send(|buffer| {
                frontend::copy_done(buffer);
                Ok(())
            })
            .await?;
        self.await_answer(|message| matches!(message, Message::ReadyForQuery(_))).await
    }

    /// Reads up to the message that is waited for.
    async fn await_answer(&mut self, wanted: impl Fn(&Message) -> bool) -> Result<(), ReplicationError> {
        loop {
            match self.wire.read(WHAT).await? {
                message if wanted(&message) => return Ok(()),
                Message::ErrorResponse(body) => return Err(parse_server_error(body.fields())?.into()),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) | Message::CommandComplete(_) => {}
                _ => return Err(ReplicationError::Protocol(format!("a message out of place in {WHAT}"))),
            }
        }
    }
}

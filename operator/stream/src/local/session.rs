//! The session between `pg_backup_start` and `pg_backup_stop`. While it lives the server is in backup mode; when it ends early, the
//! server ends the backup by itself.

use std::time::Duration;

use pgherd_core::{lsn::Lsn, timeline::TimelineId};

use super::LocalError;
use crate::replication::{ConnectOptions, ReplicationError, SqlClient, column, parse_column, render_literal};

/// No question takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A spread checkpoint, or the restart point of a standby, takes as long as `checkpoint_timeout` says.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// The end waits for a switch of WAL, and on a standby for nothing.
const STOP_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// What the server says of itself.
#[derive(Clone, Debug)]
pub(super) struct ServerFacts {
    pub(super) system_id: String,
    /// `server_version_num`.
    pub(super) version: u32,
    pub(super) catalogue_version: u32,
    pub(super) page_bytes: usize,
    pub(super) pages_per_segment: u32,
    pub(super) checksums: bool,
    pub(super) wal_segment_bytes: u64,
}

/// The end of a backup.
#[derive(Clone, Debug)]
pub(super) struct Stopped {
    pub(super) stop_lsn: Lsn,
    pub(super) timeline: TimelineId,
    pub(super) label: String,
    pub(super) tablespace_map: String,
}

/// An open session.
#[derive(Debug)]
pub(super) struct BackupSession {
    client: SqlClient,
}

impl BackupSession {
    /// Connects.
    pub(super) async fn connect(options: &ConnectOptions) -> Result<Self, LocalError> {
        Ok(Self { client: SqlClient::connect(options).await? })
    }

    /// Whether the server has this replication slot.
    pub(super) async fn has_slot(&mut self, name: &str) -> Result<bool, LocalError> {
        let sql = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = {}", render_literal(name));
        let row = self.client.query_row(&sql, ANSWER_TIMEOUT).await?;
        Ok(parse_column::<u32>(&row, 0)? == 1)
    }

    pub(super) async fn observe_facts(&mut self) -> Result<ServerFacts, LocalError> {
        const SQL: &str = "SELECT s.system_identifier, current_setting('server_version_num'), s.catalog_version_no, \
             i.database_block_size, i.blocks_per_segment, i.data_page_checksum_version, i.bytes_per_wal_segment \
             FROM pg_control_system() s, pg_control_init() i";
        let row = self.client.query_row(SQL, ANSWER_TIMEOUT).await?;
        Ok(ServerFacts {
            system_id: column(&row, 0)?.to_owned(),
            version: parse_column(&row, 1)?,
            catalogue_version: parse_column(&row, 2)?,
            page_bytes: parse_column(&row, 3)?,
            pages_per_segment: parse_column(&row, 4)?,
            checksums: parse_column::<u32>(&row, 5)? != 0,
            wal_segment_bytes: parse_column(&row, 6)?,
        })
    }

    /// `pg_backup_start`: waits for the checkpoint, and says from where WAL is needed.
    pub(super) async fn start(&mut self, label: &str, fast: bool) -> Result<(Lsn, TimelineId), LocalError> {
        let sql = format!("SELECT pg_backup_start({}, {fast})", render_literal(label));
        let row = self.client.query_row(&sql, CHECKPOINT_TIMEOUT).await?;
        let lsn = parse_column(&row, 0)?;
        let row = self.client.query_row("SELECT timeline_id FROM pg_control_checkpoint()", ANSWER_TIMEOUT).await?;
        Ok((lsn, TimelineId(parse_column(&row, 0)?)))
    }

    /// `pg_backup_stop`, which does not wait for the archive. It fails where a standby was promoted since the start.
    pub(super) async fn stop(&mut self) -> Result<Stopped, LocalError> {
        let sql = "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)";
        let row = self.client.query_row(sql, STOP_TIMEOUT).await?;
        let stop_lsn = parse_column(&row, 0)?;
        let (label, map) = (column(&row, 1)?.to_owned(), row.get(2).cloned().flatten().unwrap_or_default());
        // Of a standby that followed its upstream to another timeline the checkpoint may not know yet.
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT min_recovery_end_timeline FROM pg_control_recovery()) \
             ELSE (SELECT timeline_id FROM pg_control_checkpoint()) END";
        let row = self.client.query_row(sql, ANSWER_TIMEOUT).await?;
        Ok(Stopped { stop_lsn, timeline: TimelineId(parse_column(&row, 0)?), label, tablespace_map: map })
    }

    /// Returns when the session is over although nothing was asked.
    pub(super) async fn watch(&mut self) -> ReplicationError {
        self.client.watch().await
    }

    pub(super) async fn close(self) {
        self.client.close().await;
    }
}

/// Start position and timeline by a `backup_label`.
pub(super) fn parse_label(label: &str) -> Option<(Lsn, TimelineId)> {
    let value = |name: &str| label.lines().find_map(|line| line.strip_prefix(name));
    let lsn = value("START WAL LOCATION: ")?.split(' ').next()?.parse().ok()?;
    Some((lsn, TimelineId(value("START TIMELINE: ")?.trim().parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_where_the_backup_began() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
             BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 GMT\nLABEL: x\nSTART TIMELINE: 3\n";
        assert_eq!(parse_label(label), Some((Lsn(0x200_0028), TimelineId(3))));
        assert_eq!(parse_label("LABEL: x\n"), None);
    }
}

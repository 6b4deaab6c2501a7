//! The end of what a standby that follows nobody holds: everything that it received is replayed. The tail of a record that
//! never came whole can't be; it counts as received and is overwritten by whoever is followed next.

use std::time::Duration;

use pgherd_core::lsn::Lsn;
use tokio::time::{Instant, sleep};

use crate::{
    agent::Agent,
    postgres::{
        probe::{self, Sample},
        sql::Session,
    },
};

/// PostgreSQL is asked this often.
const POLL: Duration = Duration::from_millis(20);
/// A server that still starts refuses each connection with a line in its log.
const RECONNECT: Duration = Duration::from_millis(100);
/// Two looks into pg_wal, which lie `wal_retrieve_retry_interval` (500 ms) apart: what was not replayed by then is the
/// beginning of a record.
const TORN_AFTER: Duration = Duration::from_millis(1_200);
/// A query that holds the replay up for this long is ended. PostgreSQL itself would let it go on for `max_standby_streaming_delay`,
/// and nobody would be primary meanwhile.
const CONFLICT_AFTER: Duration = Duration::from_millis(500);
/// Whoever is in a transaction while the startup process waits for somebody: for a lock, a snapshot, or a pinned page.
const END_CONFLICTS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid() \
    AND EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
    AND (wait_event_type IN ('Lock', 'BufferPin', 'Buffer') OR wait_event LIKE 'RecoveryConflict%'))";

/// Since when the startup process was seen waiting for more WAL at a position.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting(Option<(Lsn, Duration)>);

impl Waiting {
    /// Ok when the replay has ended, else what is waited for. `now` only has to grow.
    fn judge(&mut self, sample: &Sample, now: Duration) -> Result<(), &'static str> {
        let obstacle = match sample {
            sample if !sample.in_recovery => Some("it is not in recovery"),
            sample if sample.receiver.is_some() => Some("the WAL receiver still runs"),
            sample if !sample.replay_waits && sample.replayed < sample.received => {
                Some("what was received is not replayed yet")
            }
            sample if !sample.replay_waits => Some("the startup process does not wait for WAL yet"),
            _ => None,
        };
        if let Some(obstacle) = obstacle {
            self.0 = None;
            return Err(obstacle);
        }
        let since = match self.0 {
            Some((position, since)) if position == sample.replayed => since,
            _ => now,
        };
        let again = self.0.is_some();
        self.0 = Some((sample.replayed, since));
        let needed = if sample.replayed >= sample.received { Duration::ZERO } else { TORN_AFTER };
        if again && now.saturating_sub(since) >= needed && now > since {
            Ok(())
        } else {
            Err("the startup process has waited for WAL only just now")
        }
    }
}

/// Since when the replay has stood still before its end.
#[derive(Clone, Copy, Debug, Default)]
struct Standstill(Option<(Lsn, Duration)>);

impl Standstill {
    /// True when it has for [`CONFLICT_AFTER`], and again after as long. `now` only has to grow.
    fn lasts(&mut self, sample: &Sample, now: Duration) -> bool {
        let since = match self.0 {
            Some((position, since)) if position == sample.replayed => since,
            _ => now,
        };
        let lasts = !sample.replay_waits && now.saturating_sub(since) >= CONFLICT_AFTER;
        self.0 = Some((sample.replayed, if lasts || sample.replay_waits { now } else { since }));
        lasts
    }
}

/// Waits until the receiver is gone and the startup process was at least twice seen waiting for more WAL at one position.
///
/// # Errors
/// What was still missing at the deadline.
pub async fn await_replay_end(agent: &Agent, deadline: Instant) -> Result<Sample, &'static str> {
    let started = Instant::now();
    let mut session: Option<(u64, Session)> = None;
    let (mut waiting, mut standstill) = (Waiting::default(), Standstill::default());
    let mut waiting_for = "PostgreSQL does not answer";
    while Instant::now() < deadline {
        let generation = agent.server.generation();
        let mut pause = POLL;
        if session.as_ref().is_none_or(|(of, _)| *of != generation) {
            session = probe::connect(&agent.layout).await.ok().map(|session| (generation, session));
        }
        if session.is_none() {
            pause = RECONNECT;
        } else if let Some((_, open)) = &session {
            match probe::observe_sample(open, generation).await {
                Ok(sample) => {
                    agent.publish_sample(sample.clone());
                    if sample.replay_paused {
                        // By a person. For want of higher settings the server ends, and the next attempt finds it started with them.
                        let _ = open.query("SELECT pg_wal_replay_resume()", &[]).await;
                    }
                    if standstill.lasts(&sample, started.elapsed()) {
                        end_conflicts(open).await;
                    }
                    match waiting.judge(&sample, started.elapsed()) {
                        Ok(()) => return Ok(sample),
                        Err(obstacle) => waiting_for = obstacle,
                    }
                }
                Err(_) => session = None,
            }
        }
        sleep(pause).await;
    }
    Err(waiting_for)
}

async fn end_conflicts(session: &Session) {
    match session.query(END_CONFLICTS, &[]).await {
        Ok(rows) => {
            let ended = rows.first().map_or(0, |row| row.get::<_, i64>(0));
            if ended > 0 {
                tracing::warn!(ended, "sessions that held the replay up were ended");
            }
        }
        Err(error) => tracing::warn!(error = %error, "sessions that may hold the replay up can't be ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Boottime;

    fn sample(received: u64, replayed: u64, replay_waits: bool) -> Sample {
        Sample {
            at: Boottime(0),
            generation: 1,
            in_recovery: true,
            server_version: 150_000,
            system_id: "7".into(),
            segment_bytes: 16 << 20,
            received: Lsn(received),
            streamed: None,
            replayed: Lsn(replayed),
            wal_file: None,
            synchronous_standby_names: String::new(),
            checkpointer_idle: true,
            replay_waits,
            replay_paused: false,
            pending_restart: Vec::new(),
            receiver: None,
            standbys: Vec::new(),
            slots: Vec::new(),
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn two_looks_at_one_position_end_the_wait_and_one_does_not() {
        let mut waiting = Waiting::default();
        assert!(waiting.judge(&sample(100, 100, true), ms(0)).is_err());
        assert!(waiting.judge(&sample(120, 120, true), ms(20)).is_err());
        assert!(waiting.judge(&sample(120, 120, true), ms(40)).is_ok());
    }

    #[test]
    fn replay_that_goes_on_begins_the_wait_anew() {
        let mut waiting = Waiting::default();
        assert!(waiting.judge(&sample(100, 100, true), ms(0)).is_err());
        assert_eq!(waiting.judge(&sample(120, 100, false), ms(20)), Err("what was received is not replayed yet"));
        assert!(waiting.judge(&sample(120, 120, true), ms(40)).is_err());
        assert!(waiting.judge(&sample(120, 120, true), ms(60)).is_ok());
    }

    #[test]
    fn replay_that_stands_still_is_noticed_and_replay_that_goes_on_or_waits_for_wal_is_not() {
        let mut standstill = Standstill::default();
        assert!(!standstill.lasts(&sample(200, 100, false), ms(0)));
        assert!(!standstill.lasts(&sample(200, 100, false), ms(400)));
        assert!(standstill.lasts(&sample(200, 100, false), ms(500)));
        assert!(!standstill.lasts(&sample(200, 100, false), ms(900)), "it is given as long again");
        assert!(standstill.lasts(&sample(200, 100, false), ms(1_000)));
        assert!(!standstill.lasts(&sample(200, 110, false), ms(1_600)));
        assert!(!standstill.lasts(&sample(200, 110, true), ms(9_000)));
        assert!(!standstill.lasts(&sample(200, 110, false), ms(9_020)));
    }

    #[test]
    fn a_torn_record_is_given_up_only_after_pg_wal_was_looked_into_again() {
        let mut waiting = Waiting::default();
        assert!(waiting.judge(&sample(120, 100, true), ms(0)).is_err());
        assert!(waiting.judge(&sample(120, 100, true), ms(600)).is_err());
        assert!(waiting.judge(&sample(120, 100, true), ms(1_200)).is_ok());
    }
}

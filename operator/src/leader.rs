//! Which of the operator's pods leads, by a Lease. [`evaluate`] is pure; the rest reads and writes.
//!
//! The other holder's clock is never trusted: a Lease has run out when it did not change for its duration on this pod's
//! own monotonic clock. Whoever can't renew stops leading before that, and its process begins anew.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::telemetry::error_chain;

/// A Lease that did not change for this long may be taken.
const LEASE: Duration = Duration::from_secs(5);
/// Between renewals.
const RENEW: Duration = Duration::from_secs(1);
/// Whoever does not lead looks this often.
const LOOK: Duration = Duration::from_millis(500);
/// Without a renewal for this long, counted from before the last good request, this process does not lead any more.
const DEADLINE: Duration = Duration::from_millis(3_500);
/// A request that takes longer is given up.
const REQUEST: Duration = Duration::from_millis(1_500);

/// What was seen of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty for nobody.
    pub holder: String,
    /// Its resourceVersion.
    pub version: String,
    /// When this version was seen first, on this process's monotonic clock.
    pub since: Duration,
}

impl Seen {
    /// Keeps the time of the first sight while nothing changes.
    #[must_use]
    pub fn update(previous: Option<&Self>, holder: &str, version: &str, now: Duration) -> Self {
        let since = previous.filter(|seen| seen.version == version).map_or(now, |seen| seen.since);
        Self { holder: holder.to_owned(), version: version.to_owned(), since }
    }
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours: renew it.
    Renew,
    /// It is free or has run out: take it.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// Decides what to do.
#[must_use]
pub fn evaluate(seen: &Seen, identity: &str, now: Duration) -> Claim {
    if seen.holder == identity {
        Claim::Renew
    } else if seen.holder.is_empty() || now.saturating_sub(seen.since) >= LEASE {
        Claim::Take
    } else {
        Claim::Wait
    }
}

/// Whether this process leads, for everybody who asks.
#[derive(Clone, Debug)]
pub struct Leadership {
    started: Instant,
    /// Milliseconds since `started` until which this process leads; 0 before it does.
    until_ms: Arc<AtomicU64>,
}

impl Default for Leadership {
    fn default() -> Self {
        Self { started: Instant::now(), until_ms: Arc::default() }
    }
}

impl Leadership {
    /// True while this process leads.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.elapsed() < Duration::from_millis(self.until_ms.load(Ordering::Acquire))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// `asked` is the time before the request that renewed it.
    fn extend(&self, asked: Duration) {
        let until = u64::try_from((asked + DEADLINE).as_millis()).unwrap_or(u64::MAX);
        self.until_ms.store(until, Ordering::Release);
    }

    fn end(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

/// The Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("failed to read the leader Lease")]
    Read(#[source] kube::Error),
    #[error("failed to write the leader Lease")]
    Write(#[source] kube::Error),
    #[error("the API server did not answer in time")]
    Timeout,
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    seen: Option<Seen>,
    /// As this process wrote it last, so that a renewal is one request.
    written: Option<Lease>,
}

impl Elector {
    /// An elector for the Lease of this name. `identity` must differ between processes, also between two of one pod.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, leadership: Leadership) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            leadership,
            seen: None,
            written: None,
        }
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.attempt().await;
            if self.leadership.holds() {
                return;
            }
        }
    }

    /// Renews until leadership is lost.
    pub async fn hold(&mut self) {
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.leadership.holds() {
            ticks.tick().await;
            self.attempt().await;
        }
    }

    /// Gives the Lease back, so that the other pod need not wait. Call it only when nothing works any more.
    pub async fn release(&mut self) {
        self.leadership.end();
        let released = timeout(REQUEST, async {
            let lease = self.api.get_opt(&self.name).await.map_err(LeaseError::Read)?;
            let Some(mut lease) = lease.filter(|lease| holder_of(lease) == self.identity) else { return Ok(()) };
            lease.spec.get_or_insert_default().holder_identity = None;
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map(|_| ()).map_err(LeaseError::Write)
        });
        if let Err(error) = released.await.unwrap_or(Err(LeaseError::Timeout)) {
            tracing::warn!(error = error_chain(&error), "failed to release the leader Lease");
        }
    }

    async fn attempt(&mut self) {
        let asked = self.leadership.elapsed();
        match timeout(REQUEST, self.exchange(asked)).await.unwrap_or(Err(LeaseError::Timeout)) {
            Ok(true) => self.leadership.extend(asked),
            // Somebody else holds it: then this process does not, whatever its clock says.
            Ok(false) => self.leadership.end(),
            Err(error) => tracing::warn!(error = error_chain(&error), "the leader Lease"),
        }
    }

    /// True if the Lease is ours after this.
    async fn exchange(&mut self, now: Duration) -> Result<bool, LeaseError> {
        if let Some(lease) = self.written.take() {
            let renewed = self.api.replace(&self.name, &PostParams::default(), &renew(lease)).await;
            if self.write(renewed)? {
                return Ok(true);
            }
            // Somebody wrote to it meanwhile, or an answer to this process was lost: what is there says who holds it.
        }
        let Some(mut lease) = self.api.get_opt(&self.name).await.map_err(LeaseError::Read)? else {
            let created = self.api.create(&PostParams::default(), &self.new_lease()).await;
            return self.write(created);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let seen = Seen::update(self.seen.as_ref(), holder_of(&lease), &version, now);
        let claim = evaluate(&seen, &self.identity, now);
        self.seen = Some(seen);
        if claim == Claim::Wait {
            return Ok(false);
        }
        if claim == Claim::Take {
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(self.identity.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
            spec.acquire_time = Some(MicroTime(Timestamp::now()));
        }
        let replaced = self.api.replace(&self.name, &PostParams::default(), &renew(lease)).await;
        self.write(replaced)
    }

    fn write(&mut self, result: Result<Lease, kube::Error>) -> Result<bool, LeaseError> {
        match result {
            Ok(lease) => {
                self.written = Some(lease);
                Ok(true)
            }
            // Somebody was faster. The next attempt sees who holds it; until then nothing is extended.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(LeaseError::Write(error)),
        }
    }

    fn new_lease(&self) -> Lease {
        let time = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
                lease_transitions: Some(0),
                acquire_time: Some(time.clone()),
                renew_time: Some(time),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn renew(mut lease: Lease) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    lease
}

fn holder_of(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(holder: &str) -> Seen {
        Seen::update(None, holder, "1", 5 * SECOND)
    }

    #[test]
    fn a_free_lease_is_taken_and_our_own_renewed() {
        assert_eq!(evaluate(&seen(""), "me", 5 * SECOND), Claim::Take);
        assert_eq!(evaluate(&seen("me"), "me", 5 * SECOND), Claim::Renew);
    }

    #[test]
    fn anothers_lease_is_waited_for_until_it_did_not_change_for_its_duration() {
        assert_eq!(evaluate(&seen("other"), "me", 5 * SECOND + LEASE - SECOND), Claim::Wait);
        assert_eq!(evaluate(&seen("other"), "me", 5 * SECOND + LEASE), Claim::Take);
    }

    #[test]
    fn any_change_of_the_lease_starts_the_wait_anew() {
        let first = seen("other");
        let same = Seen::update(Some(&first), "other", "1", 9 * SECOND);
        assert_eq!(same.since, 5 * SECOND);
        let renewed = Seen::update(Some(&same), "other", "2", 9 * SECOND);
        assert_eq!(evaluate(&renewed, "me", 9 * SECOND + LEASE - SECOND), Claim::Wait);
    }

    #[test]
    fn a_process_of_the_same_pod_that_started_anew_is_somebody_else() {
        assert_eq!(evaluate(&seen("pod/old"), "pod/new", 6 * SECOND), Claim::Wait);
    }

    #[test]
    fn leadership_ends_before_another_may_take_the_lease() {
        assert!(DEADLINE + REQUEST <= LEASE);
        let leadership = Leadership::default();
        assert!(!leadership.holds());
        leadership.extend(leadership.elapsed());
        assert!(leadership.holds());
        leadership.end();
        assert!(!leadership.holds());
    }
}

//! What the agent's parts share. Decides nothing about roles: that is [`crate::machine`], carried out by
//! [`crate::actions`].

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pgherd_core::{
    backup::ClusterLocation,
    instance::{InstanceConfig, UpstreamSilence},
    lsn::Lsn,
    register::{MemberId, Position, Term},
    timeline::TimelineHistory,
    wal_rate::WalRate,
};
use pgherd_stream::restore::BackupHold;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    clock::Boottime,
    failsafe::{AddressBook, PeerTransport},
    fencer::{Fencer, Heartbeat},
    gate::Gate,
    layout::Layout,
    lease::{Seen, Tenure},
    postgres::{
        config::Role,
        probe::{self, Sample},
        process::Server,
        roles::AppCredentials,
    },
    register_store::RegisterStore,
    restore_check::CheckBook,
    settings::Identity,
    streaming::StreamingWatch,
    vouch::VouchBook,
};

/// A sample older than this says nothing about now.
pub const SAMPLE_MAX_AGE: Duration = Duration::from_secs(3);

/// The synchronous settings on their way into effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumProgress {
    /// `synchronous_standby_names` as written into the configuration.
    pub names: String,
    /// The members in it.
    pub members: Vec<MemberId>,
    /// How many of them a commit waits for.
    pub acks: u32,
    /// Since when this is in the configuration.
    pub since: Boottime,
    /// Flushed position once the setting was in effect.
    pub barrier: Option<Lsn>,
    /// `acks` of the members have flushed the barrier.
    pub passed: bool,
}

/// The archive that a recovery reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverySource {
    /// Where it is.
    pub location: ClusterLocation,
    /// The history that is followed; None up to the end of the backup, whose WAL is in it.
    pub history: Option<TimelineHistory>,
}

/// When something last came from the pod that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    upstream: String,
    at: Boottime,
}

/// What the agent's parts share.
pub struct Agent {
    /// Who this is.
    pub identity: Identity,
    /// Where things are.
    pub layout: Layout,
    /// The register's store.
    pub store: Box<dyn RegisterStore>,
    /// The register as last seen.
    pub register: watch::Sender<Option<Seen>>,
    /// The term that is led; renewals go on while there is one.
    pub tenure: watch::Sender<Option<Tenure>>,
    /// The status.
    pub board: Board,
    /// The supervisor's end of the fencing.
    pub fencer: Fencer,
    /// PostgreSQL's process.
    pub server: Server,
    /// Whether clients are let in.
    pub gate: Gate,
    /// What was promised to the primary.
    pub vouches: VouchBook,
    /// The last look at whether the cluster can be restored in place.
    pub restore_checks: CheckBook,
    /// Where the peers were last found.
    pub addresses: Arc<AddressBook>,
    /// How the peers are asked, where that is not by TLS over TCP.
    pub peers: Option<Arc<dyn PeerTransport>>,
    /// Wakes the machine.
    pub wake: Notify,
    /// Cancelled by SIGTERM.
    pub shutdown: CancellationToken,
    /// Whether a standby gets its WAL.
    pub streaming: StreamingWatch,
    /// Held while a step is carried out, so that a seal request and the machine never act at once.
    pub acting: tokio::sync::Mutex<()>,
    /// One backup from local files at a time.
    pub local_backups: Arc<Semaphore>,
    /// Held while the fencer is told, so that an end of the tenure is the last that it hears.
    arming: Mutex<()>,
    config: watch::Receiver<Arc<InstanceConfig>>,
    samples: watch::Sender<Option<Sample>>,
    wal_rate: Mutex<WalRate>,
    role: watch::Sender<Option<Role>>,
    heard: Mutex<Option<Heard>>,
    quorum: Mutex<QuorumProgress>,
    recovery_source: Mutex<Option<RecoverySource>>,
    upstream_history: Mutex<Option<TimelineHistory>>,
    held_backup: Mutex<Option<BackupHold>>,
    applied_roles: Mutex<Option<(u64, AppCredentials)>>,
    upstream_met_at: Mutex<Option<Boottime>>,
    register_error: Mutex<Option<String>>,
    going_on: Mutex<Option<String>>,
    diverged: AtomicBool,
    disk_proved_at: AtomicU64,
    beat: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// An agent that does nothing yet.
    #[must_use]
    pub fn new(
        identity: Identity,
        layout: Layout,
        config: watch::Receiver<Arc<InstanceConfig>>,
        store: Box<dyn RegisterStore>,
        fencer: Fencer,
        board: Board,
    ) -> Self {
        Self {
            server: Server::new(layout.clone()),
            gate: Gate::default(),
            vouches: VouchBook::open(&layout.volume),
            restore_checks: CheckBook::default(),
            addresses: Arc::default(),
            peers: None,
            identity,
            layout,
            store,
            register: watch::Sender::new(None),
            tenure: watch::Sender::new(None),
            board,
            fencer,
            wake: Notify::new(),
            shutdown: CancellationToken::new(),
            streaming: StreamingWatch::default(),
            acting: tokio::sync::Mutex::new(()),
            local_backups: Arc::new(Semaphore::new(1)),
            config,
            samples: watch::Sender::new(None),
            wal_rate: Mutex::default(),
            role: watch::Sender::new(None),
            arming: Mutex::new(()),
            heard: Mutex::new(None),
            quorum: Mutex::new(QuorumProgress::default()),
            recovery_source: Mutex::new(None),
            held_backup: Mutex::new(None),
            upstream_history: Mutex::new(None),
            applied_roles: Mutex::new(None),
            upstream_met_at: Mutex::new(None),
            register_error: Mutex::new(None),
            going_on: Mutex::new(None),
            diverged: AtomicBool::new(false),
            disk_proved_at: AtomicU64::new(0),
            beat: AtomicU64::new(Boottime::now().0),
        }
    }

    /// The same agent, which asks its peers by this transport: for the simulation.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn PeerTransport>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// The configuration now.
    #[must_use]
    pub fn config(&self) -> Arc<InstanceConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// Tells of changes of the configuration.
    #[must_use]
    pub fn config_changes(&self) -> watch::Receiver<Arc<InstanceConfig>> {
        self.config.clone()
    }

    /// The last sample, if it is about the process that runs now and recent.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        let sample = self.samples.borrow().clone()?;
        let current =
            sample.generation == self.server.generation() && Boottime::now().since(sample.at) <= SAMPLE_MAX_AGE;
        current.then_some(sample)
    }

    /// The position to write beside the register.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let sample = self.sample().filter(|sample| !sample.in_recovery)?;
        let max_age_ms = u64::try_from(SAMPLE_MAX_AGE.as_millis()).unwrap_or(u64::MAX);
        Some(lock(&self.wal_rate).position(sample.received, self.config().timings.fence_ms + max_age_ms))
    }

    /// What the server was last configured to be.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.role.borrow().clone()
    }

    /// Gives the fencer a new deadline while this term is led, and never after [`Self::disarm`].
    ///
    /// # Errors
    /// When the fencer can't be told.
    pub fn arm_while_led(&self, term: Term, deadline: Boottime) -> io::Result<()> {
        let _order = lock(&self.arming);
        match *self.tenure.borrow() {
            Some(tenure) if tenure.term == term => self.fencer.send(Heartbeat::Arm(deadline)),
            _ => Ok(()),
        }
    }

    /// Ends the tenure: there is nothing left to fence.
    ///
    /// # Errors
    /// When the fencer can't be told.
    pub fn disarm(&self) -> io::Result<()> {
        let _order = lock(&self.arming);
        self.tenure.send_replace(None);
        self.fencer.send(Heartbeat::Disarm)
    }

    /// Returns once the server is configured to follow nobody.
    pub async fn await_detached(&self) {
        let detached = |role: &Option<Role>| matches!(role, Some(Role::Standby { upstream: None, .. }));
        // The sender is this agent's.
        let _ = self.role.subscribe().wait_for(detached).await;
    }

    /// Remembers what the server was configured to be.
    pub fn set_role(&self, role: Option<Role>) {
        let upstream = match &role {
            Some(Role::Standby { upstream: Some(upstream), .. }) => Some(&upstream.pod),
            _ => None,
        };
        let mut heard = lock(&self.heard);
        if heard.as_ref().map(|heard| &heard.upstream) != upstream {
            *heard = upstream.map(|upstream| Heard { upstream: upstream.clone(), at: Boottime::now() });
        }
        drop(heard);
        self.role.send_replace(role);
    }

    /// For how long nothing has come from the pod that is followed; None where nobody is.
    #[must_use]
    pub fn silence(&self) -> Option<UpstreamSilence> {
        let heard = lock(&self.heard).clone()?;
        let ms = u64::try_from(Boottime::now().since(heard.at).as_millis()).unwrap_or(u64::MAX);
        Some(UpstreamSilence { upstream: heard.upstream, ms })
    }

    /// The synchronous settings.
    #[must_use]
    pub fn quorum(&self) -> QuorumProgress {
        lock(&self.quorum).clone()
    }

    /// Changes the synchronous settings' progress.
    pub fn update_quorum(&self, change: impl FnOnce(&mut QuorumProgress)) {
        change(&mut lock(&self.quorum));
    }

    /// The archive that restore_command reads while a new cluster is recovered from another one's.
    #[must_use]
    pub fn recovery_source(&self) -> Option<RecoverySource> {
        lock(&self.recovery_source).clone()
    }

    /// Sets or clears [`Self::recovery_source`].
    pub fn set_recovery_source(&self, source: Option<RecoverySource>) {
        *lock(&self.recovery_source) = source;
    }

    /// Keeps the backup that this replica was made from, or lets it go: its WAL is needed until the replica streams.
    pub fn hold_backup(&self, hold: Option<BackupHold>) {
        *lock(&self.held_backup) = hold;
    }

    /// The history of the primary that was last met. Nobody is followed who was not met before.
    #[must_use]
    pub fn upstream_history(&self) -> Option<TimelineHistory> {
        lock(&self.upstream_history).clone()
    }

    /// Remembers [`Self::upstream_history`].
    pub fn note_upstream_history(&self, history: TimelineHistory) {
        *lock(&self.upstream_history) = Some(history);
    }

    /// Why the register can't be read at present.
    #[must_use]
    pub fn register_error(&self) -> Option<String> {
        lock(&self.register_error).clone()
    }

    pub(crate) fn set_register_error(&self, error: Option<String>) {
        *lock(&self.register_error) = error;
    }

    /// By whose word this primary goes on although its Lease can't be renewed, for people.
    #[must_use]
    pub fn going_on(&self) -> Option<String> {
        lock(&self.going_on).clone()
    }

    pub(crate) fn set_going_on(&self, by: Option<String>) {
        *lock(&self.going_on) = by;
    }

    /// This standby was found to be on a branch of its own.
    #[must_use]
    pub fn diverged(&self) -> bool {
        self.diverged.load(Ordering::SeqCst)
    }

    /// Sets or clears [`Self::diverged`].
    pub fn set_diverged(&self, diverged: bool) {
        self.diverged.store(diverged, Ordering::SeqCst);
    }

    /// The roles were made since this start of the server, with these credentials.
    #[must_use]
    pub fn roles_are_applied(&self, generation: u64, app: &AppCredentials) -> bool {
        lock(&self.applied_roles).as_ref().is_some_and(|(of, applied)| *of == generation && applied == app)
    }

    /// Remembers that the roles were made.
    pub fn note_roles(&self, generation: u64, app: AppCredentials) {
        *lock(&self.applied_roles) = Some((generation, app));
    }

    /// The primary that is followed, or is about to be, was found to be there and most probably has what this server lacks.
    pub fn note_upstream_met(&self) {
        *lock(&self.upstream_met_at) = Some(Boottime::now());
    }

    /// That was so short a time ago.
    #[must_use]
    pub fn has_met_upstream_within(&self, time: Duration) -> bool {
        lock(&self.upstream_met_at).is_some_and(|at| Boottime::now().since(at) < time)
    }

    /// When the disk last took a write.
    #[must_use]
    pub fn disk_proved_at(&self) -> Boottime {
        Boottime(self.disk_proved_at.load(Ordering::SeqCst))
    }

    /// Publishes what the server says of itself.
    pub fn publish_sample(&self, sample: Sample) {
        if let (Some(heard), Some(receiver)) = (lock(&self.heard).as_mut(), &sample.receiver)
            && receiver.streaming
        {
            heard.at = heard.at.max(Boottime(sample.at.0.saturating_sub(receiver.silent_ms * 1_000_000)));
        }
        if sample.in_recovery {
            *lock(&self.wal_rate) = WalRate::default();
        } else {
            lock(&self.wal_rate).note(sample.at.0 / 1_000_000, sample.received, sample.segment_bytes);
        }
        self.samples.send_replace(Some(sample));
    }

    /// The disk took a write that began at `started`.
    pub fn note_disk_proof(&self, started: Boottime) {
        self.disk_proved_at.store(started.0, Ordering::SeqCst);
    }

    /// The machine is alive.
    pub fn beat(&self) {
        self.beat.store(Boottime::now().0, Ordering::SeqCst);
    }

    /// For how long the machine gave no sign of life.
    #[must_use]
    pub fn inactivity(&self) -> Duration {
        Boottime::now().since(Boottime(self.beat.load(Ordering::SeqCst)))
    }

    /// The term that is led, if any.
    #[must_use]
    pub fn led_term(&self) -> Option<Term> {
        self.tenure.borrow().map(|tenure| tenure.term)
    }

    /// Takes a sample over a session of its own and publishes it; for steps that can't wait for the next one.
    ///
    /// # Errors
    /// [`crate::postgres::sql::SqlError`].
    pub async fn sample_now(&self) -> Result<Sample, crate::postgres::sql::SqlError> {
        let generation = self.server.generation();
        let session = probe::connect(&self.layout).await?;
        let sample = probe::observe_sample(&session, generation).await?;
        self.publish_sample(sample.clone());
        Ok(sample)
    }
}
